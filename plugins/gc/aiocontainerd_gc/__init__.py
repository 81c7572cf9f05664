"""The garbage collection scheduler: when to collect (facts/core 10)."""
