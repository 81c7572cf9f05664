"""The overlayfs snapshotter: a snapshot is a directory of changes, stacked by the kernel on those of its parents.

snapshotter.py  how a layer is made, mounted, measured and removed
probe.py        tries what the kernel and the file system can do
plugin.py       registration, config
"""
