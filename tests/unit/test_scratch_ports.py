"""The ports of scratch instances: one of the plan file's range for each, claimed with its room."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from actions.adapters.scratch_server import RecoveringServer
from actions.backup.scratch_budget import check_machine, claim
from actions.backup.scratch_place import Claim, Opened, Promotion, ScratchPlace
from actions.errors import UserError
from actions.site import ScratchBudget
from tests.fakes.clock import START

HOST = "127.0.0.1"
POSTGRES = """#!/bin/sh
echo "$@" > "$2/argv"
exec sleep 60
"""


@pytest.fixture
def ports() -> Iterator[tuple[int, int]]:
    """Three free ports in a row. Tests beside this one, which try ports for a moment, look for theirs elsewhere."""
    beside = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 10
    for first in range(20000 + 1000 * beside, 21000 + 1000 * beside, 3):
        held = [socket.socket() for _ in range(3)]
        try:
            for each, port in zip(held, range(first, first + 3), strict=True):
                each.bind((HOST, port))
        except OSError:
            continue
        finally:
            for each in held:
                each.close()
        yield first, first + 2
        return


def taken(directory: Path, scratch: str, ports: tuple[int, int] | None) -> int:
    """The port that it is given."""
    wanted = Claim(
        id=scratch, server="main", mark="m", made_at=START, expires_at=START + timedelta(hours=1), wanted_bytes=1
    )
    place = ScratchPlace(directory, scratch)
    claim(directory, place, wanted, ScratchBudget(instances=9, ports=ports), reserve=0)
    found = place.claim()
    assert found is not None
    return found.port


def test_each_has_one_of_its_own_and_none_is_left_for_one_too_many(tmp_path: Path, ports: tuple[int, int]) -> None:
    first, last = ports
    with socket.create_server((HOST, first + 1)):  # another program
        assert [taken(tmp_path, name, ports) for name in ("s1", "s2")] == [first, last]
        with pytest.raises(UserError) as refused:
            taken(tmp_path, "s3", ports)
        with pytest.raises(UserError, match="is taken on this machine"):  # as a plan is told before
            check_machine(tmp_path, 1, ScratchBudget(ports=ports), reserve=0)
    assert str(refused.value) == (
        f"Every port from {first} to {last} (`backups.scratch.ports` of the plan file) is taken on this machine, by "
        "scratch instances or other programs. Discard one, or name a wider range."
    )
    assert ScratchPlace(tmp_path, "s3").claim() is None
    assert taken(tmp_path, "s1", ports) == first  # a restore that is taken up again
    ScratchPlace(tmp_path, "s2").remove()
    assert taken(tmp_path, "s3", ports) == first + 1


def test_what_one_was_opened_at_is_its_own_as_well(tmp_path: Path, ports: tuple[int, int]) -> None:
    assert taken(tmp_path, "s1", None) == 0
    ScratchPlace(tmp_path, "s1").write_opened(Opened(host=HOST, port=ports[0]))
    assert taken(tmp_path, "s2", ports) == ports[0] + 1


def test_a_promoted_one_is_no_part_of_the_budget_and_keeps_its_port(tmp_path: Path, ports: tuple[int, int]) -> None:
    budget = ScratchBudget(instances=1, disk=10, ports=ports)

    def claimed(scratch: str) -> ScratchPlace:
        made = START, START + timedelta(hours=1)
        wanted = Claim(id=scratch, server="main", mark="m", made_at=made[0], expires_at=made[1], wanted_bytes=8)
        claim(tmp_path, place := ScratchPlace(tmp_path, scratch), wanted, budget, reserve=0)
        return place

    first = claimed("s1")
    with pytest.raises(UserError, match=r"1 scratch instances \(`s1`\), and the plan file allows 1"):
        claimed("s2")
    first.write_promoted(Promotion(at=START))
    second = claimed("s2").claim()
    assert second is not None
    assert second.port == ports[0] + 1
    with pytest.raises(UserError, match=r"\(`s2`\), and the plan file allows 1"):  # the promoted one is not named
        claimed("s3")


def test_it_listens_there_or_says_who_is_in_its_way(tmp_path: Path, ports: tuple[int, int]) -> None:
    port = taken(tmp_path / "scratch", "s1", ports)
    place = ScratchPlace(tmp_path / "scratch", "s1")
    place.data.mkdir()
    (tmp_path / "postgres").write_text(POSTGRES)
    (tmp_path / "postgres").chmod(0o755)
    server = RecoveringServer(place, tmp_path, None)
    with socket.create_server((HOST, port)), pytest.raises(UserError, match=f"Port {port} is reserved for .* `s1`"):
        server.launch(detached=False)
    server.launch(detached=False)
    try:
        while not (said := place.data / "argv").exists() or not said.read_text():
            pass
        assert said.read_text().split()[-2:] == ["-p", str(port)]
    finally:
        server.stop()
