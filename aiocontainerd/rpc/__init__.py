"""gRPC and ttrpc: servers and clients of both, the HTTP/2 below our gRPC server, and how services become methods.

Imports `api`, `wire`, the Protocol of services, `sys` and the words. Imported by `daemon`, `client`, `cli` and plugins.
"""
