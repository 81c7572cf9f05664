"""Tasks behind runtime v2 shims: starting shims, calling them, outliving their deaths and the daemon's own."""
