"""containerd's API: the services behind the gRPC and ttrpc sockets.

`<subject>.py` is the logic of a subject on domain records, for other plugins to call; `<subject>_grpc.py` converts
between messages and records; `*_registration.py` makes plugins of them.
"""
