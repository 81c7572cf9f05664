"""Guard the calls between plugins: deadline, circuit breaker, counters; and watch the event loop.

A plugin's instance is given to others inside a guard (`dispatcher`), whose methods run as calls (`call`) under the
rules that stand on the methods of the kind's Protocol. Imports `interfaces` and the words. Imported by `host`.
"""
