"""What a key signs: a statement of one field per line, the same bytes for whoever writes it.

The stored proof is the statement, an empty line and the armored signature, so that an auditor can check it with
`ssh-keygen -Y verify` alone.
"""

from __future__ import annotations

import hashlib
import secrets
import unicodedata
from datetime import UTC, datetime
from typing import Self

from pydantic import ValidationError

from actions.errors import UserError
from actions.site import Frozen

NAMESPACE = "drbot@superprismora"
VERSION = "drbot statement 1"
CLEAR = "clear-suspect-slack"
"""The act that is not on a plan but on an incident."""

_FORM = "%Y-%m-%dT%H:%M:%S.%fZ"
_LONGEST = 2900


class StatementError(UserError):
    """A statement that nobody can have signed with `drbot`."""


class Statement(Frozen):
    """One act of one person. `subject` is `plan ID` or `incident ID`; `digest` is what it looked like."""

    act: str
    subject: str
    digest: str
    person: str
    target: str  # as the signer typed it
    reason: str
    at: datetime  # by the signer's clock
    nonce: str

    @property
    def text(self) -> str:
        """The signed bytes, without a line end behind the last line."""
        fields = self.model_dump(exclude={"at"}) | {"at": self.at.astimezone(UTC).strftime(_FORM)}
        return "\n".join([VERSION, *(f"{name}: {value}" for name, value in sorted(fields.items()))])


def statement(
    *, act: str, subject: str, digest: str, person: str, target: str = "", reason: str, at: datetime
) -> Statement:
    """A new statement. Raises UserError for what does not fit on a line."""
    for name, value in (("target", target), ("reason", reason)):
        if len(value) > _LONGEST or any(unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") for sign in value):
            raise UserError(f"The {name} must be one line of at most {_LONGEST} characters; write it again.")
    return Statement(
        act=act,
        subject=subject,
        digest=digest,
        person=person,
        target=target.strip(),
        reason=reason.strip(),
        at=at.astimezone(UTC),
        nonce=secrets.token_hex(16),
    )


def read(text: str) -> Statement:
    """The statement of a text, only when writing it gives the same text again. Raises StatementError."""
    version, *lines = text.split("\n")
    fields = dict(line.partition(": ")[::2] for line in lines)
    if version != VERSION:
        raise StatementError(f"this is no `{VERSION}`")
    try:
        fields["at"] = datetime.strptime(fields.get("at", ""), _FORM).replace(tzinfo=UTC).isoformat()
        found = Statement.model_validate(fields)
    except (ValueError, ValidationError) as error:
        raise StatementError("a field of the statement is missing or unreadable") from error
    if found.text != text:
        raise StatementError("the statement is not written as drbot writes it")
    return found


class Proof(Frozen):
    """A statement with its signature, as it is stored."""

    statement: Statement
    armored: str

    @property
    def text(self) -> str:
        return f"{self.statement.text}\n\n{self.armored.strip()}\n"

    @classmethod
    def of(cls, text: str) -> Self:
        """Read a stored proof. Raises StatementError."""
        signed, gap, armored = text.partition("\n\n")
        if not gap:
            raise StatementError("there is no signature behind the statement")
        return cls(statement=read(signed), armored=armored.strip())


def incident_digest(incident: str, since: datetime) -> str:
    """What a signer of `clear-suspect-slack` has before him: this suspicion of this incident, no later one."""
    return hashlib.sha256(
        f"{incident} suspects Slack since {since.astimezone(UTC).strftime(_FORM)}".encode()
    ).hexdigest()
