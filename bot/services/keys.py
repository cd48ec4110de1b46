"""Signatures by OpenSSH key: whether a stored proof is the act that its row claims.

The same check is made when a signature comes in and by the worker before it executes, from the stored proof alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Literal

from bot.openssh import AllowedKey, OpenSshError, SshSignature, ssh_signature
from bot.services.statements import NAMESPACE, Proof, Statement, StatementError

SOURCE: Literal["key"] = "key"
"""`SignatureRow.source` of what is told here."""

PATIENCE = timedelta(minutes=10)
"""How far the signer's clock, passphrase included, may lie behind ours; and the tolerance of the stored time."""

AHEAD = timedelta(minutes=2)


class Claim(Statement):
    """What a stored row says was signed; `at` is when it was recorded."""

    nonce: str = ""


class Keys:
    """The keys of a roster, by person."""

    def __init__(self, keys: Mapping[str, Sequence[AllowedKey]]) -> None:
        self._keys = {person: tuple(allowed) for person, allowed in keys.items()}

    def has(self, person: str) -> bool:
        """Whether this person can sign by key at all."""
        return bool(self._keys.get(person))

    def problem(self, claim: Claim, proof: str) -> str | None:
        """Why the proof does not show this claim; None when it does."""
        try:
            found = Proof.of(proof)
            signature = ssh_signature(found.armored)
            signature.check(found.statement.text.encode(), NAMESPACE)
        except (StatementError, OpenSshError) as error:
            return str(error)
        return _difference(claim, found.statement) or self._objection(claim, signature)

    def _objection(self, claim: Claim, signature: SshSignature) -> str | None:
        for allowed in self._keys.get(claim.person, ()):
            if allowed.key.blob == signature.key.blob:
                return allowed.objection(NAMESPACE, claim.at)
        return f"the key {signature.key.fingerprint} is none of {claim.person}'s keys in the roster"


def _difference(claim: Claim, said: Statement) -> str | None:
    for name in ("act", "subject", "digest", "person", "target", "reason"):
        if getattr(claim, name) != getattr(said, name):
            return f"the {name} is not the one that was signed"
    if not -PATIENCE <= said.at - claim.at <= AHEAD:
        return (
            f"it was signed at {said.at:%H:%M:%S} UTC and arrived at {claim.at:%H:%M:%S} UTC; "
            "set the clock of the machine and sign again"
        )
    return None


def once(proofs: Sequence[str]) -> list[bool]:
    """Which of these proofs, in the order they were stored, is told for the first time: a copy adds nothing."""
    seen: set[str] = set()
    fresh: list[bool] = []
    for proof in proofs:
        said = proof.partition("\n\n")[0]
        fresh.append(not proof or said not in seen)
        seen.add(said)
    return fresh
