"""The native snapshotter: every snapshot is a full copy of its parent. Works on any file system.

Read `snapshotter.py` first: it is the smallest complete example of a plugin. `plugin.py` registers it.
"""
