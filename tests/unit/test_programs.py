"""Programs end with their owner, keep secrets out of argv and say why they failed."""

import asyncio
import os
import select
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from actions.adapters.programs import (
    STDERR_KEPT,
    Account,
    Program,
    ProgramError,
    ProgramTimeoutError,
    run,
    run_in_thread,
)
from actions.errors import PermanentError, UserError
from tests.fixtures.waiting import until

SOON = timedelta(seconds=10)
FAMILY = "sleep 60 & echo $!; sleep 60"  # a program with a child in its process group
linux = pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")


def gone(pid: int, *, within: float = 5.0) -> bool:
    limit = time.monotonic() + within
    while time.monotonic() < limit:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False


async def test_output_input_and_stderr_come_back() -> None:
    output = await run(["sh", "-c", "cat; echo note >&2"], stdin=b"in", timeout=SOON)
    assert (output.stdout, output.text, output.stderr) == (b"in", "in", "note\n")
    assert output.seconds > 0


async def test_failure_names_program_code_and_the_end_of_stderr() -> None:
    script = f"head -c {STDERR_KEPT * 4} /dev/zero | tr '\\0' x >&2; echo the end >&2; exit 3"
    with pytest.raises(ProgramError, match=r"sh ended with code 3: x+the end") as caught:
        await run(["sh", "-c", script], timeout=SOON)
    assert isinstance(caught.value, PermanentError)
    assert (caught.value.code, len(caught.value.stderr)) == (3, STDERR_KEPT)
    assert "exit 3" not in str(caught.value)


async def test_signal_is_named() -> None:
    with pytest.raises(ProgramError, match="sh was ended by SIGTERM"):
        await run(["sh", "-c", "kill -TERM $$"], timeout=SOON)


async def test_missing_program_and_bad_directory_say_so(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="no-such-program is not installed"):
        await run(["no-such-program"], timeout=SOON)
    with pytest.raises(ProgramError, match="could not be started"):
        await run(["true"], cwd=tmp_path / "missing", timeout=SOON)


async def test_environment_is_the_allow_list_and_what_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLACK_BOT_TOKEN", "xoxb-1")
    output = await run(["env"], env={"GIVEN": "1"}, secrets={"PGPASSWORD": "hunter2"}, timeout=SOON)
    assert "SLACK_BOT_TOKEN" not in output.text
    assert {"GIVEN=1", "PGPASSWORD=hunter2"} <= set(output.text.splitlines())


async def test_secret_is_masked_in_errors() -> None:
    with pytest.raises(ProgramError) as caught:
        await run(["sh", "-c", "echo bad password $WORD >&2; exit 1"], secrets={"WORD": "hunter2"}, timeout=SOON)
    assert "hunter2" not in str(caught.value)
    assert "bad password ***" in str(caught.value)


async def test_time_limit_ends_the_whole_group() -> None:
    with Program.start(["sh", "-c", FAMILY], stdout=True) as program:
        assert program.stdout is not None
        child = int(program.stdout.readline())
        with pytest.raises(ProgramTimeoutError, match=r"was ended after 0\.1 s, its time limit"):
            program.wait(timedelta(seconds=0.1))
        assert gone(child)


async def test_cancelled_task_leaves_nothing(tmp_path: Path) -> None:
    task = asyncio.create_task(run(["sh", "-c", f"echo $$ > {tmp_path}/pid; {FAMILY}"], timeout=SOON))
    await until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
    pid = int((tmp_path / "pid").read_text())
    children = psutil.Process(pid).children(recursive=True)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert all(gone(number) for number in (pid, *(child.pid for child in children)))


def test_leaving_the_block_ends_the_group_even_after_its_leader() -> None:
    with Program.start(["sh", "-c", "sleep 60 & echo $!"], stdout=True) as program:
        assert program.stdout is not None
        child = int(program.stdout.readline())
        assert program.wait(SOON) == 0
    assert gone(child)


def test_seeing_the_end_ends_the_group() -> None:
    with Program.start(["sh", "-c", "sleep 60 & echo $!"], stdout=True) as program:
        assert program.stdout is not None
        child = int(program.stdout.readline())
        limit = time.monotonic() + 10
        while program.code() is None and time.monotonic() < limit:
            time.sleep(0.01)
        assert program.code() == 0
        assert gone(child)


