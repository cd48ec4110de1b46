"""The way back without the bot: it lies beside the backups, says what is there, and is not believed when changed."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from actions import registry
from actions.backup.pgbackrest_keys import PgBackRestKeys
from actions.backup.signing import Signed
from actions.catalog.backup_status import BackupsParams
from actions.contract import Verdict
from actions.steps.alarms import alarms
from actions.steps.health import health
from actions.steps.kit_page import PAGE, PROGRAM, page
from actions.steps.restore_kit import (
    KIT,
    KitState,
    RestoreKit,
    kit_findings,
    kit_places,
    kit_states,
    place_kits,
    program,
)
from bot.services.backup_watch import BackupWatch
from tests.fakes.physical_world import FAR, SERVER, a_base, with_bases, with_two_buckets
from tests.fakes.world import SECRETS, START, World


def stored(world: World, name: str) -> list[str]:
    return sorted(
        f"{bucket}/{key}" for bucket, objects in world.objects.buckets.items() for key in objects if key.endswith(name)
    )


def stored_under(world: World, prefix: str) -> dict[str, object]:
    return {key: found for key, found in world.objects.buckets["backups"].items() if key.startswith(prefix)}


async def the_only(world: World, place: str = "physical/") -> KitState:
    [state] = [state for state in await kit_states(world) if state.place.prefix == place]
    return state


def page_of(world: World, folder: str) -> str:
    return world.objects.buckets["backups"][f"{folder}{PAGE}"].body.decode()


async def test_it_is_written_once_and_again_after_a_full_backup_and_nothing_is_touched() -> None:
    world = with_bases()
    assert len(await place_kits(world)) == len(kit_places(world.site)) == 2
    first = {name: dict(objects) for name, objects in world.objects.buckets.items()}
    assert await place_kits(world) == []
    assert {name: dict(objects) for name, objects in world.objects.buckets.items()} == first

    world.clock.advance(timedelta(days=1))
    world.physical.entries[SERVER, "base-next"] = a_base("base-next", START + timedelta(days=1))
    assert len(await place_kits(world)) == 2
    for bucket, objects in first.items():
        assert objects.items() <= world.objects.buckets[bucket].items()
    state = await the_only(world)
    assert (state.problem, state.kit is not None and state.kit.made_at == world.clock.now()) == ("", True)
    assert "`base-next`, which ended" in page_of(world, state.folder)
    assert "base-full" not in page_of(world, state.folder)


async def test_old_ones_go_but_for_the_newest_and_what_is_not_ours() -> None:
    """A new page every fourth day: after thirty days there are more than the newest seven."""
    world = with_bases()
    await place_kits(world)
    foreign = dict(stored_under(world, "physical/restore/"))
    first = next(iter(sorted(foreign))).rpartition("/")[0]
    strange = "physical/restore/20260101T000000Z-0123456789ab/"
    body = Signed[RestoreKit].sign(RestoreKit(made_at=START, files={}), Ed25519PrivateKey.generate()).body()
    await world.objects.put("backups", f"{strange}{KIT}", body)
    await world.objects.put("backups", "physical/restore/notes/of-ours.txt", b"kept")
    for number in range(1, 13):
        world.clock.advance(timedelta(days=4))
        name = f"base-{number}"
        world.physical.entries[SERVER, name] = a_base(name, world.clock.now())
        await place_kits(world)
    left = {key.split("/")[2] for key in stored_under(world, "physical/restore/")}
    assert {"notes", strange.split("/")[2]} <= left
    made = sorted(left - {"notes", strange.split("/")[2]})
    ages = [world.clock.now() - datetime.strptime(each[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC) for each in made]
    assert max(ages) == timedelta(days=28)
    assert len(made) == 8
    assert first.split("/")[2] not in left
    assert (await the_only(world)).problem == ""


async def test_as_long_as_the_newest_is_not_what_was_written_nothing_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    world = with_bases()
    for number in range(9):
        world.physical.entries[SERVER, f"base-{number}"] = a_base(f"base-{number}", world.clock.now())
        await place_kits(world)
        world.clock.advance(timedelta(days=5))
    before = set(stored_under(world, "physical/restore/"))
    put = world.objects.put

    async def cut_off(bucket: str, key: str, body: bytes, *, only_if_absent: bool = False) -> None:
        await put(bucket, key, body[:-1] if key.endswith(PAGE) else body, only_if_absent=only_if_absent)

    monkeypatch.setattr(world.objects, "put", cut_off)
    world.physical.entries[SERVER, "base-last"] = a_base("base-last", world.clock.now())
    await place_kits(world)
    assert before < set(stored_under(world, "physical/restore/"))


async def test_the_page_has_every_command_with_its_names_and_no_secret() -> None:
    world = with_bases()
    text = page(world.site, {SERVER: await world.physical.catalogue(SERVER)})

    begin = "python3 restore.py {} --from 's3://backups/{}?"
    for command, prefix in (("list", "dumps/"), ("dump", "dumps/"), ("list", "physical/"), ("server", "physical/")):
        assert begin.format(command, prefix) in text or begin.format(command, prefix).replace("'", "") in text
    assert "--database shop --new shop_restored" in text
    assert f"--server {SERVER} --wal " in text
    assert "aws s3 cp s3://backups/physical/base-full/base.age" in text.replace("--endpoint-url http://s3.example ", "")
    assert "pg_verifybackup" in text
    assert world.site.physical[SERVER].trusted_signers[0] in text
    secrets = [value for name, value in SECRETS.items() if not name.startswith("in the")]
    assert not [value for value in secrets if value in text]


async def test_the_repository_of_pgbackrest_is_left_alone_and_its_commands_are_told() -> None:
    world = with_bases()
    policy = world.site.physical[SERVER].model_copy(
        update={"engine": "pgbackrest", "own": PgBackRestKeys(stanza="shop")}
    )
    site = world.site.model_copy(update={"physical": {SERVER: policy}})

    assert [place.prefix for place in kit_places(site)] == ["dumps/"]
    text = page(site, {SERVER: await world.physical.catalogue(SERVER)})
    assert "pgbackrest --stanza=shop" in text
    assert "restore.py server" not in text


async def test_what_is_missing_or_was_changed_is_told_and_put_right() -> None:
    world = with_bases()
    assert (await the_only(world)).problem == "there is none"
    await place_kits(world)
    good = await the_only(world)

    changed = world.objects.buckets["backups"]
    key = f"{good.folder}{PROGRAM}"
    changed[key] = replace(changed[key], body=changed[key].body + b"\n")
    assert "is not what was stored" in (await the_only(world)).problem
    world.clock.advance(timedelta(hours=1))
    assert len(await place_kits(world)) == 1
    assert (await the_only(world)).problem == ""

    del changed[f"{(await the_only(world)).folder}{PAGE}"]
    assert f"{PAGE}` is not what was stored" in (await the_only(world)).problem


async def test_a_newer_one_that_a_stranger_has_signed_does_not_count() -> None:
    world = with_bases()
    await place_kits(world)
    good = await the_only(world)
    kit = RestoreKit(made_at=world.clock.now(), files={})
    forged = Signed[RestoreKit].sign(kit, Ed25519PrivateKey.generate()).body()
    await world.objects.put("backups", f"physical/restore/99991231T000000Z-0/{KIT}", forged)

    assert await the_only(world) == good
    assert await place_kits(world) == []


async def test_one_of_another_version_of_the_bot_is_told_and_replaced() -> None:
    world = with_bases()
    await place_kits(world)
    old = await the_only(world)
    assert old.kit is not None
    objects = world.objects.buckets["backups"]
    for name in (PROGRAM, PAGE):  # as an older version had them
        objects[f"{old.folder}{name}"] = replace(objects[f"{old.folder}{name}"], body=b"older")
    from hashlib import sha256

    from tests.fakes.backups import SIGNING_KEY

    older = RestoreKit(made_at=START, files=dict.fromkeys((PROGRAM, PAGE), sha256(b"older").hexdigest()))
    objects[f"{old.folder}{KIT}"] = replace(
        objects[f"{old.folder}{KIT}"], body=Signed[RestoreKit].sign(older, SIGNING_KEY).body()
    )

    assert "another version" in (await the_only(world)).problem
    world.clock.advance(timedelta(minutes=1))
    assert len(await place_kits(world)) == 1
    assert (await the_only(world)).problem == ""


async def test_the_alarm_the_doctor_and_the_status_say_whether_it_is_there() -> None:
    world = with_bases()

    async def told() -> dict[str, str]:
        found = alarms(await health(world))
        return {alarm.key: alarm.text for alarm in found if "restore-kit" in alarm.key}

    status = registry.query("status.backups")
    assert set(await told()) == {"restore-kit/kit:backups/dumps/restore/", "restore-kit/kit:backups/physical/restore/"}
    assert "there is none" in (await told())["restore-kit/kit:backups/physical/restore/"]
    assert {finding.verdict for finding in await kit_findings(world)} == {Verdict.WARN}
    assert "restore-kit" in {finding.check for finding in (await status.read(BackupsParams(), world)).findings}

    await place_kits(world)
    assert await told() == {}
    assert {finding.verdict for finding in await kit_findings(world)} == {Verdict.OK}
    report = await status.read(BackupsParams(), world)
    assert [line for line in report.lines if (await the_only(world)).folder in line]
    world.objects.down = True
    assert await told() == {}  # nobody knows: `unreadable` tells that
    assert "unreadable/kit:backups/physical/restore/" in {alarm.key for alarm in alarms(await health(world))}


async def test_the_watch_of_backups_writes_it_before_it_looks_and_after_a_full_backup() -> None:
    world = with_bases()
    nothing: Any = None
    watch = BackupWatch(nothing, world, on_call="C0ONCALL")

    assert not [
        copies for copies in (await watch.look()).beside if copies.subject.startswith("kit:") and copies.troubles
    ]
    assert len(stored(world, KIT)) == 2
    world.clock.advance(timedelta(minutes=1))
    await watch.look()
    assert len(stored(world, KIT)) == 2
    world.physical.entries[SERVER, "base-inc"] = a_base("base-inc", START, parent="base-full")
    await watch.look()
    assert len(stored(world, KIT)) == 2
    world.physical.entries[SERVER, "base-next"] = a_base("base-next", START + timedelta(minutes=1))
    await watch.look()
    assert len(stored(world, KIT)) == 4


@pytest.mark.parametrize("document", [False, True])
async def test_the_signature_is_over_what_the_page_says_it_is(*, document: bool) -> None:
    """`RestoreKit`, a new line, and the document as `jq -cS` prints it."""
    from actions.byhand import restore

    world = with_bases()
    await place_kits(world)
    folder = (await the_only(world)).folder
    body = json.loads(world.objects.buckets["backups"][f"{folder}{KIT}"].body)
    if document:
        body["document"]["files"][PROGRAM] = "0" * 64
    payload = b"RestoreKit\n" + json.dumps(body["document"], sort_keys=True, separators=(",", ":")).encode()
    assert restore.holds(payload, body["signer"], body["signature"]) is not document


def test_the_program_is_the_file_that_is_tested() -> None:
    assert program().startswith(b"#!/usr/bin/env python3\n")


async def test_it_lies_beside_both_copies_of_the_base_backups_and_its_page_names_them() -> None:
    world = with_two_buckets()
    assert FAR in {place.bucket for place in kit_places(world.site)}
    await place_kits(world)
    [body] = [item.body.decode() for key, item in world.objects.buckets[FAR].items() if key.endswith("RESTORE.md")]
    assert f"`s3://backups/physical/base/primary/`, `s3://{FAR}/physical/base/primary/`, WAL in" in body
    assert re.search(rf"restore.py server --from 's3://backups/physical/\?\S+ --from 's3://{FAR}/physical/\?", body)
