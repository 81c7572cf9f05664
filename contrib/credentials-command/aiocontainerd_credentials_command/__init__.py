"""Registry credentials from commands: `plugin.py` chooses the command and keeps answers, `helper.py` asks it."""
