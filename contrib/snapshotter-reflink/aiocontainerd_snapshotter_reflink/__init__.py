"""A snapshotter of copy-on-write file clones, in forty lines: `plugin.py` is the snapshotter, `clone.py` the clones."""
