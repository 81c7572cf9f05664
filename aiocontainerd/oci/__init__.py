"""OCI image, runtime specification, references and platforms: records and pure functions."""
