"""Service objects to callable methods: what a front end needs to serve `/package.Service/Method`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from aiocontainerd.api.services import SERVICES
from aiocontainerd.rpc import codec

if TYPE_CHECKING:
    import betterproto2

    from aiocontainerd.interfaces.service import Service

_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class BoundMethod(msgspec.Struct, frozen=True):
    """A method of a service object. `call` is None where the object has no such method."""

    service: str
    method: str
    request_type: str
    response_type: str
    client_streaming: bool
    server_streaming: bool
    call: Callable[[Any], Any] | None

    @property
    def path(self) -> str:
        """`/package.Service/Method`."""
        return f"/{self.service}/{self.method}"

    @property
    def streaming(self) -> bool:
        """Whether either side may send several messages."""
        return self.client_streaming or self.server_streaming

    @property
    def request_class(self) -> type[betterproto2.Message]:
        """The class of its requests; the first use imports the package of the message."""
        return codec.resolve(self.request_type)

    @property
    def response_class(self) -> type[betterproto2.Message]:
        """The class of its responses."""
        return codec.resolve(self.response_type)


def python_name(method: str) -> str:
    """The Python name of a method of the API: `CloseIO` is `close_io`."""
    return _WORD_START.sub("_", method).lower()


def bind(service: Service) -> dict[str, BoundMethod]:
    """Every method of the service by path, in the order of its definition.

    Raises ValueError where `service_name` names no service of the API.
    """
    name = service.service_name
    if name not in SERVICES:
        raise ValueError(f"{type(service).__name__}.service_name is {name!r}, which is no service of the API")
    methods = (
        BoundMethod(name, method, *signature, call=getattr(service, python_name(method), None))
        for method, signature in SERVICES[name].items()
    )
    return {method.path: method for method in methods}


def bind_all(services: Iterable[Service]) -> dict[str, BoundMethod]:
    """The methods of several services by path. Raises ValueError where two objects serve the same service."""
    bound: dict[str, BoundMethod] = {}
    for service in services:
        methods = bind(service)
        taken = bound.keys() & methods.keys()
        if taken:
            raise ValueError(f"two objects serve {service.service_name}")
        bound.update(methods)
    return bound


def signature(service: str, method: str) -> BoundMethod:
    """A method of the API as a client knows it. Raises ValueError where the API has none of that name."""
    try:
        return BoundMethod(service, method, *SERVICES[service][method], call=None)
    except KeyError:
        raise ValueError(f"the API has no method {service}/{method}") from None
