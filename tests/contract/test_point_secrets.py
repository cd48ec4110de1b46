"""Secrets that nothing but a recovery point brings back: sealed with it, shown beside it, and given back."""

from __future__ import annotations

import io
import json
from datetime import timedelta

import pyrage
import pytest

from actions import registry
from actions.catalog.escrow import secrets_findings
from actions.catalog.point_restore import RestorePointParams
from actions.catalog.points import PointsParams
from actions.contract import Plan, Verdict
from actions.errors import PermanentError, UserError
from actions.ports import no_progress
from actions.runner import Outcome
from actions.steps.point_secrets import unrolled
from actions.steps.point_share import Share
from actions.steps.secret_return import KeepSecrets, ReturnSecrets
from tests.contract.kit import PLAN_ID, MemoryJournal, run, secrets_in
from tests.fakes.history import NEWER, POINT, a_secret, with_sealed_secrets, with_secrets
from tests.fakes.world import API, CUSTODIAN, START, World

OLDER = a_secret("x", version=1)["data"]["key"]
COPY = f"escrow-secrets/main/{POINT}/secrets.age"


async def planned(world: World, secret: str = "") -> Plan:
    params = RestorePointParams(point=POINT, secret=secret)
    return await registry.action("restore.recovery_point").plan(params, world, PLAN_ID)


def value_of(world: World, name: str) -> str | None:
    return next((each["data"]["key"] for each in world.live.held if each["metadata"]["name"] == name), None)


def by_hand(plan: Plan) -> dict[str, str]:
    return {
        finding.check.removeprefix("by hand: "): f"{finding.detail} {finding.hint}"
        for finding in plan.findings
        if finding.check.startswith("by hand: ")
    }


def returned(plan: Plan) -> tuple[str, ...]:
    return tuple(each.short for step in plan.steps if isinstance(step, ReturnSecrets) for each in step.secrets)


async def opened(world: World, key: str) -> dict[str, str]:
    plain = io.BytesIO()
    stored = io.BytesIO(await world.objects.get("backups", key))
    pyrage.decrypt_io(stored, plain, [pyrage.x25519.Identity.from_str(CUSTODIAN)])
    return {item["metadata"]["name"]: item["data"]["key"] for item in json.loads(plain.getvalue())["items"]}


async def test_a_point_seals_what_nothing_else_brings_back_and_names_what_something_does() -> None:
    world = with_secrets()

    point = await world.points.record(POINT)

    [part] = point.sealed
    assert [each.name for each in part.secrets] == [
        f"Secret main/shop/{name}" for name in ("database", "licence", "mail")
    ]
    assert dict(part.brought) == {"Secret main/shop/token": "SealedSecret token"}
    assert set(await opened(world, COPY)) == {"database", "licence", "mail"}
    for bucket in ("backups", "uploads-copy"):
        for facts in await world.objects.list(bucket, ""):
            assert secrets_in((await world.objects.get(bucket, facts.key)).decode(errors="replace")) == []
    assert (await world.points.find(POINT)) is not None
    assert point == await world.points.record(POINT)


async def test_without_the_key_of_the_plan_file_nothing_is_sealed() -> None:
    world = with_secrets(sealed=False)

    assert (await world.points.record(POINT)).sealed == ()
    assert await world.secret_copies.entries("main") == []


async def test_what_cannot_be_read_or_sealed_is_said_and_the_point_is_recorded() -> None:
    world = with_secrets()
    world.live.refused.add("Secret")

    point = await world.points.record(POINT)

    assert point.sealed == ()
    assert any("are not sealed: no right to it" in sentence for sentence in point.missing)
    [finding] = await secrets_findings("main", world)
    assert (finding.verdict, "cannot seal" in finding.detail) == (Verdict.WARN, True)


async def test_the_doctor_tries_the_right_to_give_back() -> None:
    world = with_secrets()
    [finding] = await secrets_findings("main", world)
    assert (finding.verdict, finding.detail) == (Verdict.OK, "3 are sealed with each recovery point")

    world.secret_objects.closed = True
    [finding] = await secrets_findings("main", world)
    assert (finding.verdict, "no right to it" in finding.detail) == (Verdict.WARN, True)
    assert world.secret_objects.writes == 0


