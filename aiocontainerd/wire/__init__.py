"""Convert between domain records and messages of the API, and between messages and bytes.

The only room that knows both records and messages. Imports `api`, the records of `interfaces` and `oci`, and the words.
Imported by `rpc`, `serve` and `client`.
"""
