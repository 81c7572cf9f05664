"""The programs: `aiocontainerd` (the daemon) and `actr` (the client)."""
