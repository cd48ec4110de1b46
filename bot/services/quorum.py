"""Who could sign in the coming week: told once a day to the on-call channel when at some time there are too few."""

from __future__ import annotations

from datetime import datetime

from bot.plan_file import DrPlan
from bot.plan_file.quorum import gaps
from storage import inbox, outbox
from storage.session import Database


async def warn_of_gaps(database: Database, plan: DrPlan, now: datetime) -> bool:
    """Tell the on-call channel which plans cannot be signed, and when. False when everything can be, and when a replica
    has told it today."""
    found = [gap.sentence for gap in gaps(plan, now.replace(second=0, microsecond=0))]
    if not found:
        return False
    async with database.session() as session:
        key = f"schedule/quorum/{now:%Y-%m-%d}"
        if not await inbox.store(session, key, "schedule", {"gaps": found}):
            return False
        lines = "\n".join(f"• {sentence}." for sentence in found)
        text = f"Not enough signers in the coming week:\n{lines}\nAdd persons to the roster or to the rota."
        await outbox.add(session, "text", plan.channels.on_call, payload={"text": text})
    return True
