"""Pins: why a backup is kept whatever the policy says (before a migration, as a legal hold), signed, beside it."""

from __future__ import annotations

from datetime import datetime

from pydantic import AwareDatetime

from actions.backup.signing import Signed
from actions.errors import VerificationError
from actions.site import Frozen

PIN = "pin-"  # begins the names of these documents


class Pin(Frozen):
    """Why nothing may delete it; an empty reason takes an earlier pin off."""

    backup: str
    reason: str
    at: AwareDatetime


def pin_name(at: datetime) -> str:
    """Of the document of a pin that was set at this moment. One under another name was put there again by somebody who
    cannot sign: an old one must not take a new one off."""
    return f"{PIN}{at:%Y%m%dT%H%M%S%fZ}.json"


def pin_of(body: bytes, name: str, backup: str, trusted_signers: tuple[str, ...]) -> Pin | None:
    """None when it is not signed by a trusted key, for this backup and under this name."""
    try:
        found = Signed[Pin].parse(body, trusted_signers, what=f"`{name}`")
    except VerificationError:
        return None
    return found if (pin_name(found.at), found.backup) == (name, backup) else None
