"""`actr tasks`."""

from __future__ import annotations

import secrets
import signal as signals
from typing import TYPE_CHECKING

import click

from aiocontainerd.cli.actr import output
from aiocontainerd.cli.actr.session import session_of

if TYPE_CHECKING:
    from aiocontainerd.client.client import Client

HINT = "actr tasks ls lists all of them"


@click.group()
def tasks() -> None:
    """Work with running containers and their processes."""


@tasks.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Print ids only.")
@click.pass_context
def list_tasks(ctx: click.Context, quiet: bool) -> None:
    """List tasks."""

    async def work(client: Client) -> None:
        found = await client.tasks.list()
        if quiet:
            print("".join(f"{state.id}\n" for state in found), end="")
        else:
            output.table(("TASK", "PID", "STATUS"), [(s.id, s.pid, s.status.name) for s in found])

    session_of(ctx).run(work)


@tasks.command("ps")
@click.argument("container_id", metavar="ID")
@click.pass_context
def list_pids(ctx: click.Context, container_id: str) -> None:
    """List the processes of a container."""

    async def work(client: Client) -> None:
        found = await client.tasks.pids(container_id)
        output.table(
            ("PID", "INFO"), [(process.pid, process.info.type_url if process.info else "-") for process in found]
        )

    session_of(ctx).run(work, hint=HINT)


@tasks.command("kill")
@click.argument("container_id", metavar="ID")
@click.option("-s", "--signal", "signal_name", default="SIGTERM", show_default=True, help="Name or number.")
@click.option("-a", "--all", "all_processes", is_flag=True, help="Signal every process of the container.")
@click.option("--exec-id", default="", help="Signal this exec instead of init.")
@click.pass_context
def kill(ctx: click.Context, container_id: str, signal_name: str, all_processes: bool, exec_id: str) -> None:
    """Send a signal to a container."""

    async def work(client: Client) -> None:
        await client.tasks.kill(container_id, parse_signal(signal_name), exec_id, all_processes=all_processes)

    session_of(ctx).run(work, hint=HINT)


def parse_signal(text: str) -> int:
    """Return the number of a signal given as SIGTERM, TERM or 15. Raises ValueError naming the text."""
    if text.isdecimal() and 0 < int(text) < signals.NSIG:
        return int(text)
    name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    try:
        return int(signals.Signals[name])
    except KeyError:
        raise ValueError(f'signal "{text}" is not known; give its name, such as SIGTERM, or its number') from None


@tasks.command("rm")
@click.argument("container_ids", metavar="ID...", nargs=-1, required=True)
@click.option("-f", "--force", is_flag=True, help="Kill running tasks.")
@click.option("--exec-id", default="", help="Remove this exec instead of the task.")
@click.pass_context
def remove(ctx: click.Context, container_ids: tuple[str, ...], force: bool, exec_id: str) -> None:
    """Remove tasks that have stopped. The exit status is that of the first task that failed."""

    async def work(client: Client) -> int:
        status = 0
        for container_id in container_ids:
            ended = await client.tasks.delete(container_id, exec_id, force=force)
            status = status or ended.status
        return 0 if force else status

    session_of(ctx).run(work, hint=HINT)


@tasks.command("pause")
@click.argument("container_id", metavar="ID")
@click.pass_context
def pause(ctx: click.Context, container_id: str) -> None:
    """Freeze a container."""
    session_of(ctx).run(lambda client: client.tasks.pause(container_id), hint=HINT)


@tasks.command("resume")
@click.argument("container_id", metavar="ID")
@click.pass_context
def resume(ctx: click.Context, container_id: str) -> None:
    """Thaw a container."""
    session_of(ctx).run(lambda client: client.tasks.resume(container_id), hint=HINT)


@tasks.command("attach")
@click.argument("container_id", metavar="ID")
@click.pass_context
def attach(ctx: click.Context, container_id: str) -> None:
    """Connect to the input and output of a running container."""

    async def work(client: Client) -> int:
        from aiocontainerd.client.attach import Attachment

        state = await client.tasks.get(container_id)
        return (await Attachment(client.tasks, container_id).join(state.io)).status

    session_of(ctx).run(work, hint=HINT)


@tasks.command("exec", context_settings={"allow_interspersed_args": False})
@click.option("--exec-id", default="", help="Id of the process [default: a random one].")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("-d", "--detach", is_flag=True, help="Run it in the background; its output is dropped.")
@click.option("--cwd", default="", help="Working directory.")
@click.option("-u", "--user", default="", help="user, uid, user:group or uid:gid.")
@click.argument("container_id", metavar="ID")
@click.argument("args", nargs=-1, required=True)
@click.pass_context
def execute(
    ctx: click.Context,
    container_id: str,
    args: tuple[str, ...],
    exec_id: str,
    tty: bool,
    detach: bool,
    cwd: str,
    user: str,
) -> None:
    """Run another process in a container."""
    process_id = exec_id or f"exec-{secrets.token_hex(6)}"

    async def work(client: Client) -> int:
        from aiocontainerd.client import terminal
        from aiocontainerd.client.attach import Attachment
        from aiocontainerd.client.run import exec_detached, exec_process

        if tty and not detach:
            terminal.require(0)
        process = await exec_process(client, container_id, args, tty=tty, cwd=cwd, user=user)
        if detach:
            await exec_detached(client, container_id, process_id, process, tty=tty)
            return 0
        front = Attachment(client.tasks, container_id, process_id)
        ended = await front.run(lambda io: client.tasks.exec(container_id, process_id, process, io), tty=tty)
        return ended.status

    session_of(ctx).run(work, hint=HINT)
