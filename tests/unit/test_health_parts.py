"""A part of the backups that cannot be read at all is told by itself, and hides no other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from actions.catalog.backup_status import Backups, BackupsParams
from actions.errors import PermanentError
from actions.site import BucketPosture
from actions.steps.alarms import alarms
from actions.steps.health import Health, health
from bot.services.backup_watch import BackupWatch, over
from tests.fakes.world import World, a_world


def everything() -> World:
    """With base backups, a mirror of manifests, and a bucket that the store replicates."""
    world = a_world(physical=True, mirrored=True)
    posture = BucketPosture(replicates_to="uploads", used=("dumps/",))
    changed = world.site.buckets["backups"].model_copy(update={"posture": posture})
    world.site.buckets["backups"] = changed  # type: ignore[index]
    return world


def told(seen: Health) -> dict[str, str]:
    return {alarm.key: alarm.text for alarm in alarms(seen)}


async def fails(*_: object, **__: object) -> Sequence[Any]:
    raise PermanentError("The store answered with a page of its provider.")


@pytest.mark.parametrize(
    ("where", "part", "one_of_it"),
    [
        ("actions.steps.health.mirrors", "mirrors", "late-mirror/manifests:production"),
        ("actions.steps.side_copies.replicas", "replicas", "replica/replica:backups"),
        ("actions.steps.side_copies.kit_states", "kits", "restore-kit/kit:backups/restore/"),
    ],
)
async def test_the_others_are_told_and_nothing_of_it_ends(
    monkeypatch: pytest.MonkeyPatch, where: str, part: str, one_of_it: str
) -> None:
    world, key = everything(), f"unreadable/part:{part}"
    before = told(await health(world))
    assert key not in before
    monkeypatch.setattr(where, fails)

    seen = await health(world)
    now = told(seen)
    assert "The store answered with a page of its provider." in now[key]
    subject = one_of_it.partition("/")[2].partition(":")[0]
    assert {other for other in before if not other.partition("/")[2].startswith(f"{subject}:")} <= set(now)
    assert not over(one_of_it, set(now), seen)
    assert over("late-dump/gone", set(now), seen)
    report = await Backups().read(BackupsParams(), world)
    assert any("The store answered with a page" in finding.detail for finding in report.findings)

    monkeypatch.undo()
    good = await health(world)
    assert over(key, set(told(good)), good)
    between = await health(world, beside=False, replicas=False)
    assert over(key, set(), between) is (part == "mirrors")  # the others were not looked at


async def test_a_server_whose_engine_this_version_does_not_know_hides_nothing() -> None:
    world = everything()
    before = set(told(await health(world)))
    policy = world.site.physical["primary"]
    world.site.physical["primary"] = policy.model_copy(update={"engine": "of-tomorrow"})  # type: ignore[index]
    nothing: Any = None

    seen = await BackupWatch(nothing, world, on_call="C0ONCALL").look()
    now = told(seen)
    assert not seen.problem
    assert "There is no engine `of-tomorrow`" in now["unreadable/server:primary"]
    assert "There is no engine `of-tomorrow`" in now["unreadable/part:kits"]
    assert {key for key in before if not key.endswith("server:primary") and "kit:" not in key} <= set(now)
