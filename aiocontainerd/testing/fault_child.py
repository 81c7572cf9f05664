"""Run plugins that are killed or hang, in a process of their own: `python -m aiocontainerd.testing.fault_child`.

It reads requests as JSON lines, and forks for each: the fork opens the target, brings it into the scenario's state,
and runs the operation with the fault at the chosen step. Forks start with everything imported, so that they are quick.
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio
import msgspec

from aiocontainerd.testing.plugin_bench import PluginBench
from aiocontainerd.testing.scenarios import BY_KIND, Scenario, State
from aiocontainerd.testing.steps import Steps
from aiocontainerd.testing.target import Target

OTHERS_S = 5.0
"""Within this, calls about other keys answer while one hangs."""
RUN_S = 60.0
STOP_S = 5.0


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One operation over a fresh `root`. `fault` is `none`, `kill` or `hang`, at the step `at` counted from 1."""

    kind: str
    root: str
    operation: str
    fault: str = "none"
    at: int = 0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of it: steps that were made, the step that hung, calls about other keys that waited for it.

    One that was killed has an outcome only where the operation had been answered before.
    """

    steps: int = 0
    killed: bool = False
    answered: bool = False
    hung_in: str = ""
    waited: str = ""
    error: str = ""
    before: State = {}
    after: State = {}
    modules: list[str] = []


class FaultChild:
    """The program, as the suite uses it. A context manager."""

    def __init__(self, target: Target) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "aiocontainerd.testing.fault_child"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        self._send(target)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._input.close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()

    @property
    def _input(self) -> Any:
        return self._process.stdin

    @property
    def _output(self) -> Any:
        return self._process.stdout

    def run(self, request: Request) -> Outcome:
        """Run one request in a fork. Raise RuntimeError with what went wrong there."""
        self._send(request)
        outcome = msgspec.json.decode(self._output.readline() or b'{"error": "the program ended"}', type=Outcome)
        if outcome.error:
            raise RuntimeError(f"{request.operation}: {outcome.error}")
        return outcome

    def _send(self, record: msgspec.Struct) -> None:
        self._input.write(msgspec.json.encode(record) + b"\n")
        self._input.flush()


def main() -> None:
    """Serve requests until the end of the input."""
    lines = sys.stdin.buffer
    target = msgspec.json.decode(lines.readline(), type=Target)
    for line in lines:
        outcome = _forked(target, msgspec.json.decode(line, type=Request))
        _import(outcome.modules)
        sys.stdout.buffer.write(msgspec.json.encode(outcome) + b"\n")
        sys.stdout.buffer.flush()


def _import(modules: Iterable[str]) -> None:
    """Import what a fork needed, so that the next ones have it from the start."""
    for name in modules:
        if name not in sys.modules:
            with suppress(Exception):
                importlib.import_module(name)


def _forked(target: Target, request: Request) -> Outcome:
    theirs, ours = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(theirs)
        os.dup2(2, 1)
        _run(target, request, ours)
        os._exit(0)
    os.close(ours)
    with open(theirs, "rb") as told:
        answer = told.read()
    _, status = os.waitpid(pid, 0)
    if answer:
        return msgspec.json.decode(answer, type=Outcome)
    return Outcome(killed=True) if os.WIFSIGNALED(status) else Outcome(error="the fork ended without a word")


def _run(target: Target, request: Request, told: int) -> None:
    def tell(outcome: Outcome) -> None:
        os.write(told, msgspec.json.encode(outcome))

    try:
        anyio.run(_run_operation, target, request, tell)
    except BaseException as error:  # noqa: BLE001 - the edge of the fork: all it can do is to tell
        tell(Outcome(error=f"{type(error).__name__}: {error}"))


async def _run_operation(target: Target, request: Request, tell: Callable[[Outcome], None]) -> None:
    scenario = BY_KIND[request.kind]
    steps = Steps(request.fault, request.at)
    steps.install()
    root = Path(request.root)
    with anyio.fail_after(RUN_S):
        async with PluginBench(target, root.parent).open(request.kind, root, {}) as plugin:
            await scenario.setup(plugin, root.parent / f"{root.name}-mounts")
            before = await scenario.state(plugin)
            waited = await _with_fault(plugin, scenario, request, steps)
            if request.fault == "kill":
                tell(Outcome(steps=steps.count, killed=True, answered=True))
                os.kill(os.getpid(), signal.SIGKILL)
            after = await scenario.state(plugin)
    tell(
        Outcome(
            steps=steps.count, hung_in=steps.where, waited=waited, before=before, after=after, modules=list(sys.modules)
        )
    )


async def _with_fault(plugin: Any, scenario: Scenario, request: Request, steps: Steps) -> str:
    """Run the operation; the calls about other keys that waited for it while it hung."""
    waited: list[str] = []
    async with anyio.create_task_group() as group:
        done = anyio.Event()

        async def operate() -> None:
            try:
                await scenario.operations[request.operation](plugin)
            finally:
                done.set()

        steps.arm()
        group.start_soon(operate)
        if request.fault == "hang":
            await _hung_or_done(steps, done)
            if steps.hung.is_set():
                waited = await _others(plugin, scenario.others)
            steps.disarm()
        await done.wait()
        steps.disarm()
    return ", ".join(waited)


async def _hung_or_done(steps: Steps, done: anyio.Event) -> None:
    while not steps.hung.is_set() and not done.is_set():  # noqa: ASYNC110 - set by another thread
        await anyio.sleep(0.001)


async def _others(plugin: Any, others: Mapping[str, Any]) -> list[str]:
    waited = []
    for name, call in others.items():
        with anyio.move_on_after(OTHERS_S) as scope:
            await call(plugin)
        if scope.cancelled_caught:
            waited.append(name)
            break
    return waited


if __name__ == "__main__":
    main()
