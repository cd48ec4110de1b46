"""Checkpoints as witnesses hold them, checked with a public key, and the log they vouch for."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from bot.verify.adoption import NOTHING, Acceptance, Change
from bot.verify.findings import Tampering, Verdict
from bot.verify.sources import COPIED
from bot.verify.tree import WIDTH, Roots, root_of


class UnreadableError(Exception):
    """A line that is no checkpoint at all, such as one cut by a crash."""


@dataclass(frozen=True)
class Claim:
    """What one signed checkpoint says. `leaves` are the hashes of the entries from `base` on, if told."""

    number: int
    epoch: int
    base: int
    size: int
    root: bytes
    at: str
    body: str
    leaves: bytes
    consumed: Mapping[str, str]
    facts: str = ""  # of the adoption that begins an epoch
    proofs: tuple[str, ...] = ()


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


def read(
    lines: Iterable[tuple[str, str]],
    keys: Iterable[Ed25519PublicKey],
    verdict: Verdict,
    acceptance: Acceptance = NOTHING,
) -> Witnessed:
    """Check (where, line) pairs and join what they prove. What no key has signed is told in the verdict, and so is
    every past that was given up without being accepted."""
    known = {hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]: key for key in keys}
    claims: dict[int, Claim] = {}
    for where, line in lines:
        try:
            claim = _claim(where, line, known, verdict)
        except UnreadableError:
            if where == COPIED:
                verdict.found(Tampering.FORGED, f"{where} is no checkpoint; copy it whole, from one brace to the other")
            else:
                verdict.notes.append(f"{where}: a line is no checkpoint; a crash may have cut it.")
            continue
        if claim is None:
            continue
        other = claims.get(claim.number)
        if other is not None and other.body != claim.body:
            text = f"{where}: two different checkpoints {claim.number} are signed: the key holder showed two pasts."
            verdict.found(Tampering.FORGED, text)
            if other.facts and not claim.facts:
                continue
            other = None
        claims[claim.number] = claim if other is None else _both(other, claim)
    return _joined(sorted(claims.values(), key=lambda item: item.number), verdict, acceptance)


def _both(one: Claim, other: Claim) -> Claim:
    """One checkpoint from two places, of which one may hold more."""
    told = other if other.facts else one
    return replace(other, leaves=other.leaves or one.leaves, facts=told.facts, proofs=told.proofs)


def _claim(where: str, line: str, known: Mapping[str, Ed25519PublicKey], verdict: Verdict) -> Claim | None:
    try:
        found = json.loads(line)
        body, signature = str(found["body"]), base64.b64decode(found["signature"], validate=True)
        leaves = base64.b64decode(found.get("leaves", ""), validate=True)
        adopted = found.get("adoption") or {}
        claim = replace(
            parsed(body, leaves),
            facts=str(adopted.get("facts", "")),
            proofs=tuple(str(proof) for proof in adopted.get("proofs", ())),
        )
        key = known.get(_words(body, "key")[0][0])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, binascii.Error) as error:
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


def _joined(claims: list[Claim], verdict: Verdict, acceptance: Acceptance) -> Witnessed:
    witnessed = Witnessed(claims=claims)
    roots, epoch = Roots(), 0
    for claim in claims:
        have = len(witnessed.hashes) // WIDTH
        if claim.epoch != epoch:
            _given_up(witnessed, claim, epoch, verdict, acceptance)
            roots = _begin(witnessed, claim)
            epoch, have = claim.epoch, len(witnessed.hashes) // WIDTH
        root_only = not claim.leaves and claim.base == have < claim.size
        if witnessed.beyond or claim.base > have or root_only:
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
        verdict.notes.append(
            f"From checkpoint {witnessed.beyond[0].number} on checkpoints are missing here, or are roots alone: they "
            "show that the log is another one, not which entry. Name another witness as well."
        )
    return witnessed


def _given_up(witnessed: Witnessed, claim: Claim, epoch: int, verdict: Verdict, acceptance: Acceptance) -> None:
    """A new epoch began: what is behind its base was given up. That is as bad as a rebuilt log, unless the reader
    accepts it and two persons have signed for just this change."""
    lost = max(0, witnessed.size - claim.base)
    text = (
        f"epoch {claim.epoch} began with checkpoint {claim.number} ({claim.at}): {lost} entries that witnesses knew in "
        f"epoch {epoch} were given up"
    )
    if claim.epoch not in acceptance.epochs:
        ask = "ask who did so, and why (`drbot record adopt` is on the timeline); if it was right, add"
        verdict.found(Tampering.GIVEN_UP, f"{text}; {ask} `--accept-epoch {claim.epoch} --signers FILE`")
        return
    earlier = [item for item in witnessed.claims if item.number < claim.number and item.epoch < claim.epoch]
    newest = max(earlier, key=lambda item: item.number, default=None)
    before = witnessed.hashes[: claim.base * WIDTH]
    whole = len(before) == claim.base * WIDTH and len(claim.leaves) == (claim.size - claim.base) * WIDTH
    change = Change(
        epoch=claim.epoch,
        base=claim.base,
        number=claim.number - 1,
        given_up=None if newest is None else (newest.number, newest.size, newest.root.hex()),
        kept=lambda size: (
            root_of((before + claim.leaves)[: size * WIDTH]).hex() if whole and size <= claim.size else ""
        ),
    )
    problem = acceptance.problem(change, claim.facts, claim.proofs)
    if problem:
        verdict.found(Tampering.GIVEN_UP, f"{text}; this cannot be accepted: {problem}")
        return
    verdict.notes.append(f"Accepted: {text}, signed by {', '.join(acceptance.signers_of(claim.proofs))}.")


def _begin(witnessed: Witnessed, claim: Claim) -> Roots:
    del witnessed.hashes[claim.base * WIDTH :]
    witnessed.beyond.clear()
    roots = Roots()
    roots.add(witnessed.hashes)
    return roots
