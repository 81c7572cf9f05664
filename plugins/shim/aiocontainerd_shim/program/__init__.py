"""The program `containerd-shim-aio-v2`: its actions, and the life of a shim."""
