"""Start and stop the daemon: signals, reload, lock, dump, logs, and the plugins that are built in.

`run` has the order of start and stop; `servers` and `event_sinks` are the built-in plugins. Imports `host`, `rpc` and
everything below them, never `client`. Imported by `cli`.
"""
