"""`actr version`, `actr plugins` and `actr events`."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

import click

from aiocontainerd.cli.actr import output
from aiocontainerd.cli.actr.health import explain, health, restart
from aiocontainerd.cli.actr.session import DIAGNOSIS_S, session_of
from aiocontainerd.cli.plugins_new import new

if TYPE_CHECKING:
    from aiocontainerd.client.client import Client
    from aiocontainerd.interfaces.services import PluginStatus

_SKIPPED = "skip plugin"
_NOT_READY = ("absent", "connecting", "failed", "hangs", "read-only", "registered")
"""States of a plugin that has no error: it is beside the daemon, has not started yet, or takes no changes now."""


@click.command()
@click.pass_context
def version(ctx: click.Context) -> None:
    """Show the versions of the client and the daemon."""

    async def work(client: Client) -> None:
        from aiocontainerd import __version__

        found, revision = await client.version()
        uuid = await client.introspection.uuid()
        print(f"Client:\n  Version:  {__version__}\n\nServer:\n  Version:  {found}\n  Revision: {revision}")
        print(f"  UUID: {uuid}")

    session_of(ctx).run(work)


@click.group()
def plugins() -> None:
    """Show the plugins of the daemon, explain them, write new ones."""


for _command in (explain, health, new, restart):
    plugins.add_command(_command)


@plugins.command("ls")
@click.argument("filters", nargs=-1)
@click.option("-d", "--detailed", is_flag=True, help="Show requirements, capabilities, exports and the reason.")
@click.option("-q", "--quiet", is_flag=True, help="Print kind and id only.")
@click.pass_context
def list_plugins(ctx: click.Context, filters: tuple[str, ...], detailed: bool, quiet: bool) -> None:
    """List plugins, also those that were skipped or failed."""

    async def work(client: Client) -> None:
        found = await client.introspection.plugins(filters)
        if quiet:
            print("".join(f"{plugin.kind}.{plugin.id}\n" for plugin in found), end="")
        elif detailed:
            print("\n".join(_details(plugin) for plugin in found))
        else:
            rows = [(p.kind, p.id, ",".join(p.platforms) or "-", state(p), reason(p)) for p in found]
            output.table(("TYPE", "ID", "PLATFORMS", "STATUS", "REASON"), rows)

    session_of(ctx).run(work, patience_s=DIAGNOSIS_S)


def state(plugin: PluginStatus) -> str:
    """Return `ok`, `skip` or `error` as ctr does, or the state of a plugin that is not ready."""
    if not plugin.message and not plugin.code:
        beside = plugin.exports.get("state", "")
        return beside if beside in _NOT_READY else "ok"
    return "skip" if _SKIPPED in plugin.message else "error"


def reason(plugin: PluginStatus) -> str:
    """Return one line that says why a plugin did not load or cannot be used now."""
    text = plugin.message or (plugin.exports.get("reason", "") if state(plugin) in _NOT_READY else "")
    return " ".join(text.split()) or "-"


def _details(plugin: PluginStatus) -> str:
    lines = [f"Type:          {plugin.kind}", f"ID:            {plugin.id}", f"Status:        {state(plugin)}"]
    fields = (
        ("Requires:", plugin.requires),
        ("Platforms:", plugin.platforms),
        ("Capabilities:", plugin.capabilities),
        ("Exports:", [f"{key}={value}" for key, value in sorted(plugin.exports.items())]),
        ("Reason:", [reason(plugin)] if plugin.message else ()),
    )
    lines += [f"{name:<14} {', '.join(values)}" for name, values in fields if values]
    return "\n".join(lines) + "\n"


@click.command()
@click.argument("filters", nargs=-1)
@click.pass_context
def events(ctx: click.Context, filters: tuple[str, ...]) -> None:
    """Show the events of every namespace as they come: time, namespace, topic, event.

    An event that this client cannot decode is shown with its type and its bytes in base64.
    """

    async def work(client: Client) -> None:
        from aiocontainerd.cli.actr.event_lines import line_of

        async with aclosing(client.events.subscribe(filters)) as envelopes:
            async for envelope in envelopes:
                print(line_of(envelope), flush=True)

    session_of(ctx).run(work)
