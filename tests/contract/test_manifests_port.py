"""What the mirrors of manifests keep, on the real engine: bundles, what is told of the repository, drift, images."""

from __future__ import annotations

import io
from datetime import timedelta

import pyrage
import pytest

from actions import registry
from actions.backup.signed_document import SignedDocument
from actions.catalog.manifests import DriftParams, MirrorStateParams
from actions.errors import TemporaryError, UserError, VerificationError
from actions.manifests import What
from actions.steps.alarms import alarms
from actions.steps.health import health
from tests.fakes.files import KEY
from tests.fakes.world import APP_DIGEST, CUSTODIAN, MANIFEST, World, a_world

FOLDER = "manifests/main/"


def a_mirrored_world() -> World:
    return a_world(mirrored=True)


async def folder(world: World, commit: str) -> str:
    """Where the one bundle of that head is."""
    [found] = [each.manifest.key for each in await world.manifests.bundles("main") if each.manifest.commit == commit]
    return found.removesuffix("mirror.bundle.age")


async def test_each_new_head_becomes_a_bundle_that_a_custodian_opens() -> None:
    world = a_mirrored_world()
    first = (await world.manifests.mirror("one", "main")).head
    second = world.git.push({"production/app.yaml": MANIFEST.replace("app:1", "app:2")})

    state = await world.manifests.mirror("two", "main")

    assert (state.head, state.gone, state.rewrites) == (second, False, ())
    bundles = await world.manifests.bundles("main")
    assert {entry.manifest.commit for entry in bundles} == {first, second}
    assert [entry.problem for entry in bundles] == [None, None]
    assert second in await opened(world, f"{await folder(world, second)}mirror.bundle.age")


async def test_a_head_that_has_its_bundle_is_not_stored_again() -> None:
    world = a_mirrored_world()
    head = (await world.manifests.mirror("one", "main")).head
    place = await folder(world, head)
    before = await world.objects.get("backups", f"{place}mirror.bundle.age")

    await world.manifests.mirror("two", "main")

    assert await folder(world, head) == place
    assert await world.objects.get("backups", f"{place}mirror.bundle.age") == before


async def test_what_is_pushed_to_another_branch_is_in_a_bundle_as_well() -> None:
    world = a_mirrored_world()
    head = (await world.manifests.mirror("one", "main")).head
    world.clock.advance(timedelta(minutes=15))
    other = world.git.push({"app.yaml": "a: 1"}, branch="next")

    await world.manifests.mirror("two", "main")

    newest, first = await world.manifests.bundles("main")
    assert (newest.manifest.commit, first.manifest.commit, newest.problem, first.problem) == (head, head, None, None)
    assert other in await opened(world, newest.manifest.key)
    assert other not in await opened(world, first.manifest.key)


async def test_other_branches_get_their_bundle_where_the_one_of_the_plan_is_gone() -> None:
    world = a_mirrored_world()
    await world.manifests.mirror("one", "main")
    world.clock.advance(timedelta(minutes=15))
    del world.git.branches["main"]
    other = world.git.push({"app.yaml": "a: 1"}, branch="trunk")

    assert (await world.manifests.mirror("two", "main")).gone

    assert other in await opened(world, (await world.manifests.bundles("main"))[0].manifest.key)


async def test_a_bundle_of_an_earlier_version_still_counts() -> None:
    world = a_mirrored_world()
    head = (await world.manifests.mirror("one", "main")).head
    [entry] = await world.manifests.bundles("main")
    old = entry.manifest.model_copy(update={"key": f"{FOLDER}{head}/mirror.bundle.age"})
    signed = SignedDocument.sign("manifests-bundle", old, KEY)
    await world.objects.put("backups", old.key, await world.objects.get("backups", entry.manifest.key))
    await world.objects.put("backups", f"{FOLDER}{head}/manifest.json", signed.bytes())

    found = await world.manifests.bundles("main")

    assert [each.problem for each in found] == [None, None]
    assert old in [each.manifest for each in found]


async def opened(world: World, key: str) -> str:
    plain = io.BytesIO()
    stored = await world.objects.get("backups", key)
    pyrage.decrypt_io(io.BytesIO(stored), plain, [pyrage.x25519.Identity.from_str(CUSTODIAN)])
    return plain.getvalue().decode()


async def test_a_push_with_force_and_a_branch_that_is_gone_are_named_and_nothing_is_lost() -> None:
    world = a_mirrored_world()
    old = (await world.manifests.mirror("one", "main")).head
    new = world.git.push({"production/app.yaml": f"{MANIFEST}\n"}, onto="")

    state = await world.manifests.mirror("two", "main")
    assert [(each.before, each.after) for each in state.rewrites] == [(old, new)]
    del world.git.branches["main"]
    state = await world.manifests.mirror("three", "main")

    assert (state.gone, state.head) == (True, new)
    assert {entry.manifest.commit for entry in await world.manifests.bundles("main")} == {old, new}
    told = [alarm.text for alarm in alarms(await health(world)) if alarm.key.endswith("/manifests:main")]
    assert any("was rewritten" in text and old[:12] in text for text in told)
    assert any("is gone" in text and new[:12] in text for text in told)


