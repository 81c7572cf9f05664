"""Cgroups. Imports the core only; `task`, `rest`, `program` and `fork` import it.

cgroup      the cgroup of a container, found by a process in it
metrics_v1  its measurements on cgroup version 1
metrics_v2  its measurements on cgroup version 2
oom         tells of processes that were killed for want of memory
own         measures a container from outside its shim
placement   puts shims and the fork server into cgroups
"""
