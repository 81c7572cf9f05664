"""Convert between domain records and messages of the API, and between messages and bytes.

The only room that knows both records and messages. `<record>_to_wire` returns the message of a record and
`<record>_from_wire` the record of a message; each stands in the module of its subject. A message that leaves out a
field gives a record with that field's default, so a service that needs the field checks the message first.
Imports `api`, the records of `interfaces` and `oci`, and the words. Imported by `rpc`, `serve`, `client` and plugins.
"""
