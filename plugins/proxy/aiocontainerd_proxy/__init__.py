"""Plugins that run beside the daemon: behind a socket, or in a process that the daemon keeps.

plugin.py       registration: `[proxy_plugins]` and `isolation = "process"`
proxies.py      opens the plugin of a `[proxy_plugins]` table
isolated.py     opens a plugin that has a process of its own
peer.py         asks what is behind a socket: capabilities, exports, namespaces
link.py         connects, reconnects, and knows the state of the connection
connection.py   calls over a link: namespace, lease, deadline, errors that name the plugin
snapshotter.py  the Snapshotter that others call
content.py      the ContentStore that others call
ownership.py    labels that tell our objects from those of others in a peer that is a whole daemon
child.py        command line, config file, directories and output of a process
supervisor.py   starts a process, waits until it serves, starts it again when it ends
backoff.py      pauses between tries
limits.py       the keys of `[timeouts]` that hold for one plugin
cgroups.py      the cgroup of a process
"""
