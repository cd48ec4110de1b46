"""The log that is shown against the log that witnesses vouch for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bot.verify.checkpoints import Witnessed
from bot.verify.findings import Tampering, Verdict
from bot.verify.tree import WIDTH, root_of, split

Name = Callable[[int], str]
"""Tells people which entry stands at a position."""


def compare(
    shown: bytes | bytearray,
    witnessed: Witnessed,
    verdict: Verdict,
    name: Name,
    *,
    own: Mapping[int, str] | None = None,
) -> None:
    """Tell what was done to the log, and the first entry it was done to. `shown` are the hashes of its entries, made
    from their values; `own` the checkpoints that stand beside them, where they are known."""
    verdict.entries = len(shown) // WIDTH
    verdict.witnessed = witnessed.size
    known = witnessed.hashes
    if shown[: len(known)] == known:
        _beyond(shown, witnessed, verdict, own)
        return
    count = verdict.entries
    first = _first_difference(shown, known)
    if first == count:
        missing = witnessed.size - count
        text = f"position {count} and {missing - 1} more after it, up to {witnessed.size}, which witnesses know"
        verdict.found(Tampering.TRUNCATED, text, position=count)
        return
    left, were = list(split(shown[first * WIDTH :])), list(split(known[first * WIDTH :]))
    kind = _kind(left, were, anew=first == 0 or _sealed_anew(first, witnessed, own))
    verdict.found(kind, _sentence(kind, first, name), position=first)
    if kind is Tampering.EDITED and count < witnessed.size and not set(left) & set(were):
        text = f"position {count} and {witnessed.size - count - 1} more after it, which witnesses know"
        verdict.found(Tampering.TRUNCATED, text, position=count)


def _beyond(shown: bytes | bytearray, witnessed: Witnessed, verdict: Verdict, own: Mapping[int, str] | None) -> None:
    """Where only roots are known: after a gap, or from a channel."""
    good = len(witnessed.hashes) // WIDTH
    for claim in witnessed.beyond:
        if claim.size > verdict.entries:
            text = f"position {verdict.entries}: checkpoint {claim.number} covers {claim.size} entries"
            verdict.found(Tampering.TRUNCATED, text, position=verdict.entries)
            return
        if root_of(shown[: claim.size * WIDTH]) != claim.root:
            if any(good <= bad.position < claim.size for bad in verdict.bad):
                return  # what was done there is known already, by the leaves of the log itself
            anew = own is not None and own.get(claim.number) != claim.body
            kind = Tampering.REBUILT if anew else Tampering.REWRITTEN
            text = f"between position {good} and {claim.size - 1}: not what checkpoint {claim.number} covers"
            verdict.found(kind, text, position=good)
            return
        good = claim.size


def _first_difference(shown: bytes | bytearray, known: bytes | bytearray) -> int:
    """By halves, since comparing slices is quick."""
    low, high = 0, min(len(shown), len(known)) // WIDTH
    while low < high:
        middle = (low + high + 1) // 2
        if shown[low * WIDTH : middle * WIDTH] == known[low * WIDTH : middle * WIDTH]:
            low = middle
        else:
            high = middle - 1
    return low


def _sealed_anew(first: int, witnessed: Witnessed, own: Mapping[int, str] | None) -> bool:
    """Whether the checkpoints that stand beside the log are others than the witnesses', from this position on: entries
    that were only edited are still under the old ones."""
    return own is not None and any(
        claim.size > first and own.get(claim.number) != claim.body for claim in witnessed.claims
    )


def _kind(shown: list[bytes], known: list[bytes], *, anew: bool) -> Tampering:
    """From the first difference on. `shown` may go on behind `known`: what came last no witness has seen yet."""
    inside, were = set(shown), set(known)
    if not inside & were and len(known) > 1:
        # Nothing is left of what was sealed. By the hashes alone another log and entries that were all edited look the
        # same; another log has other checkpoints, or begins at the first entry.
        return Tampering.REBUILT if anew else Tampering.EDITED
    if known[0] in inside and shown[0] in were:
        return Tampering.REORDERED
    if known[0] in inside:
        return Tampering.INSERTED
    if shown[0] in were:
        return Tampering.DELETED
    return Tampering.EDITED


def _sentence(kind: Tampering, position: int, name: Name) -> str:
    here = f"position {position} ({name(position)})"
    return {
        Tampering.REBUILT: f"{here} and everything after it is another log than the witnesses'",
        Tampering.REORDERED: f"{here} stood at another place when it was sealed",
        Tampering.INSERTED: f"{here} was not there when its neighbours were sealed",
        Tampering.DELETED: f"position {position}: the entry that stood before {name(position)} is gone",
    }.get(kind, f"{here} has another content than the one that was sealed")
