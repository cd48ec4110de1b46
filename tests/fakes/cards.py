"""Cards, offers and lines with every field filled, for tests that change what they look at."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from actions.approval import Act
from actions.contract import Finding, Observation, Risk, Verdict
from bot.ports import BackupOffer, RestoreOffer
from bot.services.cards import IncidentCard, PlanCard, PlanState, SignerLine, StepLine, TimelineLine

NOW = datetime(2026, 11, 23, 10, 12, 5, tzinfo=UTC)


def a_step(number: int = 1, **changes: Any) -> StepLine:
    values: dict[str, Any] = {
        "number": number,
        "summary": f"Rename `db` to `db_quarantine_{number}`",
        "before": "`db`",
        "after": "`db_quarantine`",
        "by_hand": ("psql -c 'ALTER DATABASE db RENAME TO q'",),
    }
    return StepLine(**(values | changes))


def a_card(**changes: Any) -> PlanCard:
    values: dict[str, Any] = {
        "plan_id": "abcdefghjk",
        "token": "t" * 43,
        "action": "restore.dump",
        "summary": "Restore `superprismora` from the dump of 02:00",
        "risk": Risk.DESTRUCTIVE,
        "target": "superprismora",
        "typed_target": True,
        "short_code": "0123abcd",
        "digest": "0123abcd" * 8,
        "requester": "Ana",
        "state": PlanState.PENDING,
        "signers": (SignerLine(person="Ana", act=Act.REQUEST, at=NOW, reason="orders table dropped"),),
        "missing": ("1 more person(s) besides the requester",),
        "steps": (a_step(1), a_step(2), a_step(3)),
        "preconditions": ("Backup b still verifies",),
        "findings": (Finding(check="rpo", verdict=Verdict.WARN, detail="beyond", hint="use WAL"),),
        "observations": (Observation(name="size", value="1 GB"),),
        "alternatives": ("Restore the dump of the day before",),
        "data_loss": "Everything since 02:00 UTC, 8 h 12 min.",
        "estimate": timedelta(minutes=4),
        "expires_at": NOW + timedelta(minutes=30),
        "rto_deadline": NOW + timedelta(minutes=41),
    }
    return PlanCard(**(values | changes))


def an_incident(**changes: Any) -> IncidentCard:
    values: dict[str, Any] = {
        "id": "i1",
        "number": 7,
        "title": "Orders table is gone",
        "severity": "SEV1",
        "commander": "Ana",
        "open": True,
        "impact_started_at": NOW - timedelta(minutes=19),
        "declared_at": NOW,
        "rto": timedelta(hours=1),
    }
    return IncidentCard(**(values | changes))


def an_offer(**changes: Any) -> RestoreOffer:
    def backup(hours: int) -> BackupOffer:
        return BackupOffer(
            backup=f"db-{hours}",
            label=f"dump of {hours} h ago",
            taken_at=NOW - timedelta(hours=hours),
            loss=timedelta(hours=hours, minutes=12),
            beyond_rpo=True,
        )

    values: dict[str, Any] = {
        "database": "superprismora",
        "target": "superprismora",
        "databases": ("superprismora", "billing"),
        "recommended": backup(8),
        "alternatives": (backup(32), backup(56)),
        "rpo": timedelta(minutes=15),
        "why": "Newest one that is proven.",
    }
    return RestoreOffer(**(values | changes))


def a_line(**changes: Any) -> TimelineLine:
    values: dict[str, Any] = {
        "seq": 1,
        "kind": "note",
        "actor": "Ana",
        "occurred_at": NOW,
        "recorded_at": NOW + timedelta(minutes=5),
        "text": "The vendor says the disk is lost",
        "permalink": "https://x.slack.com/archives/C1/p1",
    }
    return TimelineLine(**(values | changes))
