"""Stream processors (kind `io.containerd.stream-processor.v1`): one layer media type into another (facts/core 8).

Vocabulary. A layer is a stream of bytes with a *media type*. A processor *accepts* some media types and *returns*
one: decryption, another compression. A *payload* is a typed value that the caller of `Diff.Apply` sends for one
processor, by its id: a key, say.

Life cycle. Applying a layer asks for processors until the stream is a plain tar, or one that no processor accepts and
the differ knows (compressed as the OCI image specification has it), each one fed by the one before, at most eight.
Where several accept a media type, the last id in alphabetical order is taken. What comes out is kept in a file without
a name until the layer is applied.

`process` is an asynchronous generator: it takes chunks of any size and gives chunks of any size, never holding more
than a bounded amount of the stream. Work on the bytes that takes longer than a millisecond belongs in a thread
(`anyio.to_thread.run_sync`). It must read its input to the end, also where it has all it needs, since digests are
computed on the way.

Programs. Each table of `[stream_processors]` is a plugin of this kind, too, whose id is the table's: a program with the
stream as its standard input and output, as in containerd. `STREAM_PROCESSOR_MEDIATYPE` in its environment is the
input's type; a payload is a serialised `google.protobuf.Any` on descriptor 3. What it writes to standard error is the
error where its exit status is not 0.

Apart from the daemon. A differ that `aiocontainerd-plugin serve` runs has the programs of its own `--config`; one that
the daemon runs with `isolation = "process"` has no stream processors.

What must fail and how. A stream that is no valid input raises; the layer is then not applied, and the caller gets
the text. When the generator is closed early it gives back what it took.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from aiocontainerd.interfaces.rules import LONG, items
from aiocontainerd.typeurl import Any

__all__ = ["Any", "StreamProcessor"]


class StreamProcessor(Protocol):
    """Turns layers of some media types into another."""

    @property
    def accepts(self) -> Sequence[str]:
        """Media types of the input."""
        ...

    @property
    def returns(self) -> str:
        """Media type of the output."""
        ...

    @items(LONG)
    def process(self, media_type: str, stream: AsyncIterator[bytes], payload: Any | None) -> AsyncIterator[bytes]:
        """Yield the output for an input of `media_type`. Write it as an asynchronous generator."""
        ...
