"""The restore form: one recommendation, alternatives behind a button. Sending it is the request and its signature."""

from __future__ import annotations

from actions.site import Frozen
from bot.ports import BackupOffer, RestoreOffer
from bot.slack.views.blocks import (
    Block,
    View,
    actions,
    button,
    checkbox_input,
    context,
    cut,
    escape,
    minute,
    modal,
    option,
    section,
    select_input,
    span,
    text_input,
)
from bot.slack.views.signing import REASON, TYPED

SUBMIT = "restore.request"
ALTERNATIVES = "restore.alternatives"
DATABASE = "restore.database"
BACKUP = "backup"
MOMENT = "moment"
SUSPECT = "suspect"


class Metadata(Frozen):
    """What was recommended, and where the answer goes."""

    database: str
    backup: str
    target: str
    channel: str
    before: str | None = None  # when the impact began


class Asked(Frozen):
    """Carried by a button of the form: a click in a modal may arrive without the modal."""

    database: str
    channel: str
    before: str | None = None


def restore_modal(offer: RestoreOffer, *, channel: str, alternatives: bool = False) -> View:
    """The recommendation with what it loses; with `alternatives`, all backups as a choice."""
    blocks: list[Block] = [section(f"Restore `{escape(offer.database)}` beside production, then swap it in.")]
    blocks += _databases(offer, channel)
    if offer.recommended is None:
        why = offer.why or "There is no backup to restore."
        return modal("Restore", [*blocks, section(escape(why)), context("`/dr-backup list` shows the catalogue.")])
    blocks.append(section(f"*Recommended:* {offer_line(offer.recommended, offer)}"))
    if offer.why:
        blocks.append(context(escape(offer.why)))
    blocks += _choice(offer, offer.recommended, channel, alternatives=alternatives)
    if offer.window:
        hint = f"Instead of a dump: 10:29:58 (UTC), or --before-drop TABLE; {offer.window}. First beside production."
        blocks.append(text_input(MOMENT, "Or a moment", hint=hint, limit=200, optional=True))
    if offer.spare:
        choice = option(f"It may be damaged: restore on server {offer.spare} instead", "yes")
        blocks.append(checkbox_input(SUSPECT, "The database's own server", choice))
    blocks.append(text_input(REASON, "Why is it restored", hint="Sending this form is your signature on the plan."))
    blocks.append(text_input(TYPED, "Name of the target", hint=f"Type exactly: {offer.target}", limit=255))
    metadata = Metadata(
        database=offer.database,
        backup=offer.recommended.backup,
        target=offer.target,
        channel=channel,
        before=_before(offer),
    )
    return modal(
        "Restore",
        blocks,
        callback=SUBMIT,
        submit="Request",
        close="Cancel",
        private=metadata.model_dump_json(),
    )


def offer_line(backup: BackupOffer, offer: RestoreOffer) -> str:
    """`restore dump of 02:00, loses 8 h 12 min, BEYOND the RPO of 15 min`, as mrkdwn."""
    flag = "BEYOND" if backup.beyond_rpo else "within"
    note = f" {escape(backup.note)}." if backup.note else ""
    return (
        f"restore {escape(backup.label)} (`{escape(backup.backup)}`, {minute(backup.taken_at)}), "
        f"loses {span(backup.loss)}, {flag} the RPO of {span(offer.rpo)}.{note}"
    )


def _choice(offer: RestoreOffer, recommended: BackupOffer, channel: str, *, alternatives: bool) -> list[Block]:
    if not offer.alternatives:
        return []
    if not alternatives:
        asked = _asked(offer.database, offer, channel)
        return [actions("restore", button(f"{len(offer.alternatives)} other backups", ALTERNATIVES, cut(asked, 2000)))]
    backups = [recommended, *offer.alternatives[:20]]
    options = [option(_label(item), item.backup) for item in backups]
    lines = [context(offer_line(item, offer)) for item in offer.alternatives[:20]]
    return [*lines, select_input(BACKUP, "Backup", options, initial=options[0])]


def _label(item: BackupOffer) -> str:
    flag = ", BEYOND RPO" if item.beyond_rpo else ""
    return f"{minute(item.taken_at)}, loses {span(item.loss)}{flag}"


def _asked(database: str, offer: RestoreOffer, channel: str) -> str:
    return Asked(database=database, channel=channel, before=_before(offer)).model_dump_json()


def _before(offer: RestoreOffer) -> str | None:
    return None if offer.before is None else offer.before.isoformat()


def _databases(offer: RestoreOffer, channel: str) -> list[Block]:
    """Buttons for the other databases, each of which asks for its own recommendation."""
    others = [name for name in offer.databases if name != offer.database][:20]
    if not others:
        return []
    buttons = [button(name, f"{DATABASE}.{index}", _asked(name, offer, channel)) for index, name in enumerate(others)]
    return [actions("databases", *buttons)]
