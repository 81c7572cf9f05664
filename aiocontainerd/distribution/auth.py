"""Registry authentication: challenges, Basic and Bearer, tokens per set of scopes (facts/core 14).

Parsing is pure. A token server is asked only where `realm_problem` finds none. Redirects are followed only without
credentials. Its answer is read up to 1 MiB (facts/security 2.3).
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Mapping, Sequence
from functools import partial
from urllib.parse import urlencode, urlsplit

import aiohttp
import anyio
import msgspec

from aiocontainerd.distribution.hosts import RegistryCredentials, RegistryOptions, realm_problem, redacted, same_origin
from aiocontainerd.distribution.transport import Sent, Transport, cause_of
from aiocontainerd.errors import PermissionDenied, ResourceExhausted, Unavailable

CLIENT_ID = "containerd-client"
MAX_TOKEN_BYTES = 1 << 20
DEFAULT_LIFE_S = 60.0
"""How long a token is good whose server does not say it (the token specification of the registry)."""
MARGIN_S = 5.0
MARGIN_PART = 0.1
"""A token is renewed MARGIN_S seconds before its end, or this part of its life if that is less."""
_SCHEME = re.compile(r"[\s,]*([A-Za-z]+)(?=[\s,]|\Z)")
_PARAMETER = re.compile(
    r'[\s,]*([A-Za-z0-9_-]{1,64})\s*=\s*(?:"((?:[^"\\]|\\.){0,4096})"|([^\s,"]{1,4096}|(?=[\s,]|\Z)))\s*(,|\Z)?'
)
_TRY_GET = frozenset({400, 401, 404})
_METHOD_NOT_ALLOWED = 405
_SUCCESS = 2
_TOO_MANY = 429
_FAILING_FROM = 500

Scopes = tuple[str, ...]


class Challenge(msgspec.Struct, frozen=True):
    """One challenge of a `WWW-Authenticate` header; the scheme in lower case."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(headers: Sequence[str]) -> list[Challenge]:
    """Return the challenges of all headers, Bearer before Basic. What is malformed ends its header."""
    found = [challenge for header in headers for challenge in _challenges(header)]
    order = {"bearer": 0, "basic": 1}
    return sorted((c for c in found if c.scheme in order), key=lambda challenge: order[challenge.scheme])


def _challenges(header: str) -> list[Challenge]:
    challenges: list[Challenge] = []
    at, goes_on = 0, True
    while goes_on and (scheme := _SCHEME.match(header, at)):
        at, parameters = scheme.end(), {}
        while goes_on and (parameter := _PARAMETER.match(header, at)):
            quoted = parameter[2]
            parameters[parameter[1].lower()] = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else parameter[3]
            at, goes_on = parameter.end(), parameter[4] is not None
        challenges.append(Challenge(scheme[1].lower(), parameters))
    return challenges


def scopes_of(challenge: Challenge, repository: str) -> Scopes:
    """Return the scopes of a token: those of the challenge and pulling the repository, sorted and unique."""
    given = challenge.parameters.get("scope", "").split(" ")
    return tuple(sorted({scope for scope in (*given, f"repository:{repository}:pull") if scope}))


class Refusal(msgspec.Struct, frozen=True):
    """A 401: its challenges, and the `Authorization` that the refused request had, "" for none."""

    challenges: Sequence[Challenge]
    sent: str

    @property
    def wants_token(self) -> bool:
        """Whether a token server is named, which may give a token to anybody."""
        return any(challenge.scheme == "bearer" and challenge.parameters.get("realm") for challenge in self.challenges)


class Token(msgspec.Struct, frozen=True):
    """A token, and the monotonic time in seconds until which it is used."""

    text: str
    until: float

    @property
    def header(self) -> str:
        return f"Bearer {self.text}"


