"""Task groups whose failure is one error, as callers match on classes and never on groups."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import anyio

Job = Callable[[], Coroutine[Any, Any, None]]


@contextmanager
def unwrapped() -> Iterator[None]:
    """Raise the first error of a task group in the block, instead of the group of all."""
    try:
        yield
    except BaseExceptionGroup as group:
        raise _first(group) from group


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def run_all(jobs: Sequence[Job]) -> None:
    """Run jobs at the same time; the first failure cancels the others and is raised."""
    with unwrapped():
        async with anyio.create_task_group() as group:
            for job in jobs:
                group.start_soon(job)
