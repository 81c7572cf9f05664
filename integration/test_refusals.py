"""Requests that containerd 2.1 refuses get the same code and the same text from our daemon."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from harness import Ours, Peer, peer
from refusals import player, recorded

pytestmark = [pytest.mark.root, pytest.mark.integration, pytest.mark.timeout(180)]


class OursOnRunc(Ours):
    """Our daemon with the OCI runtime of the recording."""

    def default_config(self) -> str:
        return super().default_config() + 'oci_runtime = "runc"\n'


@pytest.fixture(scope="module")
def daemon() -> Iterator[Peer]:
    with peer(OursOnRunc) as started:
        yield started


REFUSALS = recorded()


@pytest.fixture(scope="module")
def answers(daemon: Peer) -> Iterator[list[tuple[int, str]]]:
    """Return the code and the text of every answer. Later requests see what earlier ones did, as in the recording."""
    with player(daemon.address, daemon.directory, daemon.namespace) as asked:
        yield [asked.answer(refusal) for refusal in REFUSALS]


def _name(number: int) -> str:
    return f"{number:03}-{REFUSALS[number].call.replace('/', '-')}"


@pytest.mark.parametrize("number", range(len(REFUSALS)), ids=_name)
def test_a_refusal_has_containerds_code_and_text(answers: list[tuple[int, str]], number: int) -> None:
    refusal, (code, text) = REFUSALS[number], answers[number]
    if refusal.ours is None:
        assert (code, text) == (refusal.code, refusal.text)
    else:
        assert code == refusal.ours.code, refusal.ours.reason
        assert re.fullmatch(refusal.ours.pattern, text, re.DOTALL), refusal.ours.reason
        assert (code, text) != (refusal.code, refusal.text), "the answer is containerd's by now: remove the note"
