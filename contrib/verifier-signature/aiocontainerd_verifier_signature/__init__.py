"""Images must be signed: `plugin.py` judges, `signatures.py` reads keys and signatures."""
