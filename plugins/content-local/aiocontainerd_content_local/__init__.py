"""The local content store: blobs and ingests as files under one root, laid out as containerd's (facts/core 4).

store.py   the ContentStore that others call
reader.py  an open blob
writer.py  an open ingest, and the steps that make it a blob
layout.py  paths below the root, and how an ingest is recorded there
locks.py   one writer per ref
plugin.py  registration
"""
