"""Pins: why a backup is kept whatever the policy says (before a migration, as a legal hold), signed, beside it."""

from __future__ import annotations

from pydantic import AwareDatetime

from actions.site import Frozen

PIN = "pin-"  # begins the names of these documents


class Pin(Frozen):
    """Why nothing may delete it; an empty reason takes an earlier pin off."""

    backup: str
    reason: str
    at: AwareDatetime
