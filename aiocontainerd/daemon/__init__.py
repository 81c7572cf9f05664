"""Run the daemon: the order of start and stop, signals, reload, and the plugins that are built in.

The room imports `host`, `rpc` and everything below them, never `client`. It is imported by `cli` and `testing`.

run.py              the daemon from start to exit, in order
surroundings.py     directories, old mounts, cgroup, oom score
serving.py          start and stop the servers; what must be there to serve
signals.py          SIGTERM, SIGINT, SIGHUP, SIGUSR1
service_manager.py  `READY=1` and `STOPPING=1`
reload.py           read the config again and follow it
wanted.py           which plugins a config asks for, and the steps from one config to another
outcomes.py         what the log says of the plugins after the start
disks.py            watch for the end of read-only file systems
lock.py             one daemon for each root directory
dump.py             stacks of tasks and threads
logs.py             formats of log records
plugin_output.py    what plugins print, under their names
errors.py           `StartError`
servers.py          built-in plugins: the event exchange, the gRPC and ttrpc servers
tls.py              TLS of the TCP listener
event_sinks.py      built-in plugin: a queue for each event sink
"""
