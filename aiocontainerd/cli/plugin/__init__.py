"""`aiocontainerd-plugin`: a plugin in a process of its own, behind a socket."""
