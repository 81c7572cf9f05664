"""`actr`: the command line client of containerd daemons, ours and any other.

The commands of a subject are in a module of their own, which is imported when one of them runs: `actr version` must
not wait for modules that it does not use.
"""

from __future__ import annotations

import importlib

import click

from aiocontainerd import __version__
from aiocontainerd.cli.ending import Program, exits_at_sigterm, open_streams, use_utf8

DEFAULT_ADDRESS = "/run/containerd/containerd.sock"
COMMANDS = {
    "config": ("config", "config", "Explain the config of a daemon"),
    "containers": ("containers", "containers", "List, show and remove container records"),
    "content": ("storage", "content", "List the blobs of the content store"),
    "events": ("daemon", "events", "Show events as they come"),
    "images": ("images", "images", "Pull, import, list, tag and remove images"),
    "namespaces": ("namespaces", "namespaces", "Create, list, label and remove namespaces"),
    "plugins": ("daemon", "plugins", "Show the plugins of the daemon, explain them, write new ones"),
    "reload": ("health", "reload", "Tell the daemon to read its config again"),
    "run": ("run", "run", "Run a container"),
    "snapshots": ("storage", "snapshots", "List the snapshots of a snapshotter"),
    "tasks": ("tasks", "tasks", "Work with running containers: exec, kill, pause, attach"),
    "version": ("daemon", "version", "Show the versions of the client and the daemon"),
}
"""Name of a command -> its module, its attribute there, one line of help."""
ALIASES = {
    "c": "containers", "container": "containers", "event": "events", "i": "images", "image": "images",
    "namespace": "namespaces", "ns": "namespaces", "plugin": "plugins", "snapshot": "snapshots", "t": "tasks",
    "task": "tasks",
}  # fmt: skip


class LazyGroup(Program):
    """A group that imports the module of a command when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names that the help shows."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import and return the command of a name or alias."""
        found = COMMANDS.get(ALIASES.get(cmd_name, cmd_name))
        if found is None:
            return None
        command: click.Command = getattr(importlib.import_module(f"aiocontainerd.cli.actr.{found[0]}"), found[1])
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the list of commands without importing their modules."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in sorted(COMMANDS.items())])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-a", "--address", default=DEFAULT_ADDRESS, envvar="CONTAINERD_ADDRESS", show_default=True,
              show_envvar=True, help="Socket of the daemon.")  # fmt: skip
@click.option("-n", "--namespace", default="default", envvar="CONTAINERD_NAMESPACE", show_default=True,
              show_envvar=True, help="Namespace of the objects.")  # fmt: skip
@click.option("--timeout", default=60.0, show_default=True, help="Deadline of each call, in seconds.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.version_option(__version__, "-v", "--version", prog_name="actr", message="%(prog)s %(version)s",
                      help="Print the version of this client.")  # fmt: skip
@click.pass_context
def actr(ctx: click.Context, address: str, namespace: str, timeout: float, debug: bool) -> None:
    """Talk to a containerd daemon."""
    from aiocontainerd.cli.actr.session import Session

    ctx.obj = Session(address=address, namespace=namespace, timeout_s=timeout, debug=debug)


def main() -> None:
    """Run the program."""
    use_utf8()
    open_streams()
    exits_at_sigterm()
    actr(prog_name="actr")


if __name__ == "__main__":
    main()
