"""OCI images, runtime specs, references, platforms and users: records and pure functions.

The modules import `errors`, `typeurl`, each other, and `sys/openat2` where a file inside an image's root is read. Every
room above the words may import this one.

- `descriptor`, `image`: blobs by digest; index, manifest and config documents, strictly decoded
- `tar_header`, `tar_sparse`, `tar_reader`: the entries of layers and image archives, as Go reads them
- `zstd_frames`: whether a zstd stream ends where a frame does
- `reference`, `platform`: names of images, and which of an image's platforms suits a host
- `spec`, `spec_defaults`, `user`: the runtime spec of a container, and whose processes it runs
"""
