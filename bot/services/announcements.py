"""Break-glass: what one person starts alone is told at once, inside Slack and outside."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from actions.approval import Act
from bot.services.paging import page
from bot.services.policy import Policy
from storage import outbox, timeline
from storage.tables import PlanRow, SignatureRow


async def told(session: AsyncSession, row: PlanRow, act: SignatureRow, policy: Policy) -> None:
    """Tell everybody of an act on a plan under break-glass, in the transaction that records it."""
    allowed = policy.break_glass
    if allowed is None:
        return
    name = policy.name(act.person)
    what = f"{row.document.get('summary', row.action)} (plan {row.id})"
    if act.act == Act.REQUEST:
        text = (
            f"BREAK-GLASS: {name} alone has asked for: {what}. It starts at {utc(act.at + allowed.delay)} unless "
            f"somebody of the roster vetoes: Deny on its message, or `drbot deny {row.id}`."
        )
        await page(session, text, key=f"break-glass/{row.id}")
    elif act.act == Act.DENY:
        text = f"BREAK-GLASS: {name} has vetoed {what}; it does not start."
        await page(session, text, key=f"break-glass-veto/{row.id}")
    else:
        return
    await _everywhere(session, row, policy, text)
    await timeline.add(
        session, incident_id=row.incident_id, kind="break_glass", actor=name, occurred_at=act.at, text=text
    )


async def _everywhere(session: AsyncSession, row: PlanRow, policy: Policy, text: str) -> None:
    for channel in dict.fromkeys([row.channel, policy.on_call_channel]):
        if channel:
            await outbox.add(session, "text", channel, payload={"text": text})


def utc(moment: datetime) -> str:
    """ "2026-02-26 10:30:00 UTC"."""
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
