"""A shim at rest: a process that only waits, and the workers that it forks when there is work."""
