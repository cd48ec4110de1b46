"""Which dumps pinned recovery points need: they stay, whoever has put a pin of their own on them or taken one off."""

from __future__ import annotations

from collections.abc import Mapping

from actions.ports import Ports


def point_reason(point: str, why: str) -> str:
    """The reason of a pin that belongs to a recovery point."""
    return f"recovery point {point}: {why}"


async def dumps_held(ports: Ports, database: str, *, but: str = "") -> Mapping[str, str]:
    """Dump -> the reason of the pin that a pinned recovery point, other than `but`, has on it."""
    if ports.site.points is None:
        return {}
    found: dict[str, str] = {}
    for entry in await ports.points.entries():
        if entry.pinned and entry.point.id != but:
            for part in entry.point.databases:
                if part.database == database and part.backup:
                    found.setdefault(part.backup, point_reason(entry.point.id, entry.pinned))
    return found
