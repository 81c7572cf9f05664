"""The program `containerd-shim-aio-v2`. Imports every room but `fork`, which imports it.

cli         the command line: start, delete, serve, info
bootstrap   what the daemon says at a start, and the socket where the shim listens
serve       the life of a shim, from its socket to the end of its last container
own_socket  the file of its socket, which goes before the shim says that it ends
cleanup     the delete action
info        the info action
"""
