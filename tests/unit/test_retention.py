"""Which dumps retention lets go: never the last good ones, never one whose age nobody vouches for."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actions.backup.physical import Expiry
from actions.catalog.retention import Delete, DeleteParams, Expire, ExpireParams
from actions.contract import Risk, Verdict
from actions.errors import PermanentError, TemporaryError, UserError
from actions.ports import CatalogueEntry, no_progress
from actions.runner import Outcome
from actions.steps.dump_expiry import LAST_GOOD, old_dumps, why_dump_stays
from tests.contract.kit import PLAN_ID, MemoryJournal, run
from tests.fakes.manifests import an_entry
from tests.fakes.physical_world import with_old_backups
from tests.fakes.world import START, a_site

POLICY = a_site().backups["shop"]


def dump(number: int, days: int, *, bad: bool = False) -> CatalogueEntry:
    at = START - timedelta(days=days)
    return an_entry(id=f"d{number}", snapshot_at=at, finished_at=at, problem="forged" if bad else None)


dumps = st.lists(st.tuples(st.integers(0, 90), st.booleans()), max_size=15).map(
    lambda items: [dump(number, days, bad=bad) for number, (days, bad) in enumerate(items)]
)


@given(dumps, dumps)
def test_what_goes_is_old_and_good_and_enough_stays(stored: list[CatalogueEntry], local: list[CatalogueEntry]) -> None:
    copies = [
        entry.model_copy(update={"manifest": entry.manifest.model_copy(update={"id": f"c{entry.manifest.id}"})})
        for entry in local
        if entry.problem is None
    ]
    found = old_dumps(stored, copies, POLICY, START)
    known = {entry.manifest.id: entry for entry in (*stored, *copies)}
    good = [entry for entry in stored if entry.problem is None]

    for name in found.gone:
        assert known[name].problem is None
        assert known[name].manifest.finished_at < START - POLICY.retention
    left = [entry for entry in good if entry.manifest.id not in found.gone]
    assert len(left) >= min(LAST_GOOD, len(good))
    assert not set(found.gone) & set(found.kept)
    old = {name for name, entry in known.items() if entry.manifest.finished_at < START - POLICY.retention}
    assert set(found.gone) | set(found.kept) == old


def test_the_newest_good_ones_stay_although_they_are_old() -> None:
    found = old_dumps([dump(1, 40), dump(2, 50), dump(3, 60), dump(4, 35, bad=True)], [], POLICY, START)

    assert found.gone == ("d3",)
    assert found.kept["d1"] == "one of the 2 newest that can be restored"
    assert found.kept["d4"] == "it must not be used, so nobody knows how old it is"


def test_a_pinned_dump_stays_with_its_reason() -> None:
    held = dump(3, 60).model_copy(update={"pinned": "case 4711"})
    found = old_dumps([dump(1, 1), dump(2, 2), held, dump(4, 61)], [], POLICY, START)
    assert found.gone == ("d4",)
    assert found.kept == {"d3": "pinned: case 4711"}


def test_the_last_good_dumps_are_not_even_deleted_by_name() -> None:
    held = dump(3, 60).model_copy(update={"pinned": "case 4711"})
    stored = [dump(1, 1), held, dump(4, 61, bad=True)]
    assert "2 always stay" in why_dump_stays(stored, "d1", {})
    assert "is pinned: case 4711" in why_dump_stays(stored, "d3", {})
    assert why_dump_stays(stored, "d4", {}) == ""
    assert "Take the pin off that recovery point" in why_dump_stays(stored, "d4", {"d4": "recovery point p1: audit"})
    assert why_dump_stays([*stored, dump(5, 62)], "d1", {}) == ""


async def test_a_deletion_that_the_policy_would_make_anyway_needs_no_others() -> None:
    async def risk(backup: str) -> Risk:
        params = DeleteParams(server="shop", backup=backup)
        return (await Delete().plan(params, with_old_backups(), "k7m2n3p4q5")).risk

    assert await risk("b-ancient") is Risk.REVERSIBLE
    assert await risk("base-ancient") is Risk.REVERSIBLE
    assert await risk("base-hour") is Risk.IRREVERSIBLE
    with pytest.raises(UserError, match="is pinned: case 4711"):
        await risk("base-pinned")
    with pytest.raises(UserError, match="no backup `nothing` of `shop`"):
        await risk("nothing")


async def test_a_pin_that_came_after_the_signatures_still_counts() -> None:
    world = with_old_backups()
    plan = await Delete().plan(DeleteParams(server="shop", backup="base-hour"), world, "k7m2n3p4q5")
    await world.physical.pin("primary", "base-hour", reason="evidence")

    with pytest.raises(UserError, match="is pinned: evidence"):
        await plan.steps[0].apply(world, no_progress)

    assert ("primary", "base-hour") in world.physical.entries


async def test_a_deletion_that_claims_to_be_due_is_held_to_it() -> None:
    """A plan that somebody wrote into the bot's database: few signatures, for what the policy keeps."""
    world = with_old_backups()
    plan = await Delete().plan(DeleteParams(server="shop", backup="base-hour"), world, "k7m2n3p4q5")
    claimed = plan.model_copy(update={"steps": (plan.steps[0].model_copy(update={"due": True}),)})
    assert Delete().least_risk(plan) is Risk.IRREVERSIBLE
    assert Delete().least_risk(claimed) is Risk.REVERSIBLE
    with pytest.raises(UserError, match="does not let base backup"):
        await claimed.steps[0].apply(world, no_progress)
    assert ("primary", "base-hour") in world.physical.entries


