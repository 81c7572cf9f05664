"""Move images: resolve, fetch, unpack, import, and the configuration of registries.

Written against the Protocols of `interfaces`, so that the daemon and a client far away run the same code. Imports
`interfaces`, `oci` and the words. Imported by `client`, `cli` and plugins.
"""
