"""The fork server, which forks ready shims, and the daemon's side of it."""
