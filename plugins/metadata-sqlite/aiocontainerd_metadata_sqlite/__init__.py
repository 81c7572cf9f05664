"""The metadata store in SQLite: one writer, group commit, garbage collection by a recursive query."""