@pytest.mark.parametrize("reaped_by", ["code", "send", "wait", "communicate", "psutil"])
def test_group_of_a_reaped_program_is_never_signalled(reaped_by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number may be the group of a stranger by then, such as a session of somebody's PostgreSQL."""
    program = Program.start(["true"], stdout=reaped_by == "communicate")
    process = psutil.Process(program.pid)
    limit = time.monotonic() + 10
    while process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < limit:
        time.sleep(0.01)
    match reaped_by:
        case "code":
            assert program.code() == 0
        case "send":
            program.send(signal.SIGTERM)
        case "wait":
            assert program.wait(SOON) == 0
        case "communicate":
            assert program.communicate(timeout=SOON) == b""
        case _:
            process.wait(10)
    assert not psutil.pid_exists(program.pid)
    signalled: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda group, number: signalled.append(group))
    program.kill()
    assert program.code() == 0
    assert program.stop(grace=SOON)
    assert signalled == []


def test_programs_are_joined_by_their_pipes() -> None:
    with (
        Program.start(["seq", "200000"], stdout=True) as source,
        Program.start(["tail", "-n", "1"], stdin=source.stdout or False, stdout=True) as sink,
    ):
        assert sink.communicate(timeout=SOON) == b"200000\n"
        source.check(SOON)


def test_stop_asks_first_and_forces_later() -> None:
    with Program.start(["sleep", "60"]) as polite:
        assert polite.stop(grace=SOON)
        assert polite.code() == -signal.SIGTERM
    with Program.start(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"], stdout=True) as stubborn:
        assert stubborn.stdout is not None
        stubborn.stdout.readline()
        assert not stubborn.stop(grace=timedelta(seconds=0.1))


def test_log_takes_both_streams(tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = Program.start(["sh", "-c", "echo out; echo err >&2; exit 1"], log=log)
    with program, pytest.raises(ProgramError, match="err"):
        program.check(SOON)
    assert log.read_text() == "out\nerr\n"


@linux
def test_output_comes_in_blocks_of_the_wanted_size() -> None:
    lines = b"abcdefg\n" * 1024  # twice what is gathered otherwise

    def first(block: int, wait: float) -> tuple[bool, int]:
        with Program.start(["sed", "s/a/b/"], stdin=True, stdout=True, stdout_block=block) as program:
            assert program.stdin is not None
            assert program.stdout is not None
            program.stdin.write(lines)
            program.stdin.flush()
            early = bool(select.select([program.stdout], [], [], wait)[0])
            program.stdin.close()
            return early, len(program.stdout.read())

    assert first(0, wait=30) == (True, len(lines))
    assert first(1024 * 1024, wait=0.3) == (False, len(lines))


@linux
def test_program_outlives_the_thread_that_started_it() -> None:
    started: list[Program] = []
    thread = threading.Thread(target=lambda: started.append(Program.start(["sleep", "60"])))
    thread.start()
    thread.join()
    time.sleep(0.2)
    with started[0] as program:
        assert program.code() is None


@linux
@pytest.mark.kill
@pytest.mark.parametrize(("outlive", "survives"), [(False, False), (True, True)])
def test_killed_owner_takes_its_program_along_unless_asked_not_to(outlive: bool, survives: bool) -> None:
    script = (
        "import time\nfrom actions.adapters.programs import Program\n"
        f"print(Program.start(['sleep', '30'], outlive_owner={outlive}).pid, flush=True)\ntime.sleep(30)\n"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", script], cwd=root, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        started = psutil.Process(pid)
        limit = time.monotonic() + 5
        while started.name() != "sleep" and time.monotonic() < limit:
            time.sleep(0.01)  # `setpriv` asks the kernel for it right before that: who dies earlier takes nothing along
        owner.kill()
    assert gone(pid, within=0.3 if survives else 5) is not survives
    if survives:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_account_is_dropped_to_and_has_a_home_of_its_own() -> None:
    nobody = Account.named("nobody")
    output = run_in_thread(["sh", "-c", "id -u; id -G; echo $HOME"], account=nobody, cwd=Path("/"), timeout=SOON)
    assert output.text.split() == [str(nobody.uid), *map(str, nobody.groups), nobody.home]


def test_unknown_account_is_said() -> None:
    with pytest.raises(UserError, match="no account `nobody-here`"):
        Account.named("nobody-here")
