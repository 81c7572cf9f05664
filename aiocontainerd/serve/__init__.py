"""containerd's gRPC services over the interfaces: a class for each service, which only converts messages and records.

The daemon serves its stores with these classes, and `aiocontainerd-plugin serve` a single plugin, so that both answer
with the same codes and texts. Imports `interfaces`, `wire` and the words. Imported by `plugins/services` and `cli`.
"""
