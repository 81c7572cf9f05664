"""The program `aiocontainerd-plugin`: run a plugin in a process of its own, behind a socket.

main.py    flags and exit status
target.py  which plugins of a module are served
serve.py   the host of one plugin, and its socket
"""
