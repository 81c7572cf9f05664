"""The local content store: blobs and ingests as files under one root, laid out as containerd's (facts/core 4)."""
