"""Run the plugins of one daemon: find, order, start and stop them, and keep what became of each.

Imports `guard`, `interfaces`, `config` and the words. Imported by `daemon`, `cli`, `testing` and `plugin`.
"""
