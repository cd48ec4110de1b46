"""Which version of the plan file is in force: the newest that was activated, whatever lies on the disk.

See docs/decisions/0006-the-plan-in-force-is-in-the-database.md.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from actions import registry
from actions.errors import PermanentError, TemporaryError, UserError
from actions.ports import PlanFileChange, PlanVersions
from bot.plan_file import DrPlan, Severity, check_text, load_activated, load_text, read_file
from storage import plan_versions, runs
from storage.session import Database
from storage.tables import PlanVersion

log = structlog.get_logger()

LOOK_EVERY = timedelta(seconds=2)

PRIVATE = ("phone", "email")
"""Keys whose values concern a person and no signer."""


@dataclass(frozen=True, kw_only=True)
class InForce:
    """The version a process works under. `number` 0: nothing was ever activated on this database."""

    number: int
    sha256: str
    document: str
    plan: DrPlan
    activated_by: str = ""  # the plan whose signatures it rests on


def normal(document: str) -> str:
    """The text that is hashed and stored: with exactly one line end behind the last line."""
    return document.rstrip("\r\n") + "\n"


def sha256_of(document: str) -> str:
    return hashlib.sha256(normal(document).encode()).hexdigest()


async def in_force(database: Database, file: Path) -> InForce:
    """For whoever only looks: the version in force, or the file where nothing was activated yet."""
    async with database.session() as session:
        row = await plan_versions.newest(session)
    return _of_file(file) if row is None else of_row(row)


async def begin(database: Database, file: Path, *, records: bool, adopts: bool) -> InForce:
    """For a process that starts. On an empty database the file is the first version, recorded by whoever `records`.

    Afterwards a file that was never in force is refused with what to do; where the process `adopts` (a demo), it
    becomes the newest version instead. A file that was in force once is passed over.
    """
    there = await asyncio.to_thread(file.exists)
    async with database.session() as session:
        if records:
            await plan_versions.hold(session)
        row = await plan_versions.newest(session)
        if row is not None and (not there or await _known(session, file, row)):
            return of_row(row)
        if row is not None and not adopts:
            raise UserError(
                f"`{file}` is not the plan in force (version {row.seq}, {row.sha256[:8]}). Put it in force with `drbot "
                f"plan activate {file}`, or write the plan in force over it with `drbot plan export {file}`."
            )
        found = _of_file(file)
        if not records:
            return found
        number = await plan_versions.add(session, sha256=found.sha256, document=found.document, plan_id="")
    log.info("plan_recorded", version=number, sha256=found.sha256)
    return InForce(number=number, sha256=found.sha256, document=found.document, plan=found.plan)


def is_file(file: Path, version: InForce) -> bool:
    """Whether this file says what is in force."""
    return file.exists() and sha256_of(read_file(file)) == version.sha256


async def superseded(database: Database, version: InForce) -> bool:
    """Whether another version is in force by now, and the run that put it there is over: it ends under the policy that
    its signers signed under."""
    async with database.session() as session:
        row = await plan_versions.newest(session)
        if row is None or row.sha256 == version.sha256:
            return False
        run = await runs.get(session, row.plan_id)
        return run is None or run.state != "running"


async def watch(database: Database, version: InForce) -> None:
    """Return when this process should go over to another version."""
    while True:
        await asyncio.sleep(LOOK_EVERY.total_seconds())
        try:
            if await superseded(database, version):
                return
        except TemporaryError as error:
            log.warning("plan_version_not_read", error=str(error))


async def _known(session: AsyncSession, file: Path, row: PlanVersion) -> bool:
    """Whether the file is in force, or was once."""
    sha256 = sha256_of(read_file(file))
    if sha256 == row.sha256:
        return True
    known = await plan_versions.known(session, sha256)
    if known:
        log.warning("plan_file_is_older", file=str(file), in_force=row.seq)
    return known


def _of_file(file: Path) -> InForce:
    document = normal(read_file(file))
    plan = load_text(document, name=str(file), actions=registry.names())
    return InForce(number=0, sha256=sha256_of(document), document=document, plan=plan)


def of_row(row: PlanVersion) -> InForce:
    """The version as it was activated. Raises PermanentError when it was changed since."""
    if sha256_of(row.document) != row.sha256:
        raise PermanentError(
            f"Version {row.seq} of the plan file does not have the hash it was activated with: it was changed in the "
            "bot's database. Restore that database, then look at the record with `drbot timeline verify`."
        )
    plan = load_activated(row.document, name=f"version {row.seq} of the plan file")
    return InForce(number=row.seq or 0, sha256=row.sha256, document=row.document, plan=plan, activated_by=row.plan_id)


class StoredPlanVersions(PlanVersions):
    """The versions in the bot's own database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def active(self) -> str:
        return (await self._newest()).sha256

    async def compare(self, document: str) -> PlanFileChange:
        text = normal(document)
        new = load_text(text, name="the new plan file", actions=registry.names())
        now = await self._newest()
        sha256 = sha256_of(text)
        if sha256 == now.sha256:
            raise UserError(f"This is the plan in force already (version {now.number}); nothing is to be done.")
        warnings = check_text(text, name="the new plan file")
        return PlanFileChange(
            sha256=sha256,
            name=new.name,
            before=now.sha256,
            changes=difference(now.plan, new) or ("only comments and layout",),
            warnings=tuple(str(item) for item in warnings if item.severity is Severity.WARNING),
        )

    async def activate(self, document: str, *, plan: str) -> None:
        text = normal(document)
        async with self._database.session() as session:
            await plan_versions.hold(session)
            row = await plan_versions.newest(session)
            if row is None or row.sha256 != sha256_of(text):
                await plan_versions.add(session, sha256=sha256_of(text), document=text, plan_id=plan)

    async def _newest(self) -> InForce:
        async with self._database.session() as session:
            row = await plan_versions.newest(session)
        if row is None:
            raise UserError("No plan is in force yet; start `drbot run` once, it records the first version.")
        return of_row(row)


def difference(before: DrPlan, after: DrPlan) -> tuple[str, ...]:
    """One line for each value that is another one, by its dotted path; entries of lists go by their name."""
    old, new = (dict(_leaves("", plan.model_dump(mode="json", exclude_none=True))) for plan in (before, after))
    return tuple(
        f"{path}: {_shown(path, old.get(path))} -> {_shown(path, new.get(path))}"
        for path in sorted(old.keys() | new.keys())
        if old.get(path) != new.get(path)
    )


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(f"{path}.{key}" if path else str(key), item)
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for name, item in _named(value):
            yield from _leaves(f"{path}.{name}", item)
    else:
        yield path, value


def _named(items: list[Any]) -> Iterator[tuple[str, Any]]:
    """By what the entries are called where that tells them apart, else by their place."""
    for key in ("id", "name", "database", "role", "risk", "component"):
        names = [str(item.get(key, "")) if isinstance(item, Mapping) else "" for item in items]
        if all(names) and len(set(names)) == len(names):
            yield from zip(names, items, strict=True)
            return
    for number, item in enumerate(items, start=1):
        yield str(number), item


def _shown(path: str, value: Any) -> str:
    if value is None:
        return "nothing"
    if path.rpartition(".")[2] in PRIVATE:
        return "(not shown)"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if text else "nothing"
