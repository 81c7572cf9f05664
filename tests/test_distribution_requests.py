"""Retries, redirects and authentication with registries that misbehave (facts/core 14, facts/security 2.3)."""

from __future__ import annotations

import hashlib
import re
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web

from aiocontainerd.distribution.fetch import fetch
from aiocontainerd.distribution.hosts import RegistryCredentials, RegistryOptions
from aiocontainerd.distribution.requests import RegistryClient
from aiocontainerd.distribution.resolve import resolve
from aiocontainerd.errors import (
    ContainerdError,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from aiocontainerd.oci import image as oci
from aiocontainerd.oci import reference
from aiocontainerd.oci.image import ChildDescriptor
from aiocontainerd.testing.registry import Handler, ScriptedRegistry, scripted_registry

pytestmark = pytest.mark.anyio

DATA = bytes(range(256)) * 4096
LAYER = ChildDescriptor(f"sha256:{hashlib.sha256(DATA).hexdigest()}", len(DATA), oci.DOCKER_LAYER_GZIP)
MANIFEST = b'{"schemaVersion":2}'
MANIFEST_DIGEST = f"sha256:{hashlib.sha256(MANIFEST).hexdigest()}"


@asynccontextmanager
async def remote(
    script: ScriptedRegistry, *, plain_http: bool = True, credentials: RegistryCredentials | None = None, **limits: Any
) -> AsyncIterator[RegistryClient]:
    given = {"busy_pause_s": 0.01, **limits}
    options = RegistryOptions(plain_http=plain_http, credentials=credentials, headers={"X-Own": "secret"}, **given)
    async with RegistryClient(reference.parse(f"{script.url}/a/b:1"), options) as opened:
        yield opened


async def body_of(opened: RegistryClient, item: ChildDescriptor = LAYER, offset: int = 0) -> bytes:
    return b"".join([data async for data in fetch(opened, item, offset)])


def manifest(request: web.Request, **headers: str) -> web.Response:
    shown = {"Docker-Content-Digest": MANIFEST_DIGEST, "Content-Type": oci.OCI_MANIFEST, **headers}
    return web.Response(body=MANIFEST, headers={key: value for key, value in shown.items() if value})


def token_registry(script_url: Callable[[], str], *, accept: str) -> Handler:
    async def handler(request: web.Request) -> web.Response:
        if request.path == "/token":
            return web.json_response({"token": accept, "expires_in": 300})
        if request.headers.get("Authorization") != "Bearer good":
            challenge = f'Bearer realm="http://{script_url()}/token",service="s",scope="repository:a/b:pull"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        return manifest(request)

    return handler


@pytest.mark.parametrize("status", [429, 503])
async def test_busy_and_failing_registries_are_asked_again(status: int) -> None:
    seen: list[int] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(1)
        return web.Response(status=status) if len(seen) == 1 else manifest(request)

    async with scripted_registry(handler) as script, remote(script) as opened:
        await resolve(opened)


async def test_a_registry_that_keeps_failing_is_named_with_its_status() -> None:
    async def handler(request: web.Request) -> web.Response:
        errors = {"errors": [{"code": "UNKNOWN", "message": "disk on fire"}]}
        return web.json_response(errors, status=503)

    async with scripted_registry(handler) as script, remote(script) as opened:
        with pytest.raises(Unavailable, match=r"unexpected status from GET request to http://.*: 503 .*disk on fire"):
            await body_of(opened)


async def test_a_redirect_elsewhere_takes_neither_credentials_nor_headers_along() -> None:
    async def elsewhere(request: web.Request) -> web.Response:
        return web.Response(body=DATA)

    async with scripted_registry(elsewhere) as other:

        async def handler(request: web.Request) -> web.Response:
            if "Authorization" not in request.headers:
                return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
            raise web.HTTPTemporaryRedirect(f"http://{other.url}/blob")

        async with (
            scripted_registry(handler) as script,
            remote(script, credentials=RegistryCredentials("u", "p")) as opened,
        ):
            assert await body_of(opened) == DATA
        assert script.header("X-Own") == ["secret", "secret"]
        assert other.header("Authorization") == [None]
        assert other.header("X-Own") == [None]


async def test_a_redirect_target_that_asks_for_credentials_gets_none() -> None:
    async def elsewhere(request: web.Request) -> web.Response:
        return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})

    async with scripted_registry(elsewhere) as other:

        async def handler(request: web.Request) -> web.Response:
            raise web.HTTPTemporaryRedirect(f"http://{other.url}/blob")

        async with (
            scripted_registry(handler) as script,
            remote(script, credentials=RegistryCredentials("u", "p")) as opened,
        ):
            with pytest.raises(PermissionDenied):
                await body_of(opened)
        assert set(other.header("Authorization")) == {None}


