"""Registry authentication: challenges, Basic and Bearer, tokens per set of scopes (facts/core 14).

Parsing is pure. A token server gets credentials only where `realm_problem` finds none, follows no redirect with them,
and its answer is read up to 1 MiB (facts/security 2.3).
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from aiocontainerd.distribution.hosts import RegistryCredentials, RegistryOptions, realm_problem, redacted
from aiocontainerd.errors import PermissionDenied, Unavailable

if TYPE_CHECKING:
    import aiohttp

CLIENT_ID = "containerd-client"
MAX_TOKEN_BYTES = 1 << 20
DEFAULT_LIFE_S = 60
MARGIN_S = 5
_SCHEME = re.compile(r"\s*([A-Za-z]+)(?:\s+|\Z)")
_PARAMETER = re.compile(r'\s*([A-Za-z0-9_-]{1,64})\s*=\s*(?:"((?:[^"\\]|\\.){0,4096})"|([^\s,"]{0,4096}))\s*(?:,|\Z)')
_TRY_GET = frozenset({400, 401, 404})
_METHOD_NOT_ALLOWED = 405
_OK = 200


class Challenge(msgspec.Struct, frozen=True):
    """One challenge of a `WWW-Authenticate` header; the scheme in lower case."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(headers: Sequence[str]) -> list[Challenge]:
    """Return the challenges of all headers, Bearer before Basic, without malformed ones."""
    found = [challenge for header in headers for challenge in _challenges(header)]
    order = {"bearer": 0, "basic": 1}
    return sorted((c for c in found if c.scheme in order), key=lambda challenge: order[challenge.scheme])


def _challenges(header: str) -> list[Challenge]:
    challenges: list[Challenge] = []
    at = 0
    while at < len(header) and (scheme := _SCHEME.match(header, at)):
        at, parameters = scheme.end(), {}
        while parameter := _PARAMETER.match(header, at):
            quoted = parameter[2]
            parameters[parameter[1].lower()] = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else parameter[3]
            at = parameter.end()
        challenges.append(Challenge(scheme[1].lower(), parameters))
    return challenges


def scopes_of(challenge: Challenge, repository: str) -> tuple[str, ...]:
    """Return the scopes of a token: those of the challenge and pulling the repository, sorted and unique."""
    given = challenge.parameters.get("scope", "").split(" ")
    return tuple(sorted({scope for scope in (*given, f"repository:{repository}:pull") if scope}))


class Authorizer:
    """The credentials of one registry, and the tokens they were exchanged for."""

    def __init__(self, session: aiohttp.ClientSession, registry: str, options: RegistryOptions) -> None:
        self._session = session
        self._registry = registry
        self._options = options
        self._header = ""
        self._tokens: dict[tuple[str, ...], tuple[str, float]] = {}

    def __repr__(self) -> str:
        return f"<Authorizer {redacted(self._registry)} {len(self._tokens)} tokens>"

    @property
    def header(self) -> str:
        """The `Authorization` of the next request, "" for none."""
        return self._header

    async def answer(self, headers: Sequence[str], repository: str, *, again: bool) -> None:
        """Set `header` to answer a 401. `again` says that the request had a header.

        Raises PermissionDenied where nothing helps.
        """
        problem = "the registry asks for no authentication that is known"
        for challenge in parse_challenges(headers):
            error = challenge.parameters.get("error", "")
            if again and (error or challenge.scheme == "basic"):
                problem = f"authorization failed{f' ({error[:64]})' if error else ''}"
                break
            if challenge.scheme == "bearer" and challenge.parameters.get("realm"):
                self._header = f"Bearer {await self._token(challenge, scopes_of(challenge, repository))}"
                return
            if challenge.scheme == "basic":
                if self._options.credentials is None:
                    problem = "no basic auth credentials"
                    break
                self._header = _basic(self._options.credentials)
                return
        raise PermissionDenied(denied(repository, problem))

    async def _token(self, challenge: Challenge, scopes: tuple[str, ...]) -> str:
        token, until = self._tokens.get(scopes, ("", 0.0))
        if until > time.monotonic():
            return token
        realm, service = challenge.parameters["realm"], challenge.parameters.get("service", "")
        problem = realm_problem(realm, self._registry)
        if problem:
            raise PermissionDenied(f"token server {redacted(realm)} is refused: {problem}")
        token, life_s = await self._fetch(realm, service, scopes)
        self._tokens[scopes] = (token, time.monotonic() + max(life_s, DEFAULT_LIFE_S) - MARGIN_S)
        return token

    async def _fetch(self, realm: str, service: str, scopes: tuple[str, ...]) -> tuple[str, int]:
        credentials = self._options.credentials
        if credentials is not None:
            status, body = await self._post(realm, service, scopes, credentials)
            get_instead = status in _TRY_GET or (status == _METHOD_NOT_ALLOWED and credentials.user)
            if not get_instead:
                return _token_of(realm, status, body)
        query = [("service", service)] if service else []
        query += [("scope", scope) for scope in scopes]
        headers = dict(self._options.headers)
        if credentials is not None:
            headers["Authorization"] = _basic(credentials)
        async with self._session.get(realm, params=query, headers=headers, allow_redirects=False) as response:
            return _token_of(realm, response.status, await response.content.read(MAX_TOKEN_BYTES))

    async def _post(
        self, realm: str, service: str, scopes: tuple[str, ...], credentials: RegistryCredentials
    ) -> tuple[int, bytes]:
        form = {"service": service, "scope": " ".join(scopes), "client_id": CLIENT_ID}
        if credentials.user:
            form |= {"grant_type": "password", "username": credentials.user, "password": credentials.secret}
        else:
            form |= {"grant_type": "refresh_token", "refresh_token": credentials.secret}
        headers = dict(self._options.headers)
        async with self._session.post(realm, data=form, headers=headers, allow_redirects=False) as response:
            return response.status, await response.content.read(MAX_TOKEN_BYTES)


def denied(repository: str, reason: str) -> str:
    """Return the message for a person who may not pull."""
    return (
        f"pull access denied for {repository}, repository does not exist or may require authorization: {reason}; "
        "give credentials with --user"
    )


def _token_of(realm: str, status: int, body: bytes) -> tuple[str, int]:
    if status != _OK:
        raise PermissionDenied(f"token server {redacted(realm)} answered {status}; check the credentials (--user)")
    try:
        answer = msgspec.json.decode(body)
    except msgspec.DecodeError:
        answer = None
    token = (answer.get("token") or answer.get("access_token")) if isinstance(answer, dict) else None
    if not isinstance(token, str) or not token.isascii() or any(character.isspace() for character in token):
        raise Unavailable(f"token server {redacted(realm)} answered without a token")
    life_s = answer.get("expires_in")
    return token, life_s if isinstance(life_s, int) else DEFAULT_LIFE_S


def _basic(credentials: RegistryCredentials) -> str:
    pair = f"{credentials.user}:{credentials.secret}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"
