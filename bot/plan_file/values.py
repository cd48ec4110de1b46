"""The scalar types of the plan file: durations, references to secrets, schedules.

Every type reads the text a person writes and writes the same text back, so
that a plan saved by a program looks like one written by hand. None of their
error messages repeats the rejected value of a secret: the text of an error
ends up on screens and in logs.
"""

import re
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, Strict, WithJsonSchema

from actions.plan_values import (
    MISFIT,
    SECRET_REF_PATTERN,
    Flag,
    Part,
    SecretRef,
    Shape,
    Text,
    TextRef,
    is_reference,
    misfit,
)
from actions.schedules import PATTERN as SCHEDULE_PATTERN
from actions.schedules import cron_fields

__all__ = [
    "DURATION_PATTERN",
    "MISFIT",
    "SECRET_REF_PATTERN",
    "ActionName",
    "Bytes",
    "Count",
    "Duration",
    "Flag",
    "Identifier",
    "KubernetesName",
    "Name",
    "Part",
    "Ports",
    "Positive",
    "Retention",
    "Schedule",
    "SecretRef",
    "Shape",
    "Text",
    "TextRef",
    "format_duration",
    "is_reference",
    "misfit",
    "parse_bytes",
    "parse_duration",
    "parse_ports",
]

# -- durations ---------------------------------------------------------------

_UNITS = {"w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "s": 1}
DURATION_PATTERN = r"^(?:[0-9]{1,7}(?:w|d|h|m|s))+$"
_DURATION_PIECE = re.compile(r"([0-9]{1,7})(w|d|h|m|s)")


def parse_duration(text: object) -> timedelta:
    """Read "15m", "1h30m" or "30d". Raises ValueError for zero, signs and other units."""
    if isinstance(text, timedelta):
        if text <= timedelta(0) or text.microseconds:
            raise misfit("this duration is not a positive number of whole seconds", "give whole seconds")
        return text
    if not isinstance(text, str) or not re.fullmatch(DURATION_PATTERN, text):
        shown = f"`{text}`" if isinstance(text, str | int | float) else "this"
        raise misfit(f"{shown} is not a duration", "write a number and its unit, such as 30s, 15m, 1h, 30d or 1h30m")
    seconds = sum(int(number) * _UNITS[unit] for number, unit in _DURATION_PIECE.findall(text))
    if seconds == 0:
        raise misfit(f"`{text}` is no time at all", "give a duration longer than zero")
    return timedelta(seconds=seconds)


def format_duration(value: timedelta) -> str:
    """The shortest text that `parse_duration` reads back: 90 minutes are "1h30m", a week is "7d"."""
    left = value.days * 86_400 + value.seconds
    pieces = []
    for unit in "dhms":
        number, left = divmod(left, _UNITS[unit])
        if number:
            pieces.append(f"{number}{unit}")
    return "".join(pieces)


_DURATION_SCHEMA = {
    "type": "string",
    "pattern": DURATION_PATTERN,
    "description": "A duration: a number and its unit, s, m, h, d or w; units may be joined (1h30m).",
    "examples": ["30s", "15m", "1h", "30d"],
}

Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str, when_used="json"),
    WithJsonSchema(_DURATION_SCHEMA),
]


def parse_bytes(text: str) -> int:
    """How many bytes an amount such as "4Gi" is."""
    return int(text[:-2]) << (20 if text.endswith("Mi") else 30)


def _parse_retention(value: object) -> object:
    return value if value == "forever" else parse_duration(value)


def _format_retention(value: timedelta | Literal["forever"]) -> str:
    return value if isinstance(value, str) else format_duration(value)


Retention = Annotated[
    timedelta | Literal["forever"],
    BeforeValidator(_parse_retention),
    PlainSerializer(_format_retention, return_type=str, when_used="json"),
    WithJsonSchema(
        {
            "anyOf": [_DURATION_SCHEMA, {"const": "forever"}],
            "description": "How long a copy is kept: a duration, or `forever`.",
        }
    ),
]


# -- names and texts ---------------------------------------------------------

Name = Annotated[
    str, Shape(r"[a-z0-9][a-z0-9_.-]{0,62}", "use lower case letters, digits, `_`, `.` and `-`, at most 63")
]
"""A label of the plan: lower case letters, digits, `_`, `.` and `-`."""


def label_of(text: str) -> str:
    """A label made of a text for people: `User uploads` is called `user-uploads`; empty where nothing of it fits."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:63].strip("-")


KubernetesName = Annotated[
    str,
    Shape(
        r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?",
        "use a Kubernetes name: lower case letters, digits, `.` and `-`",
    ),
]
Bytes = Annotated[str, Shape(r"[1-9][0-9]*(?:Mi|Gi)", "write an amount such as 512Mi or 4Gi")]
Count = Annotated[int, Strict(), Field(ge=0)]
Positive = Annotated[int, Strict(), Field(ge=1)]

LOWEST_PORT, HIGHEST_PORT = 1024, 65535
"""Lower ports are for the superuser of the machine."""


def parse_ports(text: str) -> tuple[int, int]:
    """The first and the last port of a range such as "55400-55499"."""
    first, _, last = text.partition("-")
    return int(first), int(last)


def _ports(text: str) -> str:
    first, last = parse_ports(text)
    if not LOWEST_PORT <= first <= last <= HIGHEST_PORT:
        raise misfit(
            f"`{text}` is no range of ports", f"give two from {LOWEST_PORT} to {HIGHEST_PORT}, the lower one first"
        )
    return text


Ports = Annotated[
    str,
    Shape(r"[0-9]{4,5}-[0-9]{4,5}", "write the first and the last port, such as 55400-55499"),
    AfterValidator(_ports),
]


def _identifier(text: str) -> str:
    # PostgreSQL cuts identifiers at 63 bytes (NAMEDATALEN - 1) without an error.
    if not text or "\0" in text or len(text.encode()) > 63:
        raise misfit("this is not a PostgreSQL name", "give a name of 1 to 63 bytes")
    return text


Identifier = Annotated[
    str,
    # Quotes, spaces and unicode are legal in PostgreSQL names, so nothing is stripped.
    AfterValidator(_identifier),
    WithJsonSchema(
        {
            "type": "string",
            "minLength": 1,
            "maxLength": 63,
            "description": "A PostgreSQL name, 1 to 63 bytes.",
        }
    ),
]

ActionName = Annotated[str, Shape(r"[a-z]+\.[a-z_]+", "write an action as noun.verb, such as restore.dump")]
"""noun.verb, as `drbot plan check` and the action registry know it."""


# -- schedules ---------------------------------------------------------------


def _schedule(text: str) -> str:
    try:
        cron_fields(text)
    except ValueError as error:
        raise misfit(
            f"`{text}` is not a schedule",
            "write 02:00 UTC, mon 09:00 UTC, 1st mon 09:00 UTC or 1 of jan,apr,jul,oct 09:00 UTC",
        ) from error
    return text


Schedule = Annotated[
    str,
    AfterValidator(_schedule),
    WithJsonSchema(
        {
            "type": "string",
            # JSON Schema speaks ECMA-262, whose named groups are spelt differently.
            "pattern": re.sub(r"\?P<\w+>", "?:", SCHEDULE_PATTERN),
            "description": "When something starts, in UTC: an optional day (mon, 15, last, 1st mon), "
            "optional months (of jan,apr) and the time of day.",
            "examples": ["02:00 UTC", "1st mon 09:00 UTC", "1 of jan,apr,jul,oct 09:00 UTC"],
        }
    ),
]
