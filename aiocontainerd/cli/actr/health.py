"""`actr plugins explain`, `actr plugins health` and `actr reload`: the service of aiocontainerd's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from aiocontainerd import api, durations
from aiocontainerd.cli.actr import output
from aiocontainerd.cli.actr.session import DIAGNOSIS_S, session_of
from aiocontainerd.wire.times import time_from_wire

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aiocontainerd.client.client import Client

_HINT = "'actr plugins ls' shows every plugin"
_SECOND_NS = 1_000_000_000
_NS = (("s", _SECOND_NS), ("ms", 1_000_000), ("us", 1_000))


@click.command()
@click.argument("plugin")
@click.pass_context
def explain(ctx: click.Context, plugin: str) -> None:
    """Show what the daemon noted of PLUGIN: calls, latencies, errors, tasks, blocked loop, leaked tasks."""

    async def work(client: Client) -> None:
        print("\n".join(_explained(await client.plugins.explain(plugin))))

    session_of(ctx).run(work, hint=_HINT, patience_s=DIAGNOSIS_S)


@click.command()
@click.pass_context
def health(ctx: click.Context) -> None:
    """Show one line for each plugin: calls, errors, latencies, what hangs."""

    async def work(client: Client) -> None:
        headers = ("PLUGIN", "STATUS", "CALLS", "ERRORS", "P50", "P99", "RUNNING", "ABANDONED", "BLOCKED", "REFUSED")
        output.table(headers, [_row(found) for found in await client.plugins.health()])

    session_of(ctx).run(work, patience_s=DIAGNOSIS_S)


@click.command()
@click.argument("plugin")
@click.pass_context
def restart(ctx: click.Context, plugin: str) -> None:
    """Restart the process of PLUGIN, which has one of its own, and wait until it serves."""

    async def work(client: Client) -> None:
        print(f"process {await client.plugins.restart(plugin)} serves")

    session_of(ctx).run(work, hint=_HINT)


@click.command()
@click.pass_context
def reload(ctx: click.Context) -> None:
    """Have the daemon read its config again.

    Plugins in processes of their own come and go. Changed timeouts hold from the next call on. The exit status is 1 if
    a plugin failed.
    """

    async def work(client: Client) -> int:
        changes = await client.plugins.reload()
        for change in changes:
            print(f"{change.subject}: {change.outcome}{f' ({change.detail})' if change.detail else ''}")
        if not changes:
            print("nothing changed")
        return int(any(change.outcome == "failed" for change in changes))

    session_of(ctx).run(work)


def span(ns: int) -> str:
    """Render a duration in the unit that suits it."""
    for unit, size in _NS:
        if ns >= size:
            return f"{ns / size:.3g}{unit}"
    return f"{ns}ns" if ns else "-"


def _row(found: api.plugins.Health) -> tuple[object, ...]:
    return (
        f"{found.kind}.{found.id}", found.state, found.calls, found.errors, span(found.p50_ns), span(found.p99_ns),
        found.in_flight, found.abandoned, found.blocks, ",".join(found.refused) or "-",
    )  # fmt: skip


def _explained(found: api.plugins.ExplainResponse) -> Iterator[str]:
    for name, value in (*_facts(found), *_traces(found)):
        yield f"{name + ':':<18} {value}"
    if found.methods:
        yield ""
        yield from _methods(found.methods)


def _facts(found: api.plugins.ExplainResponse) -> Iterator[tuple[str, object]]:
    health = found.health
    if health is None:
        return
    yield "Plugin", f"{health.kind}.{health.id}"
    yield "Package", found.distribution or "the daemon itself"
    yield "Status", f"{health.state}{f': {health.reason}' if health.reason else ''}"
    if health.caused_by:
        yield "Caused by", health.caused_by
    yield "Requires", ", ".join(found.requires) or "-"
    yield "Required by", ", ".join(found.required_by) or "-"
    yield "Init took", span(found.init_ns)
    if found.rss_bytes is not None:
        yield "Memory (RSS)", output.size(found.rss_bytes)
    yield "Calls", f"{health.calls}, {health.errors} errors, {health.expired} past their deadline"
    yield "Latency", f"p50 {span(health.p50_ns)}, p99 {span(health.p99_ns)}"
    if health.last_error:
        when = output.time(time_from_wire(health.last_error_at))
        yield "Last error", f"{' '.join(health.last_error.split())} ({when})"


def _traces(found: api.plugins.ExplainResponse) -> Iterator[tuple[str, object]]:
    health = found.health
    if health is not None:
        yield "Running calls", health.in_flight
    yield "Tasks", ", ".join([*found.tasks, *found.other_tasks]) or "-"
    for call in found.abandoned:
        yield "Abandoned call", f"{call.method}, for {span(call.elapsed_ns)}"
    for task in found.leaked_tasks:
        yield "Leaked task", task
    if health is not None and found.last_block is not None:
        block = found.last_block
        times = f"{health.blocks} times, {span(health.blocked_ns)} in all"
        yield "Blocked the loop", f"{times}; last at {block.where} for {span(block.duration_ns)}"


def _methods(methods: Sequence[api.plugins.Method]) -> Iterator[str]:
    width = max(18, *(len(method.name) for method in methods))
    yield f"{'METHOD':<{width}} {'CALLS':>8} {'ERRORS':>7} {'EXPIRED':>8} {'P50':>8} {'P99':>8}  LIMIT"
    for method in methods:
        limit = f"{durations.render(method.limit_ns / _SECOND_NS)} ({method.timeout})" if method.timeout else "none"
        if method.retry_ns:
            limit += f"; refused for {span(method.retry_ns)} after {method.failures_in_a_row} failures in a row"
        elif method.failures_in_a_row:
            limit += f"; failures in a row: {method.failures_in_a_row}"
        yield (
            f"{method.name:<{width}} {method.calls:>8} {method.errors:>7} {method.expired:>8} {span(method.p50_ns):>8} "
            f"{span(method.p99_ns):>8}  {limit}"
        )
