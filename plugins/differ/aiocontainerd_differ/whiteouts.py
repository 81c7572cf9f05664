"""Apply whiteouts, which hide what the layers below have (OCI image layer specification; facts/core 8).

`.wh.<name>` removes a sibling, `.wh..wh..opq` everything the layers below have in its directory. Applied to an
overlay's upper directory they become overlayfs' own marks; elsewhere the files are removed.
"""

from __future__ import annotations

import os
import stat

from aiocontainerd.oci.tar_header import Header, InvalidArchive, show
from aiocontainerd_differ.tree import Place, Tree, is_directory

PREFIX = b".wh."
OPAQUE = b".wh..wh..opq"
OVERLAY_OPAQUE = "trusted.overlay.opaque"


def hidden_name(base: bytes) -> bytes:
    """Return the name that a whiteout hides. Raise InvalidArchive if that is no child of its directory."""
    name = base[len(PREFIX) :]
    if name in (b"", b".", b".."):
        raise InvalidArchive(f"invalid whiteout name: {show(base)}")
    return name


class OverlayWhiteouts:
    """Marks in an overlay's upper directory."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def wrote(self, directory: Place, name: bytes) -> None:
        """Do nothing: the upper directory holds this layer only."""

    def opaque(self, directory: Place) -> None:
        os.setxattr(directory.fd, OVERLAY_OPAQUE, b"y")

    def hide(self, directory: Place, name: bytes, header: Header) -> None:
        self._tree.remove(directory, name)
        directory = self._tree.directory(directory.path)
        os.mknod(name, stat.S_IFCHR, 0, dir_fd=directory.fd)
        os.chown(name, header.uid, header.gid, dir_fd=directory.fd, follow_symlinks=False)


class RemovingWhiteouts:
    """Removal from a tree that holds the layers below too."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._kept: set[bytes] = set()
        self._emptied: set[bytes] = set()
        """Directories that have nothing of the layers below any more: a mark that is repeated costs no walk."""

    def wrote(self, directory: Place, name: bytes) -> None:
        """Keep a path and the directories it is in when an opaque mark comes, before or after it.

        No layer below has anything in a directory that this layer made, so nothing in it needs to be remembered.
        """
        if directory.new:
            return
        path = directory.path + b"/" + name if directory.path else name
        while path and path not in self._kept:
            self._kept.add(path)
            path = path.rpartition(b"/")[0]

    def opaque(self, directory: Place) -> None:
        pending = [directory.path]
        while pending:
            path = pending.pop()
            place = self._tree.directory(path)
            if place.new or path in self._emptied:
                continue
            self._emptied.add(path)
            for entry in os.listdir(place.fd):
                name = os.fsencode(entry)
                below = path + b"/" + name if path else name
                if below not in self._kept:
                    self._tree.remove(self._tree.directory(path), name)
                elif is_directory(self._tree.directory(path), name):
                    pending.append(below)

    def hide(self, directory: Place, name: bytes, header: Header) -> None:  # noqa: ARG002 - as in an overlay
        self._tree.remove(directory, name)
