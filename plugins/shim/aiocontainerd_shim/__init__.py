"""The shim of aiocontainerd: runs OCI runtimes for one pod or container, and outlives the daemon.

Rooms, from the lowest to the highest. A room imports only from rooms above it in this list:

    children    processes that are or become children of this one: started, reaped, executed from sealed copies
    oci         the OCI runtime: crun or runc, its command lines, CRIU
    cgroups     cgroups: found, measured, watched for OOM kills, joined
    io          streams of processes: pipes, files, terminals, loggers
    task        containers and their processes; the task service; exits; events
    rest        a shim at rest: remember, hand over, go on
    program     the program `containerd-shim-aio-v2`: its actions, and the life of a shim
    fork        the fork server, and the launcher in the daemon that uses it

`plugin.py` is the registration of the launcher.
"""
