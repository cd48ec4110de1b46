"""Moments as people write them, and as they are shown where a second matters."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from actions.errors import UserError

_UNITS = {"s": "seconds", "m": "minutes", "min": "minutes", "h": "hours", "d": "days"}


def moment_of(text: str, now: datetime) -> datetime:
    """`2026-02-26 10:30:00 UTC`, `10:29:58.4` (UTC unless a zone follows; the last time that it was so late there),
    `10:30 +02:00`, `15m ago`. In UTC. Raises UserError for anything else and for what is still to come."""
    words = " ".join(text.split())
    ago = re.fullmatch(r"(\d{1,4}) ?(s|m|min|h|d)(?: ago)?", words)
    if ago:
        return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    iso = re.sub(r" ?(?:UTC|Z)$", "+00:00", words)
    iso = re.sub(r" (?=[+-]\d{2}:?\d{2}$)", "", iso)
    today = re.fullmatch(r"\d{1,2}:\d{2}(:\d{2}(\.\d{1,6})?)?([+-]\d{2}:?\d{2})?", iso) is not None
    if today:
        iso = f"{now.astimezone(UTC):%Y-%m-%d}T{iso if iso[2] == ':' else '0' + iso}"
    try:
        found = datetime.fromisoformat(iso)
    except ValueError as error:
        raise UserError(
            f"`{words[:60]}` is no moment. Write `10:29:58` (UTC), `12:29:58 +02:00` (a zone by its offset, not by its "
            "name), `2026-02-26 10:30:00 UTC` or `15m ago`."
        ) from error
    found = (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    if today:
        # Of a zone ahead of UTC it may be tomorrow there already, of one behind it still yesterday.
        found += (now - found) // timedelta(days=1) * timedelta(days=1)
    if found > now:
        raise UserError(f"{exact(found)} is still to come; it is {exact(now)} now. Take a moment that has passed.")
    return found


def delay_of(text: str) -> timedelta:
    """`4h`, `30m`. Raises UserError for anything else."""
    found = re.fullmatch(r"(\d{1,4}) ?(s|m|min|h|d)", text.strip())
    if found is None:
        raise UserError(f"`{text[:60]}` is no delay. Write `4h` or `30m`.")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def exact(at: datetime) -> str:
    """`2026-11-23 10:29:58.4 UTC`: with as much of a second as there is."""
    at = at.astimezone(UTC)
    fraction = f"{at.microsecond:06d}".rstrip("0")
    return f"{at:%Y-%m-%d %H:%M:%S}{'.' + fraction if fraction else ''} UTC"


def clock(at: datetime) -> str:
    """`10:29:58.4`: the time of day in UTC, to a tenth of a second."""
    at = at.astimezone(UTC)
    return f"{at:%H:%M:%S}.{at.microsecond // 100_000}"
