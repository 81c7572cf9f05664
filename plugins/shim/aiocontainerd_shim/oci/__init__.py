"""The OCI runtime. Imports `children`; `task`, `program` and `fork` import it.

choice      decides crun or runc: options, then config, then whichever works on this host and takes the spec
spec        the version of a spec, and what it needs
versions    the highest version of a spec that a runtime takes
tries       where and how long a runtime is tried
runtime     command lines of every verb, and what failures say
criu        what CRIU has to be told at checkpoint and restore, and what it says
"""
