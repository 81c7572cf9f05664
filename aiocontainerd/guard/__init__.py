"""Guard the calls between plugins: deadline, circuit breaker, counters; and watch the event loop.

How a plugin that hangs is cut off: other plugins get its instance inside a guard (`dispatcher`), which runs each
method as a call in a task of its own; at the deadline (`deadlines`) the call is cancelled, and if it ignores that, the
caller is answered and the call is left behind (`call`, for streams `stream`). Which deadline a method has stands on
the Protocol of the plugin's kind (`contract` reads it). Imports `interfaces` and the words. Imported by `host`.
"""
