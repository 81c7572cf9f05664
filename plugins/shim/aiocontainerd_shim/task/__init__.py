"""Containers and their processes. Imports `children`, `oci`, `cgroups`, `io`; `rest`, `program` and `fork` import it.

service     the task service, `containerd.task.v3.Task`
shapes      the Go types of what comes as JSON
messages    requests to values, values to responses
operations  work that runs to its end, whatever becomes of the caller
container   a container: its init, its execs, its cgroup
init        the init: what the OCI runtime does with a whole container
process     what init and exec have in common; the exec
states      the states of a process, and what each refuses
exits       an exit: the status goes to disk before its event is published
records     what a bundle keeps on disk about its container
publisher   events to the daemon, in their order
background  tasks beside the calls
"""
