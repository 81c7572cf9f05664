"""The base class of snapshotters, with the tree of keys and the helpers that it stands on.

The modules import `errors`, `filters`, `labels`, `interfaces/snapshotter`, `sys/mount` and each other. The snapshotter
plugins import this room, and `plugin` hands its names on to authors.

- `base`: the class an author derives from
- `tree`, `claims`, `layer`: every key with its state in memory, calls about one key in turn, the record of a snapshot
- `store`: the records in SQLite
- `owned`: which layers the records may delete
- `disk`: make, list, measure and remove trees of files
"""
