"""What every PlanVersions keeps: the table of the bot's own PostgreSQL, and the fake."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import text

from actions.errors import PermanentError, UserError
from actions.ports import PlanVersions
from bot import world
from bot.plan_file import dump
from bot.services.plan_versions import StoredPlanVersions, begin, difference, normal, sha256_of
from bot.settings import Settings
from storage import plan_versions
from storage.session import Database
from tests.fakes.plan_versions import MemoryPlanVersions
from tests.fixtures.office import shipped_plan


@dataclass
class Versions:
    """A port with its first version, and how to change that text without breaking it."""

    port: PlanVersions
    first: str
    change: Callable[[str], str]


@pytest.fixture(params=["fake", "real"])
async def versions(request: pytest.FixtureRequest, memory: Database) -> Versions:
    if request.param == "fake":
        first = "name: shop\n"
        return Versions(MemoryPlanVersions(first), first, lambda word: f"name: shop\nowner: {word}\n")
    plan = shipped_plan()
    first = normal(dump(plan))
    async with memory.session() as session:
        await plan_versions.add(session, sha256=sha256_of(first), document=first, plan_id="")
    return Versions(
        StoredPlanVersions(memory), first, lambda word: normal(dump(plan.model_copy(update={"owner": word})))
    )


async def test_what_was_activated_last_is_in_force(versions: Versions) -> None:
    before = await versions.port.active()
    change = await versions.port.compare(versions.change("somebody"))
    assert change.before == before
    assert any("owner" in line and "somebody" in line for line in change.changes)
    assert await versions.port.active() == before
    await versions.port.activate(versions.change("somebody"), plan="p1")
    assert await versions.port.active() == change.sha256


async def test_the_version_in_force_is_nothing_to_activate(versions: Versions) -> None:
    with pytest.raises(UserError, match="in force already"):
        await versions.port.compare(versions.first)
    before = await versions.port.active()
    await versions.port.activate(versions.first, plan="p1")
    assert await versions.port.active() == before


async def test_an_older_version_can_come_back(versions: Versions) -> None:
    before = await versions.port.active()
    await versions.port.activate(versions.change("somebody"), plan="p1")
    await versions.port.activate(versions.first, plan="p2")
    assert await versions.port.active() == before


async def test_a_document_with_errors_names_them(versions: Versions) -> None:
    with pytest.raises(UserError, match="name"):
        await versions.port.compare("version: 1\n")


async def test_a_stored_version_that_was_edited_is_refused(memory: Database) -> None:
    text_stored = normal(dump(shipped_plan()))
    async with memory.session() as session:
        await plan_versions.add(session, sha256="0" * 64, document=text_stored, plan_id="")
    with pytest.raises(PermanentError, match="changed in the"):
        await StoredPlanVersions(memory).active()


async def test_the_row_names_the_plan_whose_signatures_it_rests_on(memory: Database) -> None:
    first = normal(dump(shipped_plan()))
    async with memory.session() as session:
        await plan_versions.add(session, sha256=sha256_of(first), document=first, plan_id="")
    other = normal(dump(shipped_plan().model_copy(update={"owner": "x"})))
    for _ in range(2):
        await StoredPlanVersions(memory).activate(other, plan="p1")
    async with memory.session() as session:
        rows = (await session.execute(text("SELECT plan_id FROM plan_version ORDER BY seq"))).scalars().all()
    assert rows == ["", "p1"]


async def test_nothing_starts_on_a_bad_plan_and_nothing_is_recorded(memory: Database, tmp_path: Path) -> None:
    file = tmp_path / "dr-plan.yml"
    file.write_text(dump(shipped_plan()).replace("version: 1", "version: 2", 1))
    told = re.escape(f"{file}:") + r"\d+:\d+: error: version: "
    with pytest.raises(UserError, match=told):
        await begin(memory, file, records=True, adopts=False)
    async with memory.session() as session:
        assert await plan_versions.newest(session) is None
    settings = Settings(plan_file=file, data_directory=tmp_path)
    with pytest.raises(UserError, match=told):
        await world.job(settings, tmp_path / "spec.json")


def test_the_difference_names_entries_and_hides_contact_details() -> None:
    plan = shipped_plan()
    olivia = plan.roster[0].model_copy(update={"roles": ("on_call",), "phone": "+49 170 1234567"})
    changed = plan.model_copy(update={"roster": (olivia, *plan.roster[1:-1])})
    lines = difference(plan, changed)
    assert any(line.startswith("roster.olivia.roles: ") and line.endswith("-> on_call") for line in lines)
    assert "roster.olivia.phone: nothing -> (not shown)" in lines
    assert any(line.startswith("roster.sam.id: sam -> nothing") for line in lines)
    assert "1234567" not in "".join(lines)
    assert difference(plan, plan) == ()
