"""The OCI runtime. Imports `children`; `task`, `program` and `fork` import it.

choice      decides crun or runc: options, then config, then whichever works on this host
runtime     command lines of every verb, and what failures say
criu        what CRIU has to be told at checkpoint and restore, and what it says
"""
