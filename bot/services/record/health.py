"""What the doctor says about the record: whether it is sealed, and whether the witnesses keep up and agree."""

from __future__ import annotations

from datetime import timedelta

from actions.contract import Finding, Verdict
from actions.ports import Clock
from bot.services.record.watch import Sight, Watch
from storage import record
from storage.session import Database

LATE = timedelta(seconds=30)
"""How long an entry may wait for its place before something is wrong."""


async def health(database: Database, watch: Watch, clock: Clock) -> list[Finding]:
    """Every finding about the record. Raises TemporaryError when the database does not answer."""
    async with database.session() as session:
        waiting = await record.waiting(session)
    findings = [_sealing(waiting, clock)]
    why = await watch.disagreement()
    if why:
        findings.append(Finding(check="record", verdict=Verdict.STOP, detail=why))
    findings += [_witness(sight, watch, clock) for sight in await watch.look()]
    return findings


def _sealing(waiting: record.Waiting, clock: Clock) -> Finding:
    if waiting.oldest is not None and clock.now() - waiting.oldest > LATE:
        return Finding(
            check="record",
            verdict=Verdict.STOP,
            detail=f"{waiting.count} entries wait to be sealed since {waiting.oldest:%H:%M:%S} UTC",
            hint="Start `drbot run --role clock`, or read its log.",
        )
    return Finding(check="record", verdict=Verdict.OK, detail="is sealed")


def _witness(sight: Sight, watch: Watch, clock: Clock) -> Finding:
    name = f"witness {sight.witness}"
    if sight.checkpoint is None:
        hint = "Destructive steps go on with another witness; repair this one."
        return Finding(check=name, verdict=Verdict.WARN, detail=sight.problem, hint=hint)
    age = timedelta(seconds=round((clock.now() - sight.checkpoint.at).total_seconds()))
    detail = f"holds checkpoint {sight.checkpoint.number} over {sight.checkpoint.size} entries, {age} old"
    if age > watch.max_age:
        return Finding(check=name, verdict=Verdict.WARN, detail=detail, hint="Read the log of `--role clock`.")
    return Finding(check=name, verdict=Verdict.OK, detail=detail)