async def test_what_is_missing_comes_back_and_what_has_changed_stays_as_it_is() -> None:
    world, journal = with_sealed_secrets(), MemoryJournal()
    plan = await planned(world)

    result = await run(plan, world, journal)

    assert result.outcome is Outcome.SUCCEEDED, result.message
    assert returned(plan) == ("shop/mail",)
    assert (value_of(world, "mail"), value_of(world, "database")) == (OLDER, NEWER)
    assert "`--secret shop/database` takes it back" in by_hand(plan)["secret shop/database"]
    assert not any(isinstance(step, KeepSecrets) for step in plan.steps)
    assert "Secret main/shop/mail" not in journal.lines[-1].detail
    assert secrets_in(f"{plan.model_dump_json()} {journal.lines}") == []


async def test_what_the_launcher_names_is_kept_first_then_replaced_while_nothing_reads_it() -> None:
    world, journal = with_sealed_secrets(), MemoryJournal()
    plan = await planned(world, "database")
    kinds = [step.kind for step in plan.steps]
    order = ("keep_secrets", "stop_writers", "return_secrets", "start_writers")
    assert sorted(order, key=kinds.index) == list(order)

    assert (await run(plan, world, journal)).outcome is Outcome.SUCCEEDED

    assert (value_of(world, "mail"), value_of(world, "database")) == (OLDER, OLDER)
    assert await opened(world, f"escrow-secrets/main/before-{PLAN_ID}/secrets.age") == {"database": NEWER}
    assert any(finding.check == "passwords" for finding in plan.findings)
    assert "Secret main/shop/database" not in journal.lines[-1].detail
    assert secrets_in(f"{plan.model_dump_json()} {journal.lines}") == []


async def test_pods_that_do_not_start_anew_are_named_but_not_the_next_job_of_a_cron_job() -> None:
    plan = await planned(with_sealed_secrets(), "database")
    share = Share(steps=tuple(step for step in plan.steps if isinstance(step, ReturnSecrets)))

    lines = [line.command for line in unrolled(with_sealed_secrets(), share, [API])]

    assert [command.split()[-1] for command in lines] == ["deployment/web", "statefulset/worker"]


async def test_a_failure_later_puts_the_replaced_one_back_and_leaves_the_missing_one_there() -> None:
    world = with_sealed_secrets(health="it answers 500")
    plan = await planned(world, "shop/database")

    result = await run(plan, world, MemoryJournal())

    assert result.outcome is Outcome.FAILED
    assert (value_of(world, "mail"), value_of(world, "database")) == (OLDER, NEWER)


async def test_a_secret_written_since_the_signatures_asks_for_new_ones() -> None:
    world = with_sealed_secrets()
    plan = await planned(world, "database")
    world.live.held[0] = a_secret("database", version=62, value=NEWER)

    result = await run(plan, world, MemoryJournal())

    assert result.outcome is Outcome.STALE
    assert "is at version 62 now, and it was planned for when it was at version 61" in result.message
    assert world.secret_objects.writes == 0


async def test_one_that_appears_while_the_run_goes_on_is_not_written_over() -> None:
    world = with_sealed_secrets()
    plan = await planned(world)
    [step] = [step for step in plan.steps if isinstance(step, ReturnSecrets)]
    theirs = a_secret("mail", version=70, value=NEWER)
    world.live.held.append(theirs)

    assert await step.probe(world) == "unknown"
    with pytest.raises(Exception, match="another one than was looked at"):
        await step.apply(world, no_progress)

    assert value_of(world, "mail") == NEWER


async def test_undo_does_not_write_over_what_somebody_wrote_since() -> None:
    world = with_sealed_secrets()
    plan = await planned(world, "database")
    steps = [step for step in plan.steps if isinstance(step, KeepSecrets | ReturnSecrets)]
    for step in steps:
        await step.apply(world, no_progress)
        await step.verify(world)
    world.live.held[0] = a_secret("database", version=990, value="dGhlaXJz")

    with pytest.raises(PermanentError, match="written by somebody else since"):
        await steps[-1].undo(world)

    assert value_of(world, "database") == "dGhlaXJz"


async def test_after_a_breach_or_a_rotation_nothing_comes_back_by_itself_and_nothing_is_taken_back() -> None:
    world = with_sealed_secrets()
    world.runs.exposures.append((START, "Incident 7 `Security Breach` was declared 2026-11-23 10:12 UTC."))

    plan = await planned(world)
    assert returned(plan) == ()
    assert "may be so on purpose: Incident 7" in by_hand(plan)["secret shop/mail"]
    with pytest.raises(UserError, match="not taken back to its value of the point: Incident 7"):
        await planned(world, "database")
    assert returned(await planned(world, "mail")) == ("shop/mail",)


