"""A scratch instance that a plan is made from, and the database of the plan file that it holds."""

from __future__ import annotations

from collections.abc import Sequence

from actions.backup.manifest import Fingerprint
from actions.backup.physical import SCRATCH, ScratchFacts, ScratchState
from actions.backup.scratch_place import this_machine
from actions.errors import PermanentError, UserError
from actions.ports import Ports
from actions.site import Database, DatabaseRef, Invariant
from actions.steps.phrases import names


async def standing(ports: Ports, scratch: str) -> ScratchFacts:
    """The instance, running and paused at its moment. Raises UserError with the next thing to do otherwise."""
    found = await known(ports, scratch)
    if found.state is ScratchState.BROKEN:
        raise UserError(f"The restore of `{found.name}` did not end well. Make it again with `/dr-restore`.")
    if found.state is ScratchState.PROMOTED:
        raise UserError(f"`{found.name}` was promoted: it no longer shows its moment. Make another with `/dr-restore`.")
    if found.state is ScratchState.LOADED:
        raise UserError(
            f"`{found.name}` holds a dump for a restore test, which removes it at its end. Restore one with "
            "`/dr-restore`."
        )
    if found.state is ScratchState.FOLLOWING:
        raise UserError(
            f"`{found.name}` follows the archive, so it shows no moment. Stop it at one with `/dr-restore halt "
            f"{found.id} --at TIME`."
        )
    if found.state is ScratchState.STOPPED:
        raise UserError(
            f"`{found.name}` is stopped, so it cannot be looked at. Start it with `/dr-restore wake {found.id}`."
        )
    return found


async def sound(ports: Ports, scratch: str) -> ScratchFacts:
    """The same, and it was looked through and nothing was found wrong: it can take production's place."""
    found = await standing(ports, scratch)
    if not found.checks:
        raise UserError(
            f"`{found.name}` was never looked through: what restored it ended before its check. "
            f"`/dr-restore wake {found.id}` looks through it; then ask again."
        )
    if found.problem:
        raise UserError(
            f"`{found.name}` did not pass its check, so it takes nobody's place: {found.problem} Single tables can be "
            f"brought back from it (`/dr-restore rescue`). Else discard it with `/dr-restore discard {found.id}`, and "
            "restore another moment or from another backup."
        )
    return found


async def known(ports: Ports, scratch: str) -> ScratchFacts:
    """The instance by its id or its name as a server. Raises UserError naming those there are."""
    found = await ports.scratch.find(scratch.removeprefix(SCRATCH))
    if found is None:
        there = names(facts.id for facts in await ports.scratch.instances())
        known = f"There are: {there}." if there else "There are none: make one with `/dr-restore DATABASE --at TIME`."
        raise UserError(f"There is no scratch instance `{scratch}` on `{this_machine()}`. {known}")
    return found


async def as_it_is(ports: Ports, database: DatabaseRef, invariants: Sequence[Invariant]) -> Fingerprint:
    """Production, to compare with: without its invariants where one cannot be measured, as after a DROP of its table.
    Raises DrError where it cannot be read at all."""
    try:
        return await ports.postgres.fingerprint(database, invariants)
    except (UserError, PermanentError):
        return await ports.postgres.fingerprint(database, ())


def database_of(ports: Ports, facts: ScratchFacts, wanted: str | None) -> tuple[str, Database]:
    """Its key in the plan file and the database. Raises UserError when several could be meant."""
    mine = {key: item for key, item in ports.site.databases.items() if item.server == facts.server}
    if wanted is not None:
        database = ports.site.database(wanted)
        if wanted not in mine:
            raise UserError(
                f"`{facts.name}` holds server `{facts.server}`, `{wanted}` is on `{database.server}`. "
                "Leave out `--database`, or restore that server."
            )
        return wanted, database
    if len(mine) != 1:
        raise UserError(
            f"`{facts.name}` holds {names(sorted(mine)) or 'no database of the plan'}. Name one with `--database`."
        )
    return next(iter(mine.items()))
