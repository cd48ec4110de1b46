"""From a row of the outbox to what Slack shows. Pure but for the clock it is given."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from actions.contract import Report
from actions.errors import PermanentError
from bot.ports import Outgoing, RestoreOffer, TimelinePage
from bot.services.cards import IncidentCard, PlanCard
from bot.slack.views.blocks import Message, View, fenced, message
from bot.slack.views.incident import incident_message
from bot.slack.views.plan import plan_message
from bot.slack.views.report import report_message, timeline_message
from bot.slack.views.restore import restore_modal
from bot.slack.views.text import sentence, text_modal


def card_message(card: PlanCard | IncidentCard, *, now: datetime) -> Message:
    """A card as of `now`."""
    return plan_message(card, now=now) if isinstance(card, PlanCard) else incident_message(card, now=now)


def answer_message(row: Outgoing) -> Message:
    """A report, a page of the timeline or a sentence. Raises PermanentError for a payload nobody can read."""
    payload = row.payload
    try:
        if "report" in payload:
            return report_message(Report.model_validate(payload["report"]))
        if "timeline" in payload:
            return timeline_message(TimelinePage.model_validate(payload["timeline"]))
        return sentence(_text(payload, "text"), str(payload.get("said") or ""))
    except ValidationError as error:
        raise PermanentError(f"Outbox row {row.id} cannot be read.") from error


def view_of(row: Outgoing) -> View:
    """What fills an open modal."""
    payload = row.payload
    if "restore" not in payload:
        return text_modal(str(payload.get("title") or "Answer"), _text(payload, "text"))
    try:
        offer = RestoreOffer.model_validate(payload["restore"])
    except ValidationError as error:
        raise PermanentError(f"Outbox row {row.id} cannot be read.") from error
    return restore_modal(offer, channel=row.channel, alternatives=bool(payload.get("alternatives")))


def file_message(row: Outgoing) -> Message:
    """The beginning of a file, for workspaces without files."""
    title = str(row.payload.get("title") or row.payload.get("filename") or "File")
    told = sentence(f"{title}: this workspace takes no files, so only the beginning is shown.")
    blocks = [*told["blocks"], fenced(_text(row.payload, "content"))]
    return message(told["text"], blocks, more="Cut here. All of it: `drbot incident timeline`.")


def _text(payload: Mapping[str, Any], key: str) -> str:
    value = payload.get(key)
    if not isinstance(value, str):
        raise PermanentError(f"An outbox row without `{key}` cannot be sent.")
    return value
