"""An image that the registry of the recovery region lacks is told in the on-call channel, and when it is there."""

from __future__ import annotations

import pytest

from actions.catalog.backup_status import Backups, BackupsParams
from actions.errors import TemporaryError
from actions.steps.alarms import alarms
from actions.steps.health import Health, health
from bot.services.backup_watch import over
from tests.fakes.world import API, APP_DIGEST, MANIFEST, NIGHTLY, WEB, WORKER, World, a_world

UNREADABLE = "unreadable/images:site"


def told(seen: Health) -> dict[str, str]:
    """Of images alone."""
    return {alarm.key: alarm.text for alarm in alarms(seen) if alarm.key.endswith("/images:site")}


def running(image: str) -> World:
    """Everything runs one image."""
    world = a_world(mirrored=True)
    for ref in (API, WEB, WORKER, NIGHTLY):
        world.cluster.workloads[ref].images = (image,)
    return world


async def test_each_that_is_missing_is_an_alarm_until_it_is_there() -> None:
    world = a_world()
    world.cluster.workloads[API].images = (f"app@{APP_DIGEST}", "tool:2")
    found = told(await health(world))
    assert len(found) == 2  # `sidecar:1` of the others as well
    [key] = [key for key, text in found.items() if "`tool:2` is not in the registry" in text]
    assert "A cluster there does not start what needs it." in found[key]
    report = await Backups().read(BackupsParams(), world)
    assert [finding.check for finding in report.findings].count("missing-image") == 2

    between = await health(world, beside=False)
    assert not told(between)
    assert not over(key, set(), between)  # nobody has looked

    world.registry.add("mirror/tool", APP_DIGEST, tag="2")
    good = await health(world)
    assert len(told(good)) == 1
    assert over(key, set(told(good)), good)


async def test_one_that_nothing_needs_any_more_is_over() -> None:
    world = running("tool:2")
    world.git.push({"production/app.yaml": MANIFEST.replace("app:1", f"app@{APP_DIGEST}")})
    await world.manifests.mirror("one", "main")
    [key] = told(await health(world))
    for ref in (API, WEB, WORKER, NIGHTLY):
        world.cluster.workloads[ref].images = (f"app@{APP_DIGEST}",)
    seen = await health(world)
    assert not told(seen)
    assert over(key, set(), seen)


async def no_answer(*_: object) -> None:
    raise TemporaryError("Cluster `main` does not answer.")


@pytest.mark.parametrize("who", ["registry", "cluster"])
async def test_who_does_not_answer_is_one_alarm_and_ends_none(who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world = a_world()
    [key] = told(await health(world))
    world.registry.down = who == "registry"
    if who == "cluster":
        monkeypatch.setattr(world.cluster, "overview", no_answer)
    seen = await health(world)
    [(only, text)] = told(seen).items()
    assert only == UNREADABLE
    assert "does not answer" in text
    assert not over(key, {only}, seen)


async def test_a_mirror_that_cannot_be_read_is_told_by_its_own_alarm_and_ends_none() -> None:
    world = running(f"app@{APP_DIGEST}")
    world.git.push({"production/app.yaml": MANIFEST.replace("app:1", "app:9")})
    await world.manifests.mirror("one", "main")
    [key] = told(await health(world))
    world.git.mirrored.clear()
    world.git.down = True
    seen = await health(world)
    assert not told(seen)
    assert not over(key, set(), seen)


async def test_without_a_registry_in_the_plan_nobody_looks() -> None:
    world = a_world()
    seen = await health(world)
    assert any(copies.subject == "images:site" for copies in seen.beside)
    bare = world.site.model_copy(update={"images": None})
    object.__setattr__(world, "site", bare)
    assert not any(copies.subject == "images:site" for copies in (await health(world)).beside)
