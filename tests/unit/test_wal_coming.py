"""The `restore_command` of a server that replays WAL which is still being fetched, run by a shell as a server does."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from actions.backup.wal_coming import Coming

SEGMENT, OTHER = "000000010000000000000003", "000000020000000000000003"


@pytest.fixture
def coming(tmp_path: Path) -> Coming:
    folder = tmp_path / "wal with a space and 100%"
    folder.mkdir()
    return Coming(folder)


@pytest.fixture
def asked(coming: Coming, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server that asks for an announced segment."""
    coming.announce([SEGMENT])
    with _ask(coming, SEGMENT, tmp_path / "got") as process:
        yield process
        process.kill()


def _ask(coming: Coming, name: str, into: Path) -> subprocess.Popen[bytes]:
    command = coming.restore_command.replace("%f", name).replace("%p", str(into)).replace("%%", "%")
    return subprocess.Popen(["sh", "-c", command], stderr=subprocess.DEVNULL)


def _waits(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(0.3)
    except subprocess.TimeoutExpired:
        return True
    return False


def test_it_waits_for_what_was_announced_and_takes_it_whole(
    coming: Coming, asked: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    assert _waits(asked)
    (coming.folder / SEGMENT).write_bytes(b"wal")
    assert _waits(asked), "a segment counts once it is said to have arrived"
    coming.arrived(SEGMENT)
    assert asked.wait(5) == 0
    assert (tmp_path / "got").read_bytes() == b"wal"


def test_it_does_not_wait_for_what_nobody_announced(coming: Coming, tmp_path: Path) -> None:
    coming.announce([SEGMENT])
    with _ask(coming, OTHER, tmp_path / "got") as process:
        assert process.wait(5) != 0


def test_it_ends_when_nothing_comes_any_more(coming: Coming, asked: subprocess.Popen[bytes]) -> None:
    assert _waits(asked)
    coming.end()
    assert asked.wait(5) != 0
    assert list(coming.folder.iterdir()) == []


def test_it_ends_with_its_server(coming: Coming, tmp_path: Path) -> None:
    coming.announce([SEGMENT])
    command = coming.restore_command.replace("%f", SEGMENT).replace("%p", str(tmp_path / "got")).replace("%%", "%")
    # The server: a shell that waits for its child and is killed meanwhile.
    argv = ["sh", "-c", 'sh -c "$1" & echo $!; wait', "server", command]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdout is not None
        assert server.stdout.readline()
        assert _waits(server)
        server.send_signal(signal.SIGKILL)
        server.wait(5)
        assert server.stdout.read() == b"", "the pipe ends once the child, which holds it too, is gone"
