"""Windows of time: freezes, in which nothing starts, and the rota, who is there when."""

import re
from datetime import UTC, datetime, time
from enum import StrEnum
from typing import Annotated, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Field, model_validator

from actions.policy import Once, Weekly, Window
from bot.plan_file.values import Name, Part, Shape, Text, misfit


class Weekday(StrEnum):
    """A day of the week."""

    MON = "mon"
    TUE = "tue"
    WED = "wed"
    THU = "thu"
    FRI = "fri"
    SAT = "sat"
    SUN = "sun"


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise misfit(f"there is no time zone `{name}`", "use UTC, or an IANA name such as Europe/Berlin") from error
    return name


Zone = Annotated[str, AfterValidator(_zone)]
TimeOfDay = Annotated[str, Shape(r"(?:[01][0-9]|2[0-3]):[0-5][0-9]", 'write a time of day such as "22:00"')]

_INSTANT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2} UTC")


def _instant(text: str) -> datetime:
    try:
        found = datetime.strptime(text, "%Y-%m-%d %H:%M UTC").replace(tzinfo=UTC) if _INSTANT.fullmatch(text) else None
    except ValueError:
        found = None
    if found is None:
        raise misfit(f"`{text}` is not an instant", "write 2026-11-27 00:00 UTC; with `every`, a time of day")
    return found


class Freeze(Part):
    """A time in which nothing that the rule covers starts; break-glass passes it. With `every` it comes back weekly."""

    reason: Text
    """Why, as people are told."""
    since: Text
    """Its beginning: 2026-11-27 00:00 UTC, or with `every` a time of day, "22:00"."""
    until: Text
    """Its end, in the same form; a time of day not after `since` is on the next day."""
    every: tuple[Weekday, ...] = ()
    """The days it begins on each week: mon, tue, wed, thu, fri, sat, sun."""
    zone: Zone = "UTC"
    """Time zone of the times of day, as an IANA name; instants are in UTC."""

    @model_validator(mode="after")
    def one_of_two_forms(self) -> Self:
        """Refuse an end before the beginning, and times that do not fit `every`."""
        window = self.window()
        if isinstance(window, Once) and window.until <= window.since:
            raise misfit("it ends before it begins", "give an `until` after `since`")
        if isinstance(window, Once) and self.zone != "UTC":
            raise misfit("`zone` is for times of day", "write both instants in UTC, or add `every`")
        return self

    def window(self) -> Window:
        """The freeze as the policy takes it."""
        if not self.every:
            return Once(since=_instant(self.since), until=_instant(self.until), reason=self.reason)
        return weekly(self.every, self.since, self.until, self.zone, self.reason)


class Shift(Part):
    """Hours of the week in which persons can be reached. Without a rota everybody counts as reachable at all hours."""

    persons: tuple[Name, ...] = Field(min_length=1)
    """Who: `id`s of the roster."""
    every: tuple[Weekday, ...] = tuple(Weekday)
    """The days the shift begins on."""
    since: TimeOfDay = "00:00"
    """Time of day it begins."""
    until: TimeOfDay = "00:00"
    """Time of day it ends; not after `since` is on the next day."""
    zone: Zone = "UTC"
    """Time zone of the two, as an IANA name."""

    def window(self) -> Window:
        """Its hours."""
        return weekly(self.every, self.since, self.until, self.zone)


def weekly(days: tuple[Weekday, ...], since: str, until: str, zone: str, reason: str = "") -> Weekly:
    """A window that comes back every week. Raises ValueError for what is no time of day."""
    return Weekly(
        days=frozenset(list(Weekday).index(day) for day in days),
        since=_time(since),
        until=_time(until),
        zone=zone,
        reason=reason,
    )


def _time(text: str) -> time:
    if not re.fullmatch(r"(?:[01][0-9]|2[0-3]):[0-5][0-9]", text):
        raise misfit(f"`{text}` is not a time of day", 'with `every`, write "22:00"; without it, 2026-11-27 00:00 UTC')
    return time.fromisoformat(text)
