"""containerd's own services over domain objects, and the program that serves a plugin through them.

The daemon serves its stores and `aiocontainerd-plugin serve` a single plugin with the same classes: one conversion
between messages and records, the same codes and texts.
"""
