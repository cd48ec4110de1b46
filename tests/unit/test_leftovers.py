"""What a dead load left: what may be removed, and what never."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from actions.backup.leftovers import QUIET, QUIET_UNKNOWN, Leftover, LeftoverKind, Story, leftovers, reason_to_keep
from actions.ports import RoleFacts
from actions.site import DatabaseRef
from tests.fakes.world import START, a_site, a_world

DEBRIS = Leftover(kind=LeftoverKind.DATABASE, server="primary", name="shop_restore_p1", mark="drbot:scratch:p1", oid=7)
ROLE = Leftover(kind=LeftoverKind.ROLE, server="primary", name="drbot_load_1", mark="drbot:scratch:p1")
FAILED = Story(known=True, ended_at=START - timedelta(hours=1))
SITE = a_site()


def kept(item: Leftover, story: Story, *, idle: timedelta = QUIET, now_in: timedelta = timedelta(0)) -> str | None:
    now = START + now_in
    return reason_to_keep(item, story, SITE, seen=now - idle, now=now)


@pytest.mark.parametrize("item", [DEBRIS, ROLE])
def test_debris_of_a_run_that_is_over_goes_once_it_was_idle(item: Leftover) -> None:
    assert kept(item, FAILED) is None
    assert "once it was idle" in (kept(item, FAILED, idle=QUIET - timedelta(seconds=1)) or "")
    assert reason_to_keep(item, FAILED, SITE, seen=None, now=START) is not None


@pytest.mark.parametrize("item", [DEBRIS, ROLE])
def test_debris_of_an_unknown_plan_waits_for_a_day(item: Leftover) -> None:
    assert "nothing is known of plan p1" in (kept(item, Story()) or "")
    assert kept(item, Story(), idle=QUIET_UNKNOWN) is None


@pytest.mark.parametrize(
    ("item", "story", "words"),
    [
        (DEBRIS, Story(known=True), "Run p1 is not over"),
        (ROLE, Story(known=True), "Run p1 is not over"),
        (DEBRIS.model_copy(update={"sessions": 1}), FAILED, "1 session(s) use it"),
        (ROLE.model_copy(update={"sessions": 2}), FAILED, "2 session(s) use it"),
        (DEBRIS.model_copy(update={"mark": "", "name": "drbot_new_0"}), Story(), "has no mark"),
        (DEBRIS.model_copy(update={"mark": "drbot:quarantine:p1"}), FAILED, "has no mark"),
        (DEBRIS.model_copy(update={"mark": "drbot:live:p1"}), FAILED, "has no mark"),
        (DEBRIS.model_copy(update={"name": "shop"}), FAILED, "serves people"),
        (DEBRIS.model_copy(update={"server": "spare", "name": "shop"}), Story(), "serves people"),
        (
            DEBRIS.model_copy(update={"server": "spare", "name": "shop"}),
            FAILED.model_copy(update={"succeeded": True}),
            "serves people",
        ),
    ],
)
def test_what_is_never_removed(item: Leftover, story: Story, words: str) -> None:
    assert words in (kept(item, story, idle=timedelta(days=99)) or "")


def test_half_a_copy_on_a_spare_server_is_debris_when_its_run_failed() -> None:
    assert kept(DEBRIS.model_copy(update={"server": "spare", "name": "shop"}), FAILED) is None


def test_complete_copy_is_kept_as_long_as_a_quarantine() -> None:
    whole = FAILED.model_copy(update={"whole": True})
    week = SITE.databases["shop"].quarantine - timedelta(hours=1)
    assert "is kept until 2026-11-30 09:12 UTC" in (kept(DEBRIS, whole) or "")
    assert kept(DEBRIS, whole, now_in=week - timedelta(seconds=1)) is not None
    assert kept(DEBRIS, whole, now_in=week) is None
    assert kept(ROLE, whole) is None


async def test_only_our_marks_and_names_are_found_and_silent_servers_are_told() -> None:
    world = a_world()
    marks: dict[str, Any] = {
        "scratch": "drbot:scratch:p1",
        "live": "drbot:live:p1",
        "aside": "drbot:quarantine:p1",
        "theirs": "scratch of somebody",
        "drbot_new_1": "",
        "plain": "",
    }
    for name, mark in marks.items():
        world.postgres.add(DatabaseRef("primary", name), mark=mark)
    role = RoleFacts(name="drbot_give_1", mark="drbot:scratch:p1", sessions=0)
    world.postgres.servers["primary"].loading[role.name] = role
    world.postgres.servers["spare"].down = True
    found, silent = await leftovers(world)
    assert [item.name for item in found] == ["drbot_new_1", "scratch", "drbot_give_1"]
    assert [item.plan for item in found] == ["", "p1", "p1"]
    assert silent == ["spare"]
