"""The record as it was exported: JSON Lines with a head, and then one entry a line with the text its hash is made from.

The export of the whole log shows every entry; that of an incident shows some, each with the path that proves it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from bot.verify.checkpoints import Claim, Witnessed, parsed
from bot.verify.comparison import compare
from bot.verify.findings import Tampering, Verdict
from bot.verify.tree import WIDTH, leaf, path_leads

HEAD = "drbot record export 1"


class NoExportError(Exception):
    """The file is no export; the text says why."""


def verify(path: Path, witnessed: Witnessed, keys: Sequence[Ed25519PublicKey], verdict: Verdict) -> None:
    """Check the file. Raises NoExportError, OSError."""
    with path.open(encoding="utf-8") as file:
        head = _head(next(file, ""))
        if head.get("scope") == "log":
            _whole(_lines(file), witnessed, verdict)
        else:
            _part(head, list(_lines(file)), witnessed, keys, verdict)


def _head(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
        if found.get("form") != HEAD:
            raise ValueError
    except (ValueError, AttributeError) as error:
        raise NoExportError("It does not begin with the head of an export.") from error
    return dict(found)


def _lines(file: Iterable[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file, start=2):
        try:
            found = json.loads(line)
            if not isinstance(found["leaf"], str):
                raise TypeError
        except (ValueError, KeyError, TypeError) as error:
            raise NoExportError(f"Line {number} is no entry.") from error
        yield found


def _whole(lines: Iterator[dict[str, Any]], witnessed: Witnessed, verdict: Verdict) -> None:
    shown, places = bytearray(), []
    for line in lines:
        shown += leaf(line["leaf"].encode())
        places.append(line.get("position"))
    compare(shown, witnessed, verdict, lambda at: f"said to stand at {places[at]}" if at < len(places) else "the end")
    for at, said in enumerate(places):
        if said != at and verdict.good:
            verdict.found(Tampering.DELETED, f"position {at}: the next entry says it stands at {said}", position=at)
            break


def _part(
    head: dict[str, Any],
    lines: list[dict[str, Any]],
    witnessed: Witnessed,
    keys: Sequence[Ed25519PublicKey],
    verdict: Verdict,
) -> None:
    verdict.entries = len(lines)
    claim = _claim(head, keys, verdict)
    if claim is None:
        return
    verdict.witnessed = sum(line.get("position") is not None for line in lines)
    _known(claim, witnessed, verdict)
    for line in lines:
        _entry(line, claim, witnessed, verdict)
    for before, after in pairwise([line["position"] for line in lines if line.get("position") is not None]):
        if after <= before:
            text = f"position {after} stands behind position {before}"
            verdict.found(Tampering.REORDERED, text, position=after)
    if head.get("entries") != len(lines):
        text = f"the export has {len(lines)} entries, its head says {head.get('entries')}"
        verdict.found(Tampering.TRUNCATED, text)
    verdict.notes.append("An export of one incident shows that its entries are in the log, not that they are all.")


def _claim(head: dict[str, Any], keys: Sequence[Ed25519PublicKey], verdict: Verdict) -> Claim | None:
    """The checkpoint of the head, whose signature is checked here."""
    try:
        body, signature = str(head["checkpoint"]["body"]), bytes.fromhex(head["checkpoint"]["signature"])
        claim = parsed(body)
    except (KeyError, TypeError, ValueError, IndexError):
        verdict.found(Tampering.FORGED, "the export carries no checkpoint, so nothing in it is proven")
        return None
    for key in keys:
        try:
            key.verify(signature, body.encode())
            return claim
        except InvalidSignature:
            continue
    verdict.found(Tampering.FORGED, f"no trusted key has signed checkpoint {claim.number} of the export")
    return None


def _known(claim: Claim, witnessed: Witnessed, verdict: Verdict) -> None:
    if not witnessed.claims:
        verdict.notes.append("No witness was asked: the key holder alone vouches for this checkpoint.")
        return
    same = [item for item in witnessed.claims if item.number == claim.number]
    if not same and witnessed.beyond:
        text = f"Checkpoint {claim.number} of the export is not among those given, of which some are missing"
        verdict.notes.append(
            f"{text}: the key holder alone vouches for it. Name another witness, or check the whole log."
        )
    elif not same:
        verdict.found(Tampering.FORGED, f"no witness knows checkpoint {claim.number} of the export")
    elif same[0].body != claim.body:
        verdict.found(Tampering.FORGED, f"the witnesses know another checkpoint {claim.number}")


def _entry(line: dict[str, Any], claim: Claim, witnessed: Witnessed, verdict: Verdict) -> None:
    position = line.get("position")
    if position is None:
        verdict.notes.append("An entry was not sealed yet when this was exported; nothing proves it.")
        return
    made = leaf(line["leaf"].encode())
    known = bytes(witnessed.hashes[position * WIDTH : (position + 1) * WIDTH])
    try:
        path = [bytes.fromhex(part) for part in line["proof"]]
    except (KeyError, TypeError, ValueError):
        path = []
    if not path_leads(made, position, claim.size, path, claim.root) or (known and known != made):
        text = f"position {position} has another content, or another place, than what was sealed"
        verdict.found(Tampering.EDITED, text, position=position)
