"""The demo as a new user meets it: the stories without hands, and a demo that is gone when it is left."""

import json

import psutil
import pytest

from tests.fixtures.stories import RestoredDemo, TwoDemos

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900), pytest.mark.xdist_group("demo")]


def test_story_ends_with_everything_restored(restored: RestoredDemo, two_demos: TwoDemos) -> None:
    said = "".join(two_demos.restored.said)
    assert two_demos.restored.code == 0, said
    result = json.loads(two_demos.restored.said[-1])
    # No way out, and no way in but to the local Slack, which cannot be bound to one address.
    connections = restored.connections
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
    directory = str(restored.demo.directory)
    assert directory not in "".join(" ".join(process.info["cmdline"] or []) for process in _all())


def test_a_dropped_table_comes_back_and_nothing_else_moves(two_demos: TwoDemos) -> None:
    said = two_demos.deletion.said
    assert two_demos.deletion.code == 0, "".join(said)
    result = json.loads(said[-1])
    assert {name: result[name] for name in ("restored", "rows_match", "others_untouched", "signatures")} == {
        "restored": True,
        "rows_match": True,
        "others_untouched": True,
        "signatures": 2,
    }
    assert result["moment"].startswith("just before the DROP of `public.documents` (transaction ")
    assert 0 < result["achieved_rto_s"] < 300


def test_second_demo_runs_beside_the_first_and_each_goes_with_its_owner(two_demos: TwoDemos) -> None:
    first, second = two_demos.restored, two_demos.deletion
    assert first.demo.directory != second.demo.directory
    assert "800 rows of `users` deleted" in two_demos.harm
    assert two_demos.users == [200, 1000]
    assert second.remains == []
    assert two_demos.restored_stays
    assert first.code == 0
    assert first.remains == []
    assert two_demos.watch.found == set(), "secrets on command lines or in titles when a demo ends"


def _all() -> "list[psutil.Process]":
    return list(psutil.process_iter(["cmdline"]))
