"""The demo as a new user meets it: the story without hands, and a demo that is gone when it is left."""

import json
import signal
import subprocess
import time
from pathlib import Path

import psutil
import psycopg
import pytest

from bot.demo.sweeper import belonging
from tests.e2e.connections import Connections
from tests.e2e.demo_process import DRBOT, ROOT, DemoProcess

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400), pytest.mark.xdist_group("demo")]


def test_story_ends_with_everything_restored(run_directory: Path) -> None:
    with DemoProcess("--script", "restore", "--size", "tiny", within=run_directory) as demo:
        begun = demo.line("Starting the demo in ", within=30)
        directory = begun.split("Starting the demo in ", 1)[1].split(",", 1)[0]
        with Connections(demo.process.pid, Path(directory)) as connections:
            code = demo.wait(within=360)
        said = "".join(demo.said)
        result = json.loads(demo.said[-1])
    assert code == 0, said
    # No way out, and no way in but to the local Slack, which cannot be bound to one address.
    assert connections.outside == set()
    open_to_all = {program for program, address in connections.listening if address not in ("127.0.0.1", "::1")}
    assert {program[:11] for program in open_to_all} <= {"local-slack"}
    assert len(connections.listening) >= 3
    wanted = {
        "restored": True,
        "rows_match": True,
        "signatures": 2,
        "refusals": 2,
        "forged_click": "refused",
        "record": "good",
    }
    assert {name: result[name] for name in wanted} == wanted
    assert result["quarantine"].startswith("superprismora_quarantine_")
    assert 0 < result["downtime_s"] <= result["achieved_rto_s"] < 300
    # The bot was killed in the load, and started again; the run went on under the next epoch.
    assert result["takeover_s"] > 1  # how soon is for the benchmark to say
    for line in (
        "A forged click comes in under the name of Selma (security)",
        "The bot has ended (code -9) and is started again.",
        f"The run goes on after {result['takeover_s']:.1f} s",
        "The run has succeeded.",
        "Timeline",
        # What the swap has set aside is evidence of the incident, once, although another worker went on with the run.
        "E-1 collected: Database `superprismora` of ",
    ):
        assert line in said
    assert "E-2 " not in said
    assert directory not in "".join(" ".join(process.info["cmdline"] or []) for process in _all())


def test_a_dropped_table_comes_back_and_nothing_else_moves(run_directory: Path) -> None:
    with DemoProcess("--script", "deletion", "--size", "tiny", within=run_directory) as demo:
        demo.line("Starting the demo in ", within=30)
        code = demo.wait(within=360)
        said = "".join(demo.said)
        result = json.loads(demo.said[-1])
    assert code == 0, said
    assert {name: result[name] for name in ("restored", "rows_match", "others_untouched", "signatures")} == {
        "restored": True,
        "rows_match": True,
        "others_untouched": True,
        "signatures": 2,
    }
    assert result["moment"].startswith("just before the DROP of `public.documents` (transaction ")
    assert 0 < result["achieved_rto_s"] < 300


@pytest.mark.kill
def test_second_demo_runs_beside_the_first_and_each_goes_with_its_owner(run_directory: Path) -> None:
    with (
        DemoProcess("--size", "tiny", within=run_directory) as first,
        DemoProcess("--size", "tiny", within=run_directory) as second,
    ):
        one, two = first.ready(), second.ready()
        assert one.directory != two.directory
        harm = [*DRBOT, "demo", "damage", "--kind", "delete-rows", "--demo", str(one.directory)]
        told = subprocess.run(harm, cwd=ROOT, capture_output=True, text=True, check=True)
        assert "800 rows of `users` deleted" in told.stdout
        assert [_users(demo.production_dsn) for demo in (one, two)] == [200, 1000]
        assert first.stop(signal.SIGINT) == 0
        assert not one.directory.exists()
        assert list(belonging(one.directory)) == []
        assert two.alive
        second.stop(signal.SIGKILL)
        limit = time.monotonic() + 40
        while two.directory.exists() and time.monotonic() < limit:
            time.sleep(0.1)
        assert not two.directory.exists()
        assert list(belonging(two.directory)) == []


def _users(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT count(*) FROM users").fetchone()
    assert row is not None
    return int(row[0])


def _all() -> "list[psutil.Process]":
    return list(psutil.process_iter(["cmdline"]))
