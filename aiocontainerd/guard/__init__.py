"""Guard the calls between plugins: deadline, circuit breaker, counters; and watch the event loop.

How a plugin that hangs is cut off: other plugins get its instance inside a guard (`dispatcher`). The guard runs each
method as a call in a task of its own. At the deadline (`deadlines`) the call is cancelled. If it ignores that, the
caller is answered and the call is left behind (`call`; for streams, `stream`). Which deadline a method has stands on
the Protocol of the plugin's kind, and `contract` reads it. `health` keeps what was counted, `watchdog` names the plugin
that blocks the loop, `owners` says which plugin a piece of code or a task belongs to, `diagnosis` puts an exception in
one line, `stacks` finds the line that a process hung or crashed at.

Imports `interfaces` and the words. Imported by `host` and `daemon`; `serve` reads `health` and `owners`.
"""
