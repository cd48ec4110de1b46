"""Answers that join the bot's memory with the world: `status` and the restore form."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from actions.catalog.backup_status import Backups, BackupsParams
from actions.catalog.restore import ALTERNATIVES
from actions.contract import Report
from actions.errors import DrError, UserError
from actions.ports import CatalogueEntry, Ports
from actions.site import Database
from actions.steps.choice import checked_words, loss, recommended, usable_entries
from actions.steps.known_backups import known_backups
from actions.steps.moments import exact
from actions.steps.phrases import moment
from bot.ports import BackupOffer, RestoreOffer
from bot.services.incidents import Incidents
from bot.services.run_control import OPEN
from storage import incidents, plans, runs

RPO_NOTE = "beyond the RPO"


async def status(session: AsyncSession, all_incidents: Incidents, ports: Ports) -> Report:
    """Open incidents with their RTO, runs that are not over, then the age of every database's newest backup."""
    lines: list[str] = []
    now = ports.clock.now()
    for row in await incidents.newest(session):
        if row.closed_at is not None:
            continue
        card = await all_incidents.card(session, row)
        left = card.rto_deadline - now
        spent = "recovered" if card.recovered_at else f"RTO left {left}" if left.days >= 0 else f"RTO missed by {-left}"
        lines.append(f"Incident {card.number} `{card.title}` ({card.severity}), {spent.split('.', maxsplit=1)[0]}")
    if not lines:
        lines.append("No open incident.")
    for run in await runs.in_state(session, OPEN):
        plan = await plans.get(session, run.id)
        said = f" {run.message}" if run.message else ""
        lines.append(f"Run `{run.id}` {run.state}: {plan.document['summary'] if plan else 'unknown'}.{said}")
    backups = await Backups().read(BackupsParams(), ports)
    return Report(
        title="Status",
        lines=(*lines, *backups.lines),
        columns=backups.columns,
        rows=backups.rows,
        findings=backups.findings,
    )


async def restore_offer(ports: Ports, database: str | None, *, before: datetime | None) -> RestoreOffer:
    """The recommendation for one database, the first of the plan when none is named. `before`: when the impact began;
    what was dumped since is offered last."""
    names = tuple(sorted(ports.site.databases))
    if not names:
        raise UserError("The plan file protects no database; add one under `databases`.")
    known = ports.site.database(database or names[0])
    entries = (await known_backups(ports, known.name)).entries
    try:
        best: CatalogueEntry | None = recommended(known.name, entries, before=before)
        why = "the newest backup without a known problem"
        why += "" if before is None else f" from before the impact, {moment(before)}"
    except UserError as error:
        best, why = None, str(error)
    earlier = usable_entries(entries, before=before)
    later = [entry for entry in usable_entries(entries, before=None) if entry not in earlier]
    rest = [entry for entry in (*earlier, *later) if entry != best][:ALTERNATIVES]
    return RestoreOffer(
        database=known.name,
        target=known.name,
        databases=names,
        recommended=None if best is None else _offer(known, best, ports, before),
        alternatives=tuple(_offer(known, entry, ports, before) for entry in rest),
        rpo=known.rpo,
        why=why,
        before=before,
        spare=known.spare_server or "",
        window=await _window(ports, known),
    )


async def _window(ports: Ports, database: Database) -> str:
    """From when to when any moment can be restored; the form is good without it, so an archive that does not answer
    does not keep it back."""
    if database.server not in ports.site.physical:
        return ""
    try:
        windows = await ports.physical.windows(database.server)
    except DrError:
        return ""
    found = [(window.oldest, window.newest) for window in windows if window.oldest and window.newest]
    if not found:
        return ""
    return f"any moment from {exact(min(old for old, _ in found))} to {exact(max(new for _, new in found))}"


def _offer(database: Database, entry: CatalogueEntry, ports: Ports, before: datetime | None) -> BackupOffer:
    lost = loss(entry, ports.clock.now())
    taken = entry.manifest.snapshot_at
    since = "" if before is None or taken < before else "taken after the impact began, "
    return BackupOffer(
        backup=entry.manifest.id,
        label=f"dump of {taken:%Y-%m-%d %H:%M} UTC",
        taken_at=taken,
        loss=lost,
        beyond_rpo=lost > database.rpo,
        note=f"{since}{checked_words(entry)}",
    )