@pytest.mark.parametrize(
    ("place", "asked"),
    [
        ("/b%3A1%2Fc?sig=a%2Fb%3D%2B~%7E&x=a+b&y=%20", "/b%3A1%2Fc?sig=a%2Fb%3D%2B~%7E&x=a+b&y=%20"),
        ('/b?u=a%2fb;c="d"#part', '/b?u=a%2fb;c="d"'),
        ("/b c?u=é", "/b%20c?u=%C3%A9"),
    ],
)
async def test_a_signed_url_is_asked_for_as_it_was_given(place: str, asked: str) -> None:
    async def elsewhere(request: web.Request) -> web.Response:
        return web.Response(body=DATA)

    async with scripted_registry(elsewhere) as other:

        async def handler(request: web.Request) -> web.Response:
            return web.Response(status=307, headers={"Location": f"http://{other.url}{place}"})

        async with scripted_registry(handler) as script, remote(script) as opened:
            assert await body_of(opened) == DATA
        assert [request.raw_path for request in other.requests] == [asked]


@pytest.mark.parametrize("credentials", [None, RegistryCredentials("u", "p")])
async def test_a_redirect_target_may_ask_for_an_anonymous_token(credentials: RegistryCredentials | None) -> None:
    server = TokenServer()

    async def elsewhere(request: web.Request) -> web.StreamResponse:
        answer = await server.answer(request)
        return web.Response(body=DATA) if answer.status == 200 and request.path == "/blob" else answer

    async with scripted_registry(elsewhere) as other:

        async def handler(request: web.Request) -> web.Response:
            if credentials and "Authorization" not in request.headers:
                return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
            raise web.HTTPTemporaryRedirect(f"http://{other.url}/blob")

        async with scripted_registry(handler) as script, remote(script, credentials=credentials) as opened:
            assert await body_of(opened) == DATA
            assert await body_of(opened) == DATA
            server.good = "revoked"
            assert await body_of(opened) == DATA
    assert server.issued == 2
    assert {request.method for request in other.requests} == {"GET"}
    assert set(other.header("X-Own")) == {None}
    assert set(other.header("Authorization")) == {None, "Bearer t1", "Bearer t2"}


async def test_a_redirect_target_that_takes_no_token_is_given_up() -> None:
    server = TokenServer()

    async def elsewhere(request: web.Request) -> web.StreamResponse:
        answer = await server.answer(request)
        server.good = "another"
        return answer

    async with scripted_registry(elsewhere) as other:

        async def handler(request: web.Request) -> web.Response:
            raise web.HTTPTemporaryRedirect(f"http://{other.url}/blob")

        async with scripted_registry(handler) as script, remote(script) as opened:
            with pytest.raises(PermissionDenied, match=r"authorization failed \(invalid_token\)"):
                await body_of(opened)


async def test_redirects_without_end_are_given_up() -> None:
    async def handler(request: web.Request) -> web.Response:
        raise web.HTTPFound(request.path)

    async with scripted_registry(handler) as script, remote(script) as opened:
        with pytest.raises(Unavailable, match="more than 10 redirects"):
            await resolve(opened)


async def test_an_anonymous_token_is_fetched_by_get() -> None:
    async with scripted_registry(lambda r: answer(r)) as script, remote(script) as opened:
        answer = token_registry(lambda: script.url, accept="good")
        await resolve(opened)
    token = script.requests[1]
    assert (token.method, token.query.getall("scope")) == ("GET", ["repository:a/b:pull"])
    assert script.header("Authorization")[-1] == "Bearer good"


async def test_credentials_are_posted_to_the_token_server() -> None:
    forms: list[dict[str, object]] = []

    async with scripted_registry(lambda r: answer(r)) as script:
        inner = token_registry(lambda: script.url, accept="good")

        async def answer(request: web.Request) -> web.StreamResponse:
            if request.method == "POST":
                forms.append(dict(await request.post()))
            return await inner(request)

        async with remote(script, credentials=RegistryCredentials("u", "p")) as opened:
            await resolve(opened)
    assert forms == [
        {
            "service": "s", "scope": "repository:a/b:pull", "client_id": "containerd-client",
            "grant_type": "password", "username": "u", "password": "p",
        }
    ]  # fmt: skip


async def test_a_token_that_does_not_help_ends_in_a_clear_refusal() -> None:
    async with scripted_registry(lambda r: answer(r)) as script, remote(script) as opened:
        answer = token_registry(lambda: script.url, accept="bad")
        with pytest.raises(PermissionDenied, match="pull access denied for a/b"):
            await resolve(opened)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"token":"a b"}', b'{"token":5}', b"{" * 100])
