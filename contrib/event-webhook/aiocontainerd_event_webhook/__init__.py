"""Events as JSON lines: `plugin.py` is the sink and its retries, `lines.py` makes lines, `targets.py` writes them."""
