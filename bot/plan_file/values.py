"""The scalar types of the plan file: durations, references to secrets, schedules.

Every type reads the text a person writes and writes the same text back, so
that a plan saved by a program looks like one written by hand. None of their
error messages repeats the rejected value of a secret: the text of an error
ends up on screens and in logs.
"""

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    Strict,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from actions.schedules import PATTERN as SCHEDULE_PATTERN
from actions.schedules import cron_fields

MISFIT = "plan_misfit"
"""Type of the validation errors made by `misfit`; their context holds `wrong` and `right`."""


def misfit(wrong: str, right: str) -> PydanticCustomError:
    """The error (a ValueError) for a value that does not fit: what is wrong, what would be right."""
    return PydanticCustomError(MISFIT, "{wrong}; {right}", {"wrong": wrong, "right": right})


@dataclass(frozen=True)
class Shape:
    """A pattern a text must match, with the sentence that tells what would be right."""

    pattern: str
    right: str
    repeat: bool = True
    """Whether a message may repeat the rejected text; never for what may be a secret."""

    def _check(self, text: str) -> str:
        if re.fullmatch(self.pattern, text) is None:
            raise misfit(f"`{text}` has the wrong form" if self.repeat else "this has the wrong form", self.right)
        return text

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(schema), "pattern": f"^(?:{self.pattern})$"}


class Part(BaseModel):
    """A part of the plan: immutable, and an unknown key is an error.

    `hide_input_in_errors` keeps a secret that was typed into the file by
    mistake out of the exception's text.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        str_strip_whitespace=True,
        use_attribute_docstrings=True,
    )


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


# -- references --------------------------------------------------------------

_SCHEMES = {
    "env": r"env:[A-Za-z_][A-Za-z0-9_]*",
    "file": r"file:/[^\s]+",
    "k8s": r"k8s:[a-z0-9][a-z0-9-]*/[a-z0-9][a-z0-9.-]*/[A-Za-z0-9._-]+",
    "vault": r"vault:[A-Za-z0-9_./-]+#[A-Za-z0-9_.-]+",
}
SECRET_REF_PATTERN = "^(?:" + "|".join(_SCHEMES.values()) + ")$"
_FORMS = "env:NAME, file:/path, k8s:namespace/secret/key or vault:path#key"


def is_reference(text: str) -> bool:
    """True when the text is a well-formed reference rather than a literal."""
    return re.fullmatch(SECRET_REF_PATTERN, text) is not None


def _secret_ref(text: str) -> str:
    if is_reference(text):
        return text
    if text.partition(":")[0] in _SCHEMES:
        raise misfit("this reference is malformed", f"write {_FORMS}")
    # The text itself is never repeated: it may be the secret.
    raise misfit("a secret is never written into the plan", f"give a reference: {_FORMS}")


def _text_ref(text: str) -> str:
    if not text:
        raise misfit("the value is empty", "give a value or leave the key out")
    if "${" in text:
        raise misfit("${NAME} is not expanded", "write the whole value as env:NAME")
    scheme = text.partition(":")[0]
    if scheme in _SCHEMES and not is_reference(text):
        raise misfit("this reference is malformed", f"write {_FORMS}")
    return text


SecretRef = Annotated[
    str,
    AfterValidator(_secret_ref),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": SECRET_REF_PATTERN,
            "description": f"A reference to a secret, never the secret: {_FORMS}.",
            "examples": ["env:DR_DATABASE_DSN", "k8s:dr/superprismora-dr/signing-key"],
        }
    ),
]
"""A checked reference; the `Secrets` port resolves it at the moment of use."""

TextRef = Annotated[
    str,
    AfterValidator(_text_ref),
    WithJsonSchema(
        {
            "type": "string",
            "minLength": 1,
            "description": f"A plain value, or a reference to it: {_FORMS}.",
        }
    ),
]
"""A value that differs between sites: a literal, or a reference."""


# -- names and texts ---------------------------------------------------------

Name = Annotated[
    str, Shape(r"[a-z0-9][a-z0-9_.-]{0,62}", "use lower case letters, digits, `_`, `.` and `-`, at most 63")
]
"""A label of the plan: lower case letters, digits, `_`, `.` and `-`."""

KubernetesName = Annotated[
    str,
    Shape(
        r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?",
        "use a Kubernetes name: lower case letters, digits, `.` and `-`",
    ),
]
Text = Annotated[str, Field(min_length=1)]
Bytes = Annotated[str, Shape(r"[1-9][0-9]*(?:Mi|Gi)", "write an amount such as 512Mi or 4Gi")]
Flag = Annotated[bool, Strict()]
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
