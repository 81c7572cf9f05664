"""The kernel: mounts, namespaces, pidfds, cgroup files. One system call a function; a failure names the path."""
