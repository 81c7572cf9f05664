"""A gRPC service with an API of its own: `service.py` is the service, `plugin.py` registers it, `gen` is generated."""
