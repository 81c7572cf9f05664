"""What snapshotters are made of: the tree of keys, the base class for authors, measuring and removing of layers."""
