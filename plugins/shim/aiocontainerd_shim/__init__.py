"""The shim of aiocontainerd: runs OCI runtimes for one pod or container, and outlives the daemon."""
