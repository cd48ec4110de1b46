"""Whether two persons have signed that a past is given up: `ssh-keygen` says so, and an allowed_signers file of the
reader, who trusts neither the bot's roster nor its database here.

A proof is a statement of one field a line, an empty line, and the armored signature over the statement.
"""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

NAMESPACE = "drbot@superprismora"
ACT = "adopt-record"
PERSONS = 2
PATIENCE = 20  # seconds for one call of ssh-keygen


class NoProgramError(Exception):
    """There is no `ssh-keygen` here."""


@dataclass(frozen=True)
class Change:
    """The start of an epoch as the checkpoints show it. `kept` is the root over so many entries of the new log, or
    empty when they are not known; `given_up` is number, size and root of the last checkpoint before."""

    epoch: int
    base: int
    number: int
    given_up: tuple[int, int, str] | None
    kept: Callable[[int], str]


@dataclass(frozen=True)
class Acceptance:
    """The epochs that a reader accepts, and whose keys he trusts."""

    epochs: tuple[int, ...]
    signers: Path | None

    def problem(self, change: Change, facts: str, proofs: Sequence[str]) -> str:
        """Why this start of an epoch cannot be accepted; empty when it can."""
        if not facts:
            return "the witnesses hold no signatures for it"
        wrong = _difference(change, facts)
        if wrong:
            return wrong
        digest = hashlib.sha256(facts.encode()).hexdigest()
        about = {"act": ACT, "subject": f"record epoch {change.epoch}", "digest": digest}
        persons = {
            person
            for proof, person in zip(proofs, self.signers_of(proofs), strict=True)
            if person and all(_fields(proof).get(name) == value for name, value in about.items())
        }
        if len(persons) < PERSONS:
            return f"{len(persons)} of {PERSONS} persons of the allowed_signers file have signed it"
        return ""

    def signers_of(self, proofs: Sequence[str]) -> list[str]:
        """For each proof the person whose key has signed it; empty where none of the file has."""
        return [self._signer(proof) for proof in proofs]

    def _signer(self, proof: str) -> str:
        said, _, armored = proof.partition("\n\n")
        fields = _fields(proof)
        person, at = fields.get("person", ""), fields.get("at", "")
        moment = "".join(sign for sign in at.partition(".")[0] if sign.isdigit())
        if self.signers is None or not person or len(moment) != 14:
            return ""
        with tempfile.TemporaryDirectory() as folder:
            signature = Path(folder) / "signature"
            signature.write_text(armored)
            command = ["ssh-keygen", "-Y", "verify", "-f", str(self.signers), "-I", person, "-n", NAMESPACE]
            command += ["-s", str(signature), f"-Overify-time={moment}Z"]
            try:
                found = subprocess.run(command, input=said.encode(), capture_output=True, timeout=PATIENCE, check=False)
            except OSError as error:
                raise NoProgramError("`ssh-keygen` is needed to check who accepted an epoch; install it.") from error
        return person if found.returncode == 0 else ""


NOTHING = Acceptance((), None)


def _difference(change: Change, facts: str) -> str:
    """What the signed facts say otherwise than the checkpoints."""
    said = {words[0]: words[1:] for line in facts.splitlines() if (words := line.split(" "))}
    for name, value in (("epoch", change.epoch), ("base", change.base), ("number", change.number)):
        if said.get(name) != [str(value)]:
            return f"what was signed has another {name}"
    if change.given_up is not None and said.get("given-up") != [str(word) for word in change.given_up]:
        return "what was signed gives up another past"
    size, root = (*said.get("kept", ()), "", "")[:2]
    if not size.isdecimal() or root != change.kept(int(size)):
        return "what was signed keeps other entries"
    return ""


def _fields(proof: str) -> dict[str, str]:
    return dict(_lines(proof.partition("\n\n")[0]))


def _lines(said: str) -> Iterator[tuple[str, str]]:
    for line in said.split("\n"):
        name, gap, value = line.partition(": ")
        if gap:
            yield name, value
