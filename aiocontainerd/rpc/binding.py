"""From service objects to callable methods, by the path `/package.Service/Method`.

The API's own services are known by their names. Any other service brings its `methods` (interfaces/rpc_service.py).
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from aiocontainerd.api.names import python_name
from aiocontainerd.api.services import SERVICES
from aiocontainerd.wire import codec

if TYPE_CHECKING:
    import betterproto2

    from aiocontainerd.interfaces.rpc_service import Method, Service


class BoundMethod(msgspec.Struct, frozen=True):
    """A method of a service object. `call` is None if the object lacks the method.

    `open_ended` tells that it waits for something outside the daemon. `classes` are the classes of requests and
    responses, if the service brought them; else they are looked up by name.
    """

    service: str
    method: str
    request_type: str
    response_type: str
    client_streaming: bool
    server_streaming: bool
    call: Callable[[Any], Any] | None
    open_ended: bool = False
    classes: tuple[type[betterproto2.Message], type[betterproto2.Message]] | None = None

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
        """Return the class of its requests; the first use imports the package of the message."""
        return self.classes[0] if self.classes else codec.resolve(self.request_type)

    @property
    def response_class(self) -> type[betterproto2.Message]:
        """Return the class of its responses."""
        return self.classes[1] if self.classes else codec.resolve(self.response_type)


def bind(service: Service) -> dict[str, BoundMethod]:
    """Return every method of the service by path, in the order of its definition.

    Raises ValueError if `service_name` names no service of the API and the service brings no methods.
    """
    name = getattr(service, "service_name", None)
    if not isinstance(name, str) or not name:
        raise ValueError(f"{type(service).__name__} has no service_name; write it as package.v1.Service")
    if name not in SERVICES:
        _check_own(service)
    _check_forms(service)
    open_ended = getattr(service, "open_ended", ())
    methods = (
        msgspec.structs.replace(one, call=_method(service, one.method), open_ended=one.method in open_ended)
        for one in signatures(service).values()
    )
    return {method.path: method for method in methods}


def _check_own(service: Service) -> None:
    """Raise ValueError for a method that a service of its own names and does not have."""
    for method in signatures(service):
        if _method(service, method) is None:
            python = python_name(method)
            near = difflib.get_close_matches(python, dir(service), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{_class_name(service)} has no method {python}, which `methods` names as {method}{hint}")


def _check_forms(service: Service) -> None:
    """Raise ValueError for a method that cannot be called as its definition says."""
    for method, definition in signatures(service).items():
        call = _method(service, method)
        problem = "" if call is None else _wrong_form(definition, call)
        if problem:
            raise ValueError(f"{_class_name(service)}.{python_name(method)} {problem}")


def _wrong_form(definition: BoundMethod, call: Any) -> str:
    if not callable(call):
        return f"is {type(call).__name__}, not a method"
    if not (inspect.isfunction(call) or inspect.ismethod(call)):
        return ""
    try:
        inspect.signature(call).bind(None)
    except TypeError as error:
        name = "requests" if definition.client_streaming else "request"
        return f"takes ({', '.join(inspect.signature(call).parameters)}), and is called with ({name}): {error}"
    if definition.server_streaming and inspect.iscoroutinefunction(call):
        return "is awaited, not iterated: yield its messages"
    if not definition.server_streaming and inspect.isasyncgenfunction(call):
        return "yields; return one message, or define it with server_streams=True"
    returned = str(inspect.get_annotations(inspect.unwrap(getattr(call, "__func__", call))).get("return", ""))
    if not definition.streaming and not inspect.iscoroutinefunction(call) and "Awaitable" not in returned:
        return f"is not async; write `async def {python_name(definition.method)}`"
    return ""


def signatures(service: Service | type[Service]) -> dict[str, BoundMethod]:
    """Return the methods of a service by name, without `call`. Raises ValueError as `bind`."""
    name = service.service_name
    if name in SERVICES:
        return {method: BoundMethod(name, method, *types, call=None) for method, types in SERVICES[name].items()}
    own: Mapping[str, Method] | None = getattr(service, "methods", None)
    if not own:
        raise ValueError(
            f"{_class_name(service)}.service_name is {name!r}, which is no service of the API; "
            "a service of another API has its methods in `methods`"
        )
    if not isinstance(own, Mapping):
        raise ValueError(f"{_class_name(service)}.methods is {type(own).__name__}; write {{name: Method(...)}}")
    return {method: _own(name, method, definition) for method, definition in own.items()}


def _own(service: str, method: str, definition: Method) -> BoundMethod:
    for side in ("request", "response"):
        found = getattr(definition, side, None)
        if not hasattr(found, "_betterproto"):
            raise ValueError(
                f"`methods` has {definition!r} for {method}; write Method(Request, Response) with messages"
            )
    return BoundMethod(
        service,
        method,
        definition.request.__name__,
        definition.response.__name__,
        definition.client_streams,
        definition.server_streams,
        call=None,
        classes=(definition.request, definition.response),
    )


def _method(service: Service, method: str) -> Callable[[Any], Any] | None:
    return getattr(service, python_name(method), None)


def _class_name(service: Any) -> str:
    found: str = (service if isinstance(service, type) else type(service)).__name__
    return found


def bind_all(services: Iterable[Service]) -> dict[str, BoundMethod]:
    """Return the methods of several services by path. Raises ValueError if two objects serve the same service."""
    bound: dict[str, BoundMethod] = {}
    for service in services:
        methods = bind(service)
        taken = bound.keys() & methods.keys()
        if taken:
            raise ValueError(f"two objects serve {service.service_name}")
        bound.update(methods)
    return bound


def signature(service: str | type[Service], method: str) -> BoundMethod:
    """Return a method as a client knows it: of an API service by name, or of a service class that brings its methods.

    Raises ValueError for an unknown method.
    """
    try:
        if isinstance(service, str):
            return BoundMethod(service, method, *SERVICES[service][method], call=None)
        return signatures(service)[method]
    except KeyError:
        name = service if isinstance(service, str) else service.service_name
        raise ValueError(f"the API has no method {name}/{method}") from None
