"""A shim at rest: one process that only waits, and forks a worker when there is work.

Imports `task` and the rooms below it. `program` imports it and sees four names: `Rest` (how a shim serves),
`AlwaysAwake` (one process until the end), `Resident` (the shim that rests) and `Parts` (what `program` gives them).
Nobody else knows of rest: the parts of a shim only say whether they are `idle`.

interface    `Rest`, and the parts of a shim that are asked whether they are idle
awake        `AlwaysAwake`: never rests
resident     `Resident`: the process that stays, waits and forks workers
worker       `Worker`: serves, and hands over when idle
snapshot     from the objects of a shim to records and back
records      the records
descriptors  the list of descriptors beside the records, and what wakes the shim
channel      what passes between resident and worker
"""
