"""The task runtime: starts runtime v2 shims, calls them, and outlives their deaths; they outlive the daemon.

Imports the core only. Modules, from the lowest to the highest:

bootstrap   what a shim is told when it starts, and what it answers
bundle      the directories by which a shim and its container are found again
resolve     from the name of a runtime to the program of its shim
binary      shim actions by executing the program
deadlines   the limits of calls to shims: keys of `[timeouts]`
waits       one wait in the shim per process, for any number of clients
moves       makes the kernel's lock for moving processes between cgroups ready
leftovers   processes of a container without a usable bundle, by its cgroup
strays      shims to which nothing on disk leads
traces      directories that an OCI runtime makes for a namespace and never removes
shim_log    what shims log, into the daemon's log
shim        the connection to a shim: calls within their limits
known       the state of an init as far as the daemon knows it without waking a shim
task        a task and its processes behind a shim
manager     starts, connects to and cleans up single shims
table       which tasks exist, and which ids are taken
runtime     creates, finds and ends tasks; cleans up after dead shims
recovery    finds the shims of the last daemon
plugin      the registrations
"""