async def test_a_silent_bucket_of_base_backups_keeps_no_dump_from_going() -> None:
    world = with_old_backups()
    world.physical.silent = {"backups-far": "It does not answer."}
    plan = await Expire().plan(ExpireParams(), world, PLAN_ID)
    assert [step.kind for step in plan.steps] == ["delete_dumps"]
    [finding] = plan.findings
    assert (finding.check, finding.verdict) == ("base backups of primary", Verdict.WARN)
    assert "`backups-far` cannot be looked at, so nothing of `primary` is deleted" in finding.detail
    assert (await run(plan, world, MemoryJournal())).outcome is Outcome.SUCCEEDED
    with pytest.raises(TemporaryError, match="nothing of `primary` is deleted"):
        await Expire().plan(ExpireParams(), world, PLAN_ID)


async def test_a_server_that_is_called_like_a_database_stands_for_all_that_is_on_it() -> None:
    """The clock asks for each server by its name, which may be that of one of its databases, or of another's."""
    world = with_old_backups()
    shop, policy = world.site.databases["shop"], world.site.backups["shop"]
    other = shop.model_copy(update={"server": "primary", "name": "primary"})
    databases = {"primary": other, **world.site.databases}
    backups = {"primary": policy.model_copy(update={"database": "primary"}), **world.site.backups}
    world = replace(world, site=world.site.model_copy(update={"databases": databases, "backups": backups}))
    plan = await Expire().plan(ExpireParams(server="primary"), world, PLAN_ID)
    assert {lock.key for lock in plan.locks if lock.key.startswith("dump:")} == {"dump:primary", "dump:shop"}
    assert [step.kind for step in plan.steps] == ["delete_dumps", "delete_bases"]

    elsewhere = {**databases, "primary": other.model_copy(update={"server": "standby"})}
    world = replace(world, site=world.site.model_copy(update={"databases": elsewhere}))
    plan = await Expire().plan(ExpireParams(server="primary"), world, PLAN_ID)
    assert {lock.key for lock in plan.locks if lock.exclusive} >= {"dump:primary", "dump:shop", "base:primary"}
    with pytest.raises(UserError, match="nowhere"):
        await Expire().plan(ExpireParams(server="nowhere"), world, PLAN_ID)


async def test_what_can_be_said_of_no_server_holds_up_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest of segments that no server has, a bucket that refuses its keys, no usable base backup left."""
    world = with_old_backups()

    async def refused(server: str) -> Expiry:
        raise PermanentError(f"Base backup of `{server}` speaks of WAL segments that no server has.")

    monkeypatch.setattr(world.physical, "expiry", refused)
    plan = await Expire().plan(ExpireParams(), world, PLAN_ID)
    assert [step.kind for step in plan.steps] == ["delete_dumps"]
    assert [finding.check for finding in plan.findings] == ["base backups of primary"]
    monkeypatch.undo()

    async def keys_refused(database: str) -> list[CatalogueEntry]:
        raise UserError(f"Bucket of `{database}` did not list: AccessDenied.")

    monkeypatch.setattr(world.backups, "catalogue", keys_refused)
    plan = await Expire().plan(ExpireParams(), world, PLAN_ID)
    assert [step.kind for step in plan.steps] == ["delete_bases"]
    assert [finding.check for finding in plan.findings] == ["dumps of shop"]

    spoiled = {name: entry.model_copy(update={"problem": "lost"}) for name, entry in world.physical.entries.items()}
    monkeypatch.undo()
    world.physical.entries.update(spoiled)
    plan = await Expire().plan(ExpireParams(), world, PLAN_ID)
    assert [step.kind for step in plan.steps] == ["delete_dumps"]
    assert "would have no usable base backup left" in plan.findings[0].detail