async def test_a_breach_between_signing_and_start_stops_the_run() -> None:
    world = with_sealed_secrets()
    plan = await planned(world)
    world.runs.exposures.append((START, "Incident 7 `Security Breach` was declared."))

    result = await run(plan, world, MemoryJournal())

    assert result.outcome is Outcome.STALE
    assert "Incident 7" in result.message


async def test_names_that_fit_nothing_are_told_what_there_is() -> None:
    with pytest.raises(UserError, match=r"no sealed Secret `token`\. It has: `main/shop/database`"):
        await planned(with_sealed_secrets(), "token")


async def test_without_the_identity_custodians_get_the_commands() -> None:
    world = with_sealed_secrets()
    del world.escrow_secrets.values["env:CUSTODIAN"]

    plan = await planned(world)

    assert returned(plan) == ()
    line = by_hand(plan)["secret shop/mail"]
    assert "env:CUSTODIAN" in line
    assert f"s3://backups/{COPY}" in line
    assert "kubectl --context main -n shop create -f -" in line


async def test_an_immutable_secret_is_refused_when_it_is_named() -> None:
    world = with_sealed_secrets()
    world.live.held[0]["immutable"] = True

    with pytest.raises(UserError, match="cannot be brought back"):
        await planned(world, "database")


async def test_one_that_a_controller_writes_by_now_is_left_to_it() -> None:
    world = with_sealed_secrets()
    world.live.held[0]["metadata"]["labels"] = {"reconcile.external-secrets.io/managed": "true"}

    plan = await planned(world, "database")

    assert "an ExternalSecret writes it since" in by_hand(plan)["secret shop/database"]
    assert returned(plan) == ("shop/mail",)


async def test_a_label_that_others_write_is_no_change_of_the_secret() -> None:
    world = with_sealed_secrets()
    world.live.held[0] = a_secret("database", version=77)
    world.live.held[0]["metadata"]["labels"] = {"team": "shop"}

    plan = await planned(world)

    assert "secret shop/database" not in by_hand(plan)


@pytest.mark.corruption
async def test_a_sealed_copy_that_was_changed_gives_nothing_back() -> None:
    world = with_sealed_secrets()
    plan = await planned(world)
    stored = bytearray(await world.objects.get("backups", COPY))
    stored[-1] ^= 1
    await world.objects.put("backups", COPY, bytes(stored))

    assert "not what was signed" in by_hand(await planned(world))["secret shop/mail"]
    result = await run(plan, world, MemoryJournal())
    assert result.outcome is Outcome.STALE  # while everything still runs
    assert "not what was signed" in result.message
    assert value_of(world, "mail") is None


async def test_a_point_is_listed_with_how_each_secret_stands_and_what_brings_it() -> None:
    world = with_sealed_secrets(lost=("mail", "token"))

    report = await registry.query("status.points").read(PointsParams(point=POINT), world)

    assert report.rows == (
        ("main/shop/database", "changed since", "41", "61", "the sealed copy"),
        ("main/shop/licence", "same", "43", "43", "the sealed copy"),
        ("main/shop/mail", "missing", "42", "", "the sealed copy"),
        ("main/shop/token", "missing", "44", "", "SealedSecret token"),
    )
    assert secrets_in(report.model_dump_json()) == []
    world.live.refused.add("Secret")
    report = await registry.query("status.points").read(PointsParams(point=POINT), world)
    assert {row[1] for row in report.rows} == {"not known"}


async def test_a_point_without_a_sealed_copy_says_what_nobody_brings_back() -> None:
    world = with_secrets(sealed=False)
    await world.points.record(POINT)

    report = await registry.query("status.points").read(PointsParams(point=POINT), world)

    assert {row[0]: row[4] for row in report.rows}["main/shop/mail"] == "nobody"
    assert any("Nothing brings these Secrets back but people" in line for line in report.lines)


async def test_the_sealed_copy_goes_with_its_point_and_is_held_with_it() -> None:
    world = with_secrets()
    await world.points.record(POINT)
    folder = f"escrow-secrets/main/{POINT}/"
    held = world.points._needed((await world.points.entries())[0].point)
    assert {f"{folder}secrets.age", f"{folder}manifest.json"} <= held["backups"]

    await world.points.pin(POINT, reason="case 4711")
    with pytest.raises(UserError, match="pinned"):
        await world.points.remove(POINT)
    assert len(await world.objects.list("backups", folder)) == 2
    await world.points.pin(POINT, reason="")
    world.clock.advance(timedelta(days=1))
    await world.points.remove(POINT)

    assert await world.objects.list("backups", folder) == []