async def test_a_token_server_that_talks_nonsense_is_named(body: bytes) -> None:
    async def handler(request: web.Request) -> web.Response:
        if request.path == "/token":
            return web.Response(body=body)
        challenge = f'Bearer realm="http://{request.host}/token"'
        return web.Response(status=401, headers={"WWW-Authenticate": challenge})

    async with scripted_registry(handler) as script, remote(script) as opened:
        with pytest.raises(Unavailable, match="without a token"):
            await resolve(opened)


class TokenServer:
    """A registry with tokens that the test revokes, and a token server at `/token` whose answer the test writes."""

    def __init__(self) -> None:
        self.issued = 0
        self.good = ""
        self.fields: dict[str, object] = {}
        self.status = 200

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/token":
            self.issued += 1
            self.good = f"t{self.issued}"
            return web.json_response({"token": self.good, **self.fields}, status=self.status)
        if request.headers.get("Authorization") != f"Bearer {self.good}":
            challenge = f'Bearer realm="http://{request.host}/token",error="invalid_token"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        return manifest(request)


async def test_a_token_that_was_refused_is_renewed() -> None:
    server = TokenServer()
    async with scripted_registry(server.answer) as script, remote(script) as opened:
        await resolve(opened)
        server.good = "revoked"
        await resolve(opened)
        server.good = "revoked again"
        assert (await resolve(opened)).digest == MANIFEST_DIGEST
    assert server.issued == 3


async def test_requests_at_once_renew_a_token_once() -> None:
    server = TokenServer()
    async with scripted_registry(server.answer) as script, remote(script) as opened:
        await resolve(opened)
        server.good = "revoked"
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(resolve, opened)
    assert server.issued == 2


@pytest.mark.parametrize(
    ("fields", "after_s", "issued"),
    [
        ({"expires_in": 10}, 8.0, 1),
        ({"expires_in": 10}, 10.0, 2),
        ({"expires_in": 1000}, 900.0, 1),
        ({}, 50.0, 1),
        ({}, 60.0, 2),
        ({"expires_in": 0}, 50.0, 1),
        ({"expires_in": "soon"}, 60.0, 2),
    ],
)
async def test_the_life_of_a_token_is_believed(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, object], after_s: float, issued: int
) -> None:
    now = 1000.0
    monkeypatch.setattr("aiocontainerd.distribution.auth.time.monotonic", lambda: now)
    server = TokenServer()
    server.fields = fields
    async with scripted_registry(server.answer) as script, remote(script) as opened:
        await resolve(opened)
        now += after_s
        await resolve(opened)
    assert server.issued == issued
    assert len([asked for asked in script.asked if "token" not in asked]) == 3, "only the first request was refused"


@pytest.mark.parametrize("status", [200, 201, 203])
async def test_any_success_of_a_token_server_counts(status: int) -> None:
    server = TokenServer()
    server.status = status
    async with scripted_registry(server.answer) as script, remote(script) as opened:
        await resolve(opened)


@pytest.mark.parametrize(
    ("status", "error", "hint"),
    [
        (403, PermissionDenied, "; check the credentials (--user)"),
        (429, ResourceExhausted, ": it limits how often it is asked"),
        (502, Unavailable, ""),
    ],
)
async def test_a_token_server_that_fails_is_named(status: int, error: type[ContainerdError], hint: str) -> None:
    server = TokenServer()
    server.status = status
    async with scripted_registry(server.answer) as script, remote(script) as opened:
        with pytest.raises(error, match=rf"token server http://.*/token answered {status}{re.escape(hint)}$"):
            await resolve(opened)


@pytest.mark.parametrize(
    "body", ['{"token":"good"}\njunk', '\r\n {"Token":"good","Expires_In":9}', '{"ACCESS_TOKEN":"good"}']
)
async def test_a_token_is_read_as_gos_decoder_reads_it(body: str) -> None:
    async def handler(request: web.Request) -> web.Response:
        if request.path == "/token":
            return web.Response(text=body)
        if request.headers.get("Authorization") != "Bearer good":
            challenge = f'Bearer realm="http://{request.host}/token"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        return manifest(request)

    async with scripted_registry(handler) as script, remote(script) as opened:
        assert (await resolve(opened)).digest == MANIFEST_DIGEST


@pytest.mark.parametrize("credentials", [None, RegistryCredentials("u", "p")])
async def test_a_token_server_may_redirect_only_who_has_no_credentials(credentials: RegistryCredentials | None) -> None:
    server = TokenServer()
    async with scripted_registry(server.answer) as elsewhere:

        async def handler(request: web.Request) -> web.StreamResponse:
            if request.path == "/token":
                raise web.HTTPTemporaryRedirect(f"http://{elsewhere.url}/token")
            return await server.answer(request)

        async with scripted_registry(handler) as script, remote(script, credentials=credentials) as opened:
            if credentials is None:
                await resolve(opened)
                assert elsewhere.header("X-Own") == [None]
            else:
                with pytest.raises(PermissionDenied, match="answered 307"):
                    await resolve(opened)
                assert elsewhere.requests == []


