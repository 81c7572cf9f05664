"""The states of a process and what each refuses, with the exact texts clients know (facts/runtime 4.3)."""

from __future__ import annotations

from enum import StrEnum

from aiocontainerd.errors import ContainerdError, NotFound, Unknown


class State(StrEnum):
    """Where a process is in its life. `RESTORING` is an init created from a checkpoint and not started yet."""

    CREATED = "created"
    RESTORING = "restoring"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    DELETED = "deleted"


class Action(StrEnum):
    """A verb that a client can ask of a process."""

    START = "start"
    DELETE = "delete"
    PAUSE = "pause"
    RESUME = "resume"
    UPDATE = "update"
    CHECKPOINT = "checkpoint"
    EXEC = "exec"
    RESIZE = "resize"
    KILL = "kill"


def _created(name: str) -> dict[Action, str]:
    return {
        Action.PAUSE: f"cannot pause task in {name} state",
        Action.RESUME: f"cannot resume task in {name} state",
        Action.CHECKPOINT: f"cannot checkpoint a task in {name} state",
    }


_INIT: dict[State, dict[Action, str]] = {
    State.CREATED: _created("created"),
    State.RESTORING: _created("created") | {Action.EXEC: "cannot exec in a created state"},
    State.RUNNING: {
        Action.START: "cannot start a running process",
        Action.DELETE: "cannot delete a running process",
        Action.RESUME: "cannot resume a running process",
    },
    State.PAUSED: {
        Action.START: "cannot start a paused process",
        Action.DELETE: "cannot delete a paused process",
        Action.PAUSE: "cannot pause a paused container",
        Action.EXEC: "cannot exec in a paused state",
    },
    State.STOPPED: {
        Action.START: "cannot start a stopped process",
        Action.PAUSE: "cannot pause a stopped container",
        Action.RESUME: "cannot resume a stopped container",
        Action.UPDATE: "cannot update a stopped container",
        Action.CHECKPOINT: "cannot checkpoint a stopped container",
        Action.EXEC: "cannot exec in a stopped state",
    },
}

_DELETED: dict[Action, str] = {action: f"cannot {action} a deleted process" for action in Action} | {
    Action.EXEC: "cannot exec in a deleted state"
}

_EXEC: dict[State, dict[Action, str]] = {
    State.RUNNING: {
        Action.START: "cannot start a running process",
        Action.DELETE: "cannot delete a running process",
    },
    State.STOPPED: {
        Action.START: "cannot start a stopped process",
        Action.RESIZE: "cannot resize a stopped container",
    },
}


def refusal(state: State, action: Action, *, init: bool) -> ContainerdError | None:
    """Return the error that `action` meets in `state`; None if it is allowed."""
    if state == State.DELETED:
        kind = NotFound if action in (Action.DELETE, Action.KILL) else Unknown
        return kind(_DELETED[action])
    text = (_INIT if init else _EXEC).get(state, {}).get(action)
    return None if text is None else Unknown(text)


def check(state: State, action: Action, *, init: bool) -> None:
    """Raise the error that `action` meets in `state`."""
    error = refusal(state, action, init=init)
    if error is not None:
        raise error
