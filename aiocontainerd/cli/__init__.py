"""The programs: `aiocontainerd`, `actr` and `aiocontainerd-plugin`.

They parse flags, call the rooms below and print. They may import every room and no plugin; nothing imports them. Heavy
modules are imported when a command runs, so that `actr version` starts quickly.

- `daemon`: the program `aiocontainerd`
- `actr/`: the client, a module for each group of commands
- `plugin/`: `aiocontainerd-plugin`, a plugin in a process of its own
"""
