"""Refusals that concern no plan: who was turned away at the door, and why. None goes unrecorded.

Refusals of signatures are recorded by `Approvals`, with the codes of `actions.approval`; requests that a worker turns
down by the worker.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import NoReturn

from actions.errors import RefusedError, UserError
from actions.ports import Clock
from bot.ports import Who
from bot.redaction import Mask
from bot.services.policy import Policy
from storage import incidents, outbox, timeline
from storage.session import Database

LONGEST = 4_000
"""Characters of one text of a person. Slack's own fields take 3,000."""


class Door(StrEnum):
    """Reason codes of refusals at the door, beside those of `actions.approval.Code`."""

    BAD_SIGNATURE = "bad_signature"  # HTTP: no, a wrong or an old signature
    REPLAYED = "replayed"  # HTTP: the very bytes that were answered before
    MALFORMED = "malformed"  # not what Slack sends
    TOO_LARGE = "too_large"
    WRONG_APP = "wrong_app"
    WRONG_WORKSPACE = "wrong_workspace"
    UNKNOWN_CONTROL = "unknown_control"  # a button or form this version does not have
    UNKNOWN_BUTTON = "unknown_button"  # its token belongs to no plan
    RATE_LIMITED = "rate_limited"
    TOO_LONG = "too_long"
    OTHER_CONTENT = "other_content"  # the file is not the one whose SHA-256 was named
    UNSAFE_FILE = "unsafe_file"  # named as evidence: a link, a pipe, a folder
    CREDENTIAL = "credential"  # somebody typed what is shaped like a token or a key


class OnRecordError(UserError):
    """A refusal that was recorded where it was decided."""


class Refusals:
    """Records refusals: a row each, a line on the timeline of the channel's incident, a copy to the audit channel."""

    def __init__(self, database: Database, policy: Policy, clock: Clock) -> None:
        self._database = database
        self._policy = policy
        self._clock = clock

    async def record(self, who: Who, code: str, text: str, *, told: bool = True) -> None:
        """`told` is False for one of many alike: the row stands, the timeline and the channel are spared."""
        person = self._policy.person(who)
        account = who.slack_user or who.person or "http"
        name = person.name if person else account
        line = f"{name} was refused: {code}"
        async with self._database.session() as session:
            await timeline.refuse(
                session, plan_id=None, account=account, person=person.id if person else "", code=code, text=text
            )
            if not told:
                return
            incident = await incidents.open_in(session, who.channel) if who.channel else None
            if incident is not None:
                await timeline.add(
                    session,
                    incident_id=incident.id,
                    kind="refusal",
                    actor=name,
                    occurred_at=self._clock.now(),
                    text=line,
                    data={"code": code},
                )
            await outbox.add(session, "text", self._policy.audit_channel, payload={"text": line})

    async def turn_away(self, who: Who, code: str, text: str) -> NoReturn:
        """Record it and raise it as UserError."""
        await self.record(who, code, text)
        raise OnRecordError(text)

    @asynccontextmanager
    async def on_record(self, who: Who, name: str) -> AsyncIterator[None]:
        """Whatever turns the command of this name down is recorded. Who was just mistaken is spared the crowd."""
        try:
            yield
        except OnRecordError:
            raise
        except UserError as error:
            told = isinstance(error, RefusedError)
            await self.record(who, error.code, f"{name}: {error}", told=told)
            raise

    async def check(self, who: Who, texts: Iterable[str]) -> None:
        """Refuse what cannot be stored as it was said. Raises UserError."""
        for text in texts:
            if not storable(text):
                told = "This text holds characters that are no text, so nothing was done; type it again."
                await self.turn_away(who, Door.MALFORMED, told)
            if holds_credential(text):
                await self.turn_away(who, Door.CREDENTIAL, CREDENTIAL)
            if len(text) > LONGEST:
                told = f"This text has {len(text)} characters and may have {LONGEST}; shorten it, or attach a file."
                await self.turn_away(who, Door.TOO_LONG, told)


CREDENTIAL = (
    "This text holds something shaped like a token, a key or a password, so it was neither done nor kept. Rotate what "
    "you have typed: Slack has it now. Then say it without."
)

_shapes = Mask()


def holds_credential(text: str) -> bool:
    """Whether a person has typed what nobody may store: a token, a private key, an address with a password."""
    return _shapes(text) != text


def storable(text: str) -> bool:
    """Whether PostgreSQL can hold it: no NUL, no half of a surrogate pair."""
    if "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
