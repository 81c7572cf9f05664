"""The kernel: mounts, id-mapped mounts, loop devices, cgroups, pidfds, programs and the service manager.

A function makes one system call or a short sequence of them; a failure is an OSError that names the path. The modules
import `errors` and each other, nothing else of the package. Every room may import this one.

- `mount`, `mount_plan`, `mount_options`, `mounter`, `mount_calls`, `mountinfo`, `idmap`, `loop`: mounts, from options
  as text to system calls
- `cgroup`, `pidfd`, `prctl`, `programs`: processes and where they run
- `openat2`: opening a path that stays inside a root
- `inotify`, `systemd`: changes of files, and the service manager
"""
