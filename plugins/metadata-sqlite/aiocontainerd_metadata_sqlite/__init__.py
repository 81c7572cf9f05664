"""The metadata store in SQLite: one writer, group commit, garbage collection by a recursive query.

plugin.py         registration, config
store.py          the MetadataStore that others call
session.py        what all parts of the store use: mutations, reads, events, backend numbers, pins of records
engine.py         the database: one writer thread, reader threads
cache.py          records that were read last, in memory
schema.py         tables and migrations
resources.py      rows that every kind of record has
references.py     from labels to edges of the garbage collector's graph
namespaces.py     containers.py  images.py  leases.py: the records of each kind
content.py        the content store of each namespace
ingests.py        an open ingest, and its commit
pins.py           blob files that a call relies on
snapshots.py      the snapshotter of each namespace
snapshot_rows.py  rows of snapshots
filtering.py      the fields that filters see
collect.py        garbage collection of records: mark and sweep
prune.py          garbage collection of backends: blobs, ingests and snapshots without a record
"""
