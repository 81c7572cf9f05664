"""Contract suites and fakes for authors of plugins, as a pytest plugin.

Suites of the contracts, one for each kind: content.py, differ.py, event_sink.py, metadata.py, snapshotter.py,
verifier.py

contract.py       what all suites share
faults.py         kills, full disks, hanging disks: scenarios.py has the operations, steps.py counts the steps of a
                  plugin, fault_child.py is the process that is killed
target.py         what a suite tests: plugin_bench.py opens plugins in this process, socket_bench.py others
deviations.py     where known runtimes differ from a contract
pytest_plugin.py  options and fixtures
blocking.py       the rule that nothing blocks an event loop

Helpers of tests

fakes.py          backends in memory
fake_records.py   the records of a metadata store in memory
stand_ins.py      plugins in memory for each kind that a plugin may require
host.py           a plugin with a daemon around it
images.py         images made in a test
image_stores.py   the stores of a daemon, on its plugins and over a connection
registry.py       a registry whose answers a test writes
processes.py      processes that end

Imports the core, and no plugin. Only tests import it.
"""
