"""The garbage collection scheduler (facts/core 10).

plan.py       decides when to collect, from counters and durations
scheduler.py  the task that waits and collects
plugin.py     registration, config
"""
