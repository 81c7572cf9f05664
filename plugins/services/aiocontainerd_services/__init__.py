"""containerd's API: the services behind the gRPC and ttrpc sockets.

`<subject>.py` is what a service adds to the stores and runtimes behind it, for other plugins to call.
`*_registration.py` makes plugins of the services and of the adapters in `aiocontainerd.serve`.
"""
