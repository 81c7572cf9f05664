"""One unary call to a gRPC socket by grpcio and protobuf, a stack that is not ours; messages are JSON.

    python grpcio_call.py STUBS SOCKET NAMESPACE PACKAGE.Service/Method < request > response

STUBS holds the modules that protoc made of our .proto files. A status that is not OK goes to standard error as its code
and its details, and the exit status is 1.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

grpc: Any = importlib.import_module("grpc")
"""It has no type stubs, and neither has what it generates."""
json_format: Any = importlib.import_module("google.protobuf.json_format")

DEADLINE_S = 60.0


def method(stubs: str, path: str) -> tuple[Any, Any]:
    """Return the class of a method's request and the method's name in the client stub of its service's modules."""
    sys.path.insert(0, stubs)
    service, name = path.split("/")
    package, service_name = service.rsplit(".", 1)
    module = f"{package}.{package.split('.')[-2]}_pb2"
    messages: Any = importlib.import_module(module)
    described = messages.DESCRIPTOR.services_by_name[service_name].methods_by_name[name]
    stub: Any = getattr(importlib.import_module(f"{module}_grpc"), f"{service_name}Stub")
    return getattr(messages, described.input_type.name), lambda channel: getattr(stub(channel), name)


def main(stubs: str, socket: str, namespace: str, path: str) -> None:
    """Make the call and print its answer."""
    request_type, bound = method(stubs, path)
    request = json_format.Parse(sys.stdin.read(), request_type())
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        call = bound(channel)
        try:
            answer = call(request, metadata=[("containerd-namespace", namespace)], timeout=DEADLINE_S)
        except grpc.RpcError as error:
            sys.exit(f"{error.code().name}: {error.details()}")
    print(json_format.MessageToJson(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