class Authorizer:
    """The credentials of one registry, and the tokens they were exchanged for."""

    def __init__(self, transport: Transport, registry: str, options: RegistryOptions) -> None:
        self._transport = transport
        self._registry = registry
        self._options = options
        self._basic = ""
        self._wanted: tuple[Challenge, Scopes] | None = None
        self._tokens: dict[Scopes, Token] = {}
        self._lock = anyio.Lock()

    def __repr__(self) -> str:
        return f"<Authorizer {redacted(self._registry)} {len(self._tokens)} tokens>"

    async def header(self) -> str:
        """Return the `Authorization` of the next request, "" for none. A token that has run out is renewed.

        Raises as `answer`.
        """
        if self._wanted is None:
            return self._basic
        return (await self._token(*self._wanted)).header

    async def answer(self, refusal: Refusal, repository: str, answered: set[str]) -> None:
        """Have `header` return what answers a 401. `answered` keeps what this request has been refused with so far.

        A token that was just refused is dropped and fetched anew, once. Raises PermissionDenied where nothing helps,
        Unavailable where the token server does not answer.
        """
        answered.add(refusal.sent)
        credentials, problem = self._options.credentials, "the registry asks for no authentication that is known"
        for challenge in refusal.challenges:
            if challenge.scheme == "bearer" and challenge.parameters.get("realm"):
                before, self._wanted = self._wanted, (challenge, scopes_of(challenge, repository))
                is_first = len(answered) == 1 or before is None or before[1] != self._wanted[1]
                if is_first and (await self._token(*self._wanted, refused=refusal.sent)).header not in answered:
                    return
            elif challenge.scheme == "basic" and credentials is None:
                raise PermissionDenied(denied(repository, "no basic auth credentials"))
            elif challenge.scheme == "basic" and credentials is not None:
                self._wanted, self._basic = None, _basic(credentials)
                if self._basic not in answered:
                    return
            error = challenge.parameters.get("error", "")
            problem = f"authorization failed{f' ({error[:64]})' if error else ''}"
            break
        raise PermissionDenied(denied(repository, problem))

    async def _token(self, challenge: Challenge, scopes: Scopes, refused: str = "") -> Token:
        """Return the token of some scopes, a new one if it has run out or `refused` is its header."""
        async with self._lock:
            token = self._tokens.get(scopes)
            if token is None or token.until <= time.monotonic() or token.header == refused:
                token = self._tokens[scopes] = await self._fetch(challenge, scopes)
            return token

    async def _fetch(self, challenge: Challenge, scopes: Scopes) -> Token:
        realm, service = challenge.parameters["realm"], challenge.parameters.get("service", "")
        self._check(realm)
        began = time.monotonic()
        try:
            answer = await self._exchange(realm, service, scopes)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable(f"token server {redacted(realm)}: {cause_of(error)}") from error
        text, life_s = _token_of(realm, *answer)
        return Token(text, began + life_s - min(MARGIN_S, life_s * MARGIN_PART))

    def _check(self, realm: str) -> None:
        problem = realm_problem(realm, self._registry)
        if problem:
            raise PermissionDenied(f"token server {redacted(realm)} is refused: {problem}")

    async def _exchange(self, realm: str, service: str, scopes: Scopes) -> tuple[int, bytes]:
        """Return status and body of the answer: to a POST, to a GET where the server takes no POST."""
        credentials = self._options.credentials
        if credentials is not None:
            posted = await self._post(realm, service, scopes, credentials)
            if not (posted[0] in _TRY_GET or (posted[0] == _METHOD_NOT_ALLOWED and credentials.user)):
                return posted
        query = [("service", service)] if service else []
        query += [("scope", scope) for scope in scopes]
        url = _with_query(realm, query)
        if credentials is None:
            return await _read(await self._transport.follow("GET", url, partial(self._anonymous, realm)))
        headers = {**self._options.headers, "Authorization": _basic(credentials)}
        return await _read(await self._transport.send("GET", url, Sent(headers, self._verifies(url))))

    async def _anonymous(self, realm: str, url: str) -> Sent:
        """Return what goes to a token server without credentials, or to where it redirects."""
        self._check(url)
        return Sent(self._options.headers if same_origin(url, realm) else {}, self._verifies(url))

    def _verifies(self, url: str) -> bool:
        return not (self._options.skip_verify and _host(url) == _host(self._registry))

    async def _post(
        self, realm: str, service: str, scopes: Scopes, credentials: RegistryCredentials
    ) -> tuple[int, bytes]:
        form = {"service": service, "scope": " ".join(scopes), "client_id": CLIENT_ID}
        if credentials.user:
            form |= {"grant_type": "password", "username": credentials.user, "password": credentials.secret}
        else:
            form |= {"grant_type": "refresh_token", "refresh_token": credentials.secret}
        sent = Sent(self._options.headers, self._verifies(realm))
        return await _read(await self._transport.send("POST", realm, sent, form))


async def _read(response: aiohttp.ClientResponse) -> tuple[int, bytes]:
    try:
        return response.status, await response.content.read(MAX_TOKEN_BYTES)
    finally:
        response.close()


def _host(url: str) -> str:
    return (urlsplit(url).hostname or "").lower()


def _with_query(url: str, query: Sequence[tuple[str, str]]) -> str:
    parts = urlsplit(url)
    return parts._replace(query="&".join(part for part in (parts.query, urlencode(query)) if part)).geturl()


def denied(repository: str, reason: str) -> str:
    """Return the message for a person who may not pull."""
    return (
        f"pull access denied for {repository}, repository does not exist or may require authorization: {reason}; "
        "give credentials with --user"
    )


def _token_of(realm: str, status: int, body: bytes) -> tuple[str, float]:
    """Return the token of an answer, and for how many seconds it is good."""
    if status // 100 != _SUCCESS:
        text = f"token server {redacted(realm)} answered {status}"
        if status == _TOO_MANY:
            raise ResourceExhausted(f"{text}: it limits how often it is asked")
        if status >= _FAILING_FROM:
            raise Unavailable(text)
        raise PermissionDenied(f"{text}; check the credentials (--user)")
    answer = _decoded(body)
    token = answer.get("access_token") or answer.get("token")
    if not isinstance(token, str) or not token.isascii() or any(character.isspace() for character in token):
        raise Unavailable(f"token server {redacted(realm)} answered without a token")
    life_s = answer.get("expires_in")
    if isinstance(life_s, int | float) and life_s > 0:
        return token, life_s
    return token, DEFAULT_LIFE_S


def _decoded(body: bytes) -> Mapping[str, object]:
    """Return the first JSON object of an answer, its keys in lower case, as Go's decoder reads it; empty for none."""
    try:
        answer, _ = json.JSONDecoder().raw_decode(body.decode().lstrip())
    except (ValueError, RecursionError):
        return {}
    return {key.lower(): value for key, value in answer.items()} if isinstance(answer, dict) else {}


def _basic(credentials: RegistryCredentials) -> str:
    pair = f"{credentials.user}:{credentials.secret}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"
