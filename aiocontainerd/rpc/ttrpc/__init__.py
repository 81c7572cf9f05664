"""ttrpc: the small RPC protocol between the daemon and its shims (facts/runtime 1)."""
