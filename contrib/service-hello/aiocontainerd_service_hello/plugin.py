"""Registration of the greeting service: `[plugins."io.containerd.grpc.v1.hello"]`."""

from __future__ import annotations

from aiocontainerd.plugin import InitContext, PluginConfig, kinds, register


class Config(PluginConfig, frozen=True):
    """`greeting` comes before the name."""

    greeting: str = "Hello"


@register(kinds.GRPC, "hello", config=Config)
async def hello(context: InitContext[Config]) -> object:
    """Return the service. Its generated messages are imported when a daemon starts it, not when it is registered."""
    from aiocontainerd_service_hello.service import Hello

    return Hello(context.config.greeting)
