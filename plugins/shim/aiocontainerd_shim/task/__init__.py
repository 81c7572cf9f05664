"""The task service: containers, their processes, the OCI runtime behind them, and how they end."""
