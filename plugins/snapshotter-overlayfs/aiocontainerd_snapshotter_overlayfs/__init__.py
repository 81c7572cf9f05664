"""The overlayfs snapshotter: a snapshot is a directory of changes, stacked by the kernel on those of its parents."""
