"""Checkpoints as witnesses hold them, checked with a public key, and the log they vouch for."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from bot.verify.findings import Tampering, Verdict
from bot.verify.tree import WIDTH, Roots


class UnreadableError(Exception):
    """A line that is no checkpoint at all, such as one cut by a crash."""


@dataclass(frozen=True)
class Claim:
    """What one signed checkpoint says. `leaves` are the hashes of the entries from `base` on."""

    number: int
    epoch: int
    base: int
    size: int
    root: bytes
    at: str
    body: str
    leaves: bytes
    consumed: Mapping[str, str]


@dataclass
class Witnessed:
    """What the checkpoints prove together: the hash of every entry, as far as their lists reach without a gap, and the
    roots of larger sizes after a gap."""

    claims: list[Claim] = field(default_factory=list)
    hashes: bytearray = field(default_factory=bytearray)
    beyond: list[Claim] = field(default_factory=list)

    @property
    def size(self) -> int:
        """The most entries that a checkpoint covers."""
        return max([len(self.hashes) // WIDTH, *(claim.size for claim in self.beyond)])


def public_key(text: str) -> Ed25519PublicKey:
    """A key from base64 of its 32 bytes. Raises ValueError."""
    return Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))


def read(lines: Iterable[tuple[str, str]], keys: Iterable[Ed25519PublicKey], verdict: Verdict) -> Witnessed:
    """Check (where, line) pairs and join what they prove. What no key has signed is told in the verdict."""
    known = {hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]: key for key in keys}
    claims: dict[int, Claim] = {}
    for where, line in lines:
        try:
            claim = _claim(where, line, known, verdict)
        except UnreadableError:
            verdict.notes.append(f"{where}: a line is no checkpoint; a crash may have cut it.")
            continue
        if claim is None:
            continue
        other = claims.get(claim.number)
        if other is not None and other.body != claim.body:
            text = f"{where}: two different checkpoints {claim.number} are signed: the key holder showed two pasts."
            verdict.found(Tampering.FORGED, text)
        claims[claim.number] = claim
    return _joined(sorted(claims.values(), key=lambda item: item.number), verdict)


def _claim(where: str, line: str, known: Mapping[str, Ed25519PublicKey], verdict: Verdict) -> Claim | None:
    try:
        found = json.loads(line)
        body, signature = str(found["body"]), base64.b64decode(found["signature"], validate=True)
        leaves = base64.b64decode(found.get("leaves", ""), validate=True)
        claim = parsed(body, leaves)
        key = known.get(_words(body, "key")[0][0])
    except (ValueError, KeyError, TypeError, IndexError, binascii.Error) as error:
        raise UnreadableError from error
    if key is None:
        verdict.found(Tampering.FORGED, f"{where}: checkpoint {claim.number} is signed with a key that is not trusted.")
        return None
    try:
        key.verify(signature, body.encode())
    except InvalidSignature:
        verdict.found(Tampering.FORGED, f"{where}: the signature of checkpoint {claim.number} is not the key's.")
        return None
    return claim


def parsed(body: str, leaves: bytes = b"") -> Claim:
    """The facts of a checkpoint's text. Raises ValueError or IndexError for another text."""
    if body.split("\n", 1)[0] != "drbot record checkpoint 1":
        raise ValueError("no checkpoint")
    return Claim(
        number=int(_words(body, "number")[0][0]),
        epoch=int(_words(body, "epoch")[0][0]),
        base=int(_words(body, "base")[0][0]),
        size=int(_words(body, "size")[0][0]),
        root=bytes.fromhex(_words(body, "root")[0][0]),
        at=_words(body, "at")[0][0],
        body=body,
        leaves=leaves,
        consumed={words[0]: words[1] for words in _words(body, "consumed")},
    )


def _words(body: str, name: str) -> list[list[str]]:
    return [line.split(" ")[1:] for line in body.splitlines() if line.startswith(f"{name} ")]


def _joined(claims: list[Claim], verdict: Verdict) -> Witnessed:
    witnessed = Witnessed(claims=claims)
    roots, epoch = Roots(), 0
    for claim in claims:
        have = len(witnessed.hashes) // WIDTH
        if claim.epoch != epoch:
            roots = _begin(witnessed, claim, epoch, verdict)
            epoch, have = claim.epoch, len(witnessed.hashes) // WIDTH
        if witnessed.beyond or claim.base > have:
            witnessed.beyond.append(claim)
            continue
        if claim.base != have or len(claim.leaves) != (claim.size - claim.base) * WIDTH:
            verdict.found(Tampering.FORGED, f"Checkpoint {claim.number} does not go on from the one before it.")
            continue
        roots.add(claim.leaves)
        if roots.root() != claim.root:
            text = f"The list of entries beside checkpoint {claim.number} is not what its signature covers."
            verdict.found(Tampering.FORGED, text)
            roots = Roots()
            roots.add(witnessed.hashes)
            witnessed.beyond.append(claim)
            continue
        witnessed.hashes += claim.leaves
    if witnessed.beyond:
        text = f"Checkpoints before number {witnessed.beyond[0].number} are missing here; name another witness as well."
        verdict.notes.append(text)
    return witnessed


def _begin(witnessed: Witnessed, claim: Claim, epoch: int, verdict: Verdict) -> Roots:
    """A person started a new epoch: what is behind its base was given up."""
    lost = witnessed.size - claim.base
    verdict.notes.append(
        f"Epoch {claim.epoch} began with checkpoint {claim.number} ({claim.at}): {max(0, lost)} entries that witnesses "
        f"knew in epoch {epoch} were given up. Ask who did so, and why: `drbot record adopt` is on the timeline."
    )
    del witnessed.hashes[claim.base * WIDTH :]
    witnessed.beyond.clear()
    roots = Roots()
    roots.add(witnessed.hashes)
    return roots