async def test_a_token_server_that_is_not_there_is_named() -> None:
    async with scripted_registry(lambda r: gone(r)) as other:

        async def gone(request: web.Request) -> web.Response:
            return web.Response()

    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=401, headers={"WWW-Authenticate": f'Bearer realm="http://{other.url}/token"'})

    async with scripted_registry(handler) as script, remote(script) as opened:
        with pytest.raises(Unavailable, match="token server http://"):
            await resolve(opened)


async def test_basic_without_credentials_says_so() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})

    async with scripted_registry(handler) as script, remote(script) as opened:
        with pytest.raises(PermissionDenied, match="no basic auth credentials"):
            await resolve(opened)


async def test_a_loopback_registry_without_tls_is_found_by_falling_back() -> None:
    async def handler(request: web.Request) -> web.Response:
        return manifest(request)

    async with scripted_registry(handler) as script, remote(script, plain_http=False) as opened:
        assert (await resolve(opened)).digest == MANIFEST_DIGEST


@pytest.fixture
def own_certificate(tmp_path: Path) -> ssl.SSLContext:
    """Return a TLS context with a certificate that only its owner trusts."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command, *names, *files], check=True, capture_output=True)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    return tls


@pytest.mark.parametrize(("skip_verify", "warnings"), [(False, 1), (True, 0)])
async def test_a_certificate_of_this_machine_that_is_not_trusted_is_told(
    own_certificate: ssl.SSLContext, caplog: pytest.LogCaptureFixture, skip_verify: bool, warnings: int
) -> None:
    async def handler(request: web.Request) -> web.Response:
        return manifest(request)

    async with (
        scripted_registry(handler, own_certificate) as script,
        remote(script, plain_http=False, skip_verify=skip_verify) as opened,
    ):
        assert (await resolve(opened)).digest == MANIFEST_DIGEST
        await resolve(opened)
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == warnings
    assert all(f"the certificate of {script.url} is not trusted" in text for text in told)


async def test_a_certificate_of_elsewhere_that_is_not_trusted_is_refused(
    own_certificate: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def handler(request: web.Request) -> web.Response:
        return manifest(request)

    monkeypatch.setattr("aiocontainerd.distribution.hosts.is_loopback", lambda _host: False)
    async with (
        scripted_registry(handler, own_certificate) as script,
        remote(script, plain_http=False) as opened,
    ):
        with pytest.raises(Unavailable, match="certificate verify failed"):
            await resolve(opened)
    assert script.requests == []


async def test_a_registry_that_is_not_there_is_unavailable() -> None:
    async def handler(request: web.Request) -> web.Response:
        return manifest(request)

    async with scripted_registry(handler) as script:
        gone = script.url
    script.url = gone
    async with remote(script) as opened:
        with pytest.raises(ContainerdError, match="HEAD http://"):
            await resolve(opened)


async def test_attempts_are_limited_by_the_options() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=429)

    async with scripted_registry(handler) as script, remote(script, attempts=3) as opened:
        with pytest.raises(ResourceExhausted):
            await resolve(opened)
    assert len(script.requests) == 3


async def test_a_busy_registry_is_left_alone_for_the_pause_of_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("aiocontainerd.distribution.requests.anyio.sleep", sleep)

    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=(429, 503, 200)[len(script.requests) - 1])

    pauses: dict[str, Any] = {"busy_pause_s": 7.0, "retry_pause_s": 3.0}
    async with (
        scripted_registry(handler) as script,
        remote(script, **pauses) as opened,
        opened.request("GET", "x"),
    ):
        pass
    assert slept == [7.0, 3.0]


async def test_a_silent_registry_is_given_up_after_the_time_of_the_options() -> None:
    async def handler(request: web.Request) -> web.Response:
        await anyio.sleep_forever()
        return web.Response()

    async with scripted_registry(handler) as script, remote(script, read_timeout_s=0.05, attempts=2) as opened:
        with anyio.fail_after(5), pytest.raises(Unavailable, match=r"HEAD http://.*: .*[Tt]ime"):
            await resolve(opened)
    assert len(script.requests) == 2


async def test_connecting_is_limited_by_the_options() -> None:
    async with RegistryClient(reference.parse("localhost:1/a:1"), RegistryOptions(connect_timeout_s=3.5)) as opened:
        assert opened.transport.timeout.sock_connect == 3.5
