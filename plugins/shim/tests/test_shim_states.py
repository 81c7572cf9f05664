"""What each state refuses, in the words clients know (facts/runtime 4.3)."""

from __future__ import annotations

import pytest
from aiocontainerd_shim.task.states import Action, State, check, refusal

from aiocontainerd.errors import NotFound, Unknown, to_status

INIT = [
    (State.CREATED, Action.PAUSE, "cannot pause task in created state"),
    (State.CREATED, Action.RESUME, "cannot resume task in created state"),
    (State.CREATED, Action.CHECKPOINT, "cannot checkpoint a task in created state"),
    (State.RESTORING, Action.EXEC, "cannot exec in a created state"),
    (State.RUNNING, Action.START, "cannot start a running process"),
    (State.RUNNING, Action.DELETE, "cannot delete a running process"),
    (State.RUNNING, Action.RESUME, "cannot resume a running process"),
    (State.PAUSED, Action.START, "cannot start a paused process"),
    (State.PAUSED, Action.DELETE, "cannot delete a paused process"),
    (State.PAUSED, Action.PAUSE, "cannot pause a paused container"),
    (State.PAUSED, Action.EXEC, "cannot exec in a paused state"),
    (State.STOPPED, Action.START, "cannot start a stopped process"),
    (State.STOPPED, Action.UPDATE, "cannot update a stopped container"),
    (State.STOPPED, Action.EXEC, "cannot exec in a stopped state"),
    (State.DELETED, Action.EXEC, "cannot exec in a deleted state"),
    (State.DELETED, Action.RESIZE, "cannot resize a deleted process"),
]


@pytest.mark.parametrize(("state", "action", "text"), INIT)
def test_an_init_refuses_with_the_texts_of_the_facts(state: State, action: Action, text: str) -> None:
    with pytest.raises(Unknown) as refused:
        check(state, action, init=True)
    assert to_status(refused.value) == (2, text)


@pytest.mark.parametrize("action", [Action.DELETE, Action.KILL])
def test_a_deleted_process_is_not_found(action: Action) -> None:
    with pytest.raises(NotFound) as refused:
        check(State.DELETED, action, init=False)
    assert to_status(refused.value) == (5, f"cannot {action} a deleted process: not found")


def test_a_stopped_exec_cannot_be_resized_and_can_be_deleted() -> None:
    assert str(refusal(State.STOPPED, Action.RESIZE, init=False)) == "cannot resize a stopped container"
    assert refusal(State.STOPPED, Action.DELETE, init=False) is None


def test_created_and_running_containers_take_execs() -> None:
    assert refusal(State.CREATED, Action.EXEC, init=True) is None
    assert refusal(State.RUNNING, Action.EXEC, init=True) is None
