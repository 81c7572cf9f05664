"""A container runtime daemon that speaks containerd's protocols, made of asyncio plugins."""

__version__ = "0.1.0"
