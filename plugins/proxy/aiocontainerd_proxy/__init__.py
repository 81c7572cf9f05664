"""Plugins that run beside the daemon: behind a socket, in a process that the daemon keeps, in a thread."""
