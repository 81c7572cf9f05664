"""TLS of the TCP listener."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl


def server_context(certificate: str, key: str, client_ca: str = "") -> ssl.SSLContext | None:
    """Return the TLS setup of a listener, None without certificate and key. The arguments are paths.

    With `client_ca`, clients must show a certificate that it signed. Raises OSError for files that cannot be used.
    """
    if not certificate and not key:
        return None
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(certificate, key)
    if client_ca:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def has_common_name(transport: asyncio.BaseTransport, wanted: str) -> bool:
    """Return whether the certificate of the client carries the common name `wanted`."""
    certificate = transport.get_extra_info("peercert") or {}
    subject: Iterable[Iterable[tuple[str, str]]] = certificate.get("subject", ())
    return any(("commonName", wanted) in tuple(names) for names in subject)
