"""What two persons sign when a database with another past than the witnesses' is adopted, and whether they have.

Nothing in the database starts a new epoch by itself: whoever rules it can write any row. The row of an epoch counts
with the signatures of two keys of the roster over exactly these facts; once a sealer that saw them has signed its
first checkpoint, that checkpoint counts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Self

from actions.errors import VerificationError
from actions.site import Frozen
from bot.services.keys import Claim, Keys
from bot.services.statements import Proof, StatementError
from storage.tables import LogEpoch, TimelineEntry

ADOPT = "adopt-record"
"""The act that is signed."""

SIGNED, BEGUN = "adopt_record", "record_epoch"
"""Kinds of timeline entries: one person has signed; the sealer has started the epoch."""

ADOPTERS = 2
"""Persons whose keys start an epoch."""

FRESH = timedelta(hours=24)
"""How long the first signature waits for the second."""

_FORM = "drbot record adoption 1"


class Facts(Frozen):
    """The two pasts: `base` entries that they share, the newest checkpoint that is given up, and what the database
    holds instead."""

    epoch: int
    base: int
    number: int  # of the newest checkpoint known anywhere
    given_up: int  # number of the newest checkpoint at a witness
    given_up_size: int
    given_up_root: str
    kept_size: int
    kept_root: str

    @property
    def text(self) -> str:
        """What the digest of the signed statement is made from."""
        return (
            f"{_FORM}\nepoch {self.epoch}\nbase {self.base}\nnumber {self.number}\n"
            f"given-up {self.given_up} {self.given_up_size} {self.given_up_root}\n"
            f"kept {self.kept_size} {self.kept_root}\n"
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the text, in hex."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def subject(self) -> str:
        """What the statement says it is about."""
        return f"record epoch {self.epoch}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises VerificationError for any other text."""
        number, root = r"(\d{1,18})", r"([0-9a-f]{64})"
        form = (
            f"{_FORM}\nepoch {number}\nbase {number}\nnumber {number}\n"
            f"given-up {number} {number} {root}\nkept {number} {root}\n"
        )
        found = re.fullmatch(form, text)
        if found is None:
            raise VerificationError("These are no facts of an adoption.")
        names = ("epoch", "base", "number", "given_up", "given_up_size", "given_up_root", "kept_size", "kept_root")
        return cls.model_validate(dict(zip(names, found.groups(), strict=True)))

    def fits(self, row: LogEpoch) -> bool:
        """Whether the row of the epoch says the same."""
        return (self.epoch, self.base, self.number) == (row.epoch, row.base, row.number)


def signers(entries: Sequence[TimelineEntry], facts: Facts, keys: Keys, now: datetime) -> dict[str, str]:
    """The proofs of those who have signed these facts lately, by person, in the order of the record."""
    found: dict[str, str] = {}
    for entry in entries:
        proof, at = str(entry.data.get("proof")), entry.recorded_at or entry.occurred_at
        person = signer(proof, facts, keys, at=at) if now - at <= FRESH else None
        if person is not None:
            found.setdefault(person, proof)
    return found


def signer(proof: str, facts: Facts, keys: Keys, *, at: datetime | None = None) -> str | None:
    """Who has signed the facts by this proof; None when nobody of the roster has. Without `at` at its own time."""
    try:
        said = Proof.of(proof).statement
    except StatementError:
        return None
    claim = adoption_claim(facts, person=said.person, reason=said.reason, at=at or said.at)
    return said.person if keys.problem(claim, proof) is None else None


def adoption_claim(facts: Facts, *, person: str, reason: str, at: datetime) -> Claim:
    """What the proof of an adoption must show."""
    return Claim(act=ADOPT, subject=facts.subject, digest=facts.digest, person=person, target="", reason=reason, at=at)


class Start(Frozen):
    """What the sealer wrote down when it started an epoch."""

    facts: Facts
    proofs: tuple[str, ...]

    def holds(self, keys: Keys) -> bool:
        """Whether two persons of the roster have signed it."""
        return len({signer(proof, self.facts, keys) for proof in self.proofs} - {None}) >= ADOPTERS


def starts(entries: Sequence[TimelineEntry], row: LogEpoch) -> list[Start]:
    """The notes about the start of this epoch that fit its row, whoever wrote them."""
    found: list[Start] = []
    for entry in entries:
        try:
            start = Start(
                facts=Facts.parse(str(entry.data.get("facts"))),
                proofs=tuple(str(proof) for proof in entry.data.get("proofs") or ()),
            )
        except (VerificationError, TypeError):
            continue
        if start.facts.fits(row):
            found.append(start)
    return found
