"""Move images: resolve, fetch, unpack, import, and the configuration of registries.

Written against the Protocols of `interfaces`, so that the daemon on its plugins and a client over a connection run the
same code: both make a `Stores`, and namespace and lease are those of `aiocontainerd.context`. Imports `interfaces`,
`oci` and the words. Imported by `client`, `cli` and plugins.

    stores          the stores of one daemon that all of this works on
    leases          the lease under which a block works
    blobs, images   what is common with blobs and image records, over any store
    pull            an image from a registry: resolve, fetch, label, unpack, name
    walk            from an image's target down to its layers, bounded
    unpack          the layers of an image as snapshots
    importing       images of an archive: `tar_stream` and `archive_files` read it, `docker_archive` is for what
                    `docker save` writes, `import_names` names the images, `documents` makes JSON
    legacy_config   manifests of old registries, mended
    inspect         size and platforms of an image
    resolve, fetch  a reference to its descriptor; the bytes of a blob
    requests, auth  requests to a registry, and its authentication
    transport       HTTP by the proxies of the environment (`proxies`), with redirects
    hosts           where and how to reach a registry
    spool           blobs as files
"""

from __future__ import annotations

from aiocontainerd.distribution.stores import Stores as Stores
