"""Streams of processes. Imports the core only; `task` and `rest` import it.

stdio       streams without a terminal: the container gets the client's pipe, the file or the logger's pipe itself
console     terminals: the pty's master, and the pump between pty and pipes
relay       the stderr of a process until it says something: the OCI runtime's own words are not the container's
flow        a flow of bytes from one descriptor to another, by the event loop
fifos       the ends of named pipes that the shim holds
logger      logger programs
uri         where a stream goes, as Go reads a URI
"""