async def test_a_late_mirror_is_an_alarm_until_the_next_look() -> None:
    world = a_mirrored_world()
    await world.manifests.mirror("one", "main")
    assert not [alarm for alarm in alarms(await health(world)) if "mirror" in alarm.key]
    world.clock.advance(timedelta(hours=1))
    world.git.down = True
    with pytest.raises(TemporaryError):
        await world.manifests.mirror("two", "main")

    [late] = [alarm for alarm in alarms(await health(world)) if "mirror" in alarm.key]

    assert late.key == "late-mirror/manifests:main"
    assert "1 h old" in late.text


@pytest.mark.corruption
@pytest.mark.parametrize("damage", ["forged", "cut", "lost"])
async def test_a_bundle_that_does_not_check_is_named_and_made_again(damage: str) -> None:
    world = a_mirrored_world()
    head = (await world.manifests.mirror("one", "main")).head
    place = await folder(world, head)
    bundle, manifest = f"{place}mirror.bundle.age", f"{place}manifest.json"
    if damage == "forged":
        body = await world.objects.get("backups", manifest)
        await world.objects.put("backups", manifest, body.replace(b"git.example", b"git.evil.example"))
    elif damage == "cut":
        await world.objects.put("backups", bundle, b"age")
    else:
        await world.objects.delete("backups", bundle)
    assert [entry.problem is None for entry in await world.manifests.bundles("main")] == [False]

    await world.manifests.mirror("two", "main")

    assert [entry.problem for entry in await world.manifests.bundles("main")] == [None]


@pytest.mark.corruption
async def test_a_forged_state_is_not_believed() -> None:
    world = a_mirrored_world()
    await world.manifests.mirror("one", "main")
    body = await world.objects.get("backups", f"{FOLDER}state.json")
    await world.objects.put("backups", f"{FOLDER}state.json", body.replace(b'"gone":false', b'"gone":true'))

    with pytest.raises(VerificationError, match="changed or forged"):
        await world.manifests.state("main")
    assert [alarm.key for alarm in alarms(await health(world)) if "manifests" in alarm.key] == [
        "unreadable/manifests:main"
    ]


async def test_without_a_mirror_drift_says_what_to_do() -> None:
    with pytest.raises(UserError, match="dr manifests mirror main"):
        await a_mirrored_world().manifests.drift("main")


async def test_drift_is_against_the_commit_that_the_controller_has_applied() -> None:
    world = a_mirrored_world()
    applied = (await world.manifests.mirror("one", "main")).head
    world.git.push({"production/app.yaml": MANIFEST.replace("app:1", "app:2")})
    await world.manifests.mirror("two", "main")
    for each in world.cluster.workloads.values():
        if each.gitops is not None:
            each.gitops = each.gitops.model_copy(update={"revision": f"main@sha1:{applied}", "status": "OutOfSync"})
    container = {"name": "app", "image": "app:3"}
    spec = {"replicas": 3, "template": {"spec": {"containers": [container]}}}
    meta = {"name": "api", "namespace": "shop"}
    world.live.held.append({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec})

    drift = await world.manifests.drift("main")
    report = await registry.query("status.drift").read(DriftParams(), world)

    assert drift.commit == applied
    [entry] = drift.entries
    assert (entry.what, entry.path) == (What.CHANGED, "spec.template.spec.containers[app].image")
    assert (entry.wanted, entry.found) == ("app:1", "app:3")
    assert any("OutOfSync" in line for line in report.lines)
    assert report.rows == (("changed", "Deployment shop/api", entry.path, "app:1", "app:3"),)


async def test_images_that_only_the_manifests_name_are_looked_for() -> None:
    world = a_mirrored_world()
    world.git.push({"production/app.yaml": MANIFEST.replace("app:1", "app:9")})
    assert any("no mirror" in part.problem for part in await world.points.images())
    await world.manifests.mirror("one", "main")

    images = {part.image: part for part in await world.points.images()}

    assert images["app:9"].held is False
    assert "not in the registry" in images["app:9"].problem


async def test_manifests_of_a_cluster_that_is_not_there_yet_are_read_for_their_images() -> None:
    world = a_mirrored_world()
    recovery = world.site.manifests["main"].model_copy(update={"name": "recovery", "path": "recovery", "cluster": ""})
    world.site.manifests["recovery"] = recovery  # type: ignore[index]  # a mapping for those who read it
    manifest = MANIFEST.replace("app:1", f"registry.example/team/app@{APP_DIGEST}")
    world.git.push({"production/app.yaml": MANIFEST, "recovery/app.yaml": manifest})
    for name in ("main", "recovery"):
        await world.manifests.mirror("one", name)
    world.registry.add("team/app", APP_DIGEST)

    images = {part.image: part for part in await world.points.images()}
    there = images[f"registry.example/team/app@{APP_DIGEST}"]
    assert (there.repository, there.held, there.problem) == ("team/app", True, "")  # no mirror of the plan is asked
    await world.points.record("point-1")
    assert f"team/app@{APP_DIGEST}\n" in (await world.objects.get("uploads-copy", "images/kept.txt")).decode()

    with pytest.raises(UserError, match="of no cluster that is there"):
        await world.manifests.drift("recovery")
    report = await registry.query("status.drift").read(DriftParams(), world)
    assert report.title.startswith("`main` beside `main`")


async def test_the_status_prints_the_commands_that_give_it_back() -> None:
    world = a_mirrored_world()
    head = (await world.manifests.mirror("one", "main")).head
    place = await folder(world, head)

    report = await registry.query("status.manifests").read(MirrorStateParams(), world)

    assert any(f"{place}mirror.bundle.age" in line for line in report.lines)
    assert any("git clone --mirror" in line for line in report.lines)
