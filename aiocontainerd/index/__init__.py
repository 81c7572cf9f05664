"""SQLite databases that are the index of data beside them: which data is theirs, and what to do when one is damaged.

The modules import `errors`, `sys` and each other. The room `snapshots` and the metadata plugin import them.

- `mark`: the identity of an index and how far it got, kept in a file beside the data
- `claim`: whether an index may delete data that it does not know
- `backup`: the newest copies of a database
- `pages`: whether the pages of a database fit together
- `reserve`: room on the disk with which a full one can be freed
- `read_only`: a database on a read-only file system, for reading
- `repair`: what an operator does to databases while no daemon runs
- `database`: recognise files of other programs and damaged ones, and say what to do
"""
