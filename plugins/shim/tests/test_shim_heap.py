"""A fork server's heap has no holes, so that a shim's own objects lie on few pages."""

from __future__ import annotations

import subprocess
import sys

CODE = """
from aiocontainerd_shim.fork import heap
size = 240
kept = [bytes(size - 33) for _ in range(20_000)]
del kept[::50]  # now there are holes far apart
found = []
for fill in (lambda: None, heap.fill_holes):
    fill()
    fresh = [bytes(size - 33) for _ in range(heap.BATCH_BYTES // size)]
    found.append(heap.pages(fresh))
    del fresh
print(found[0] > 3 * heap.FEW_PAGES, found[1] <= heap.FEW_PAGES)
"""


def test_new_objects_lie_together_once_the_holes_are_filled() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True"], done.stderr
