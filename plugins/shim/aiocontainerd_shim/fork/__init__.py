"""The fork server, which forks a ready shim within milliseconds. Imports every room; only `plugin.py` imports it.

launcher    the daemon's side: starts the server, asks it, does without it
protocol    requests and replies between the two
received    reads a request and its descriptor
server      the server's process
limits      its limits, which `[timeouts]` sets
child       a child of the server: a shim, or the clean-up after one
heap        its heap, prepared so that shims copy few pages
warm_up     work done once before the server serves, so that no shim does it again
"""
