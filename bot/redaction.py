"""What must never be shown: values of secrets that this process has held, and everything shaped like a known token.

A mask stands between the bot and every text that leaves it: its logs, what it says in Slack, and the sentences it
stores. Masking is the last line of defence, not the rule: the rule is that secrets stay references.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

T = TypeVar("T")

MARK = "[secret]"

SHORTEST = 6
"""Characters. A shorter value would be found in everyday words; `drbot plan check` cannot help whoever uses one."""

_SHAPES = (
    r"xox[a-z](?:\.xox[a-z])?-[A-Za-z0-9-]{10,}",  # Slack: bot, user, refresh
    r"xapp-[0-9]-[A-Za-z0-9-]{10,}",
    r"AGE-SECRET-KEY-1[02-9A-Z]{20,}",
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    r"SCRAM-SHA-256\$[0-9]+:[A-Za-z0-9+/=]+\$[A-Za-z0-9+/=]+:[A-Za-z0-9+/=]+",
    r"hvs\.[A-Za-z0-9_-]{20,}",
    r"gh[pousr]_[A-Za-z0-9]{30,}",
    r"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
)
_TOKENS = re.compile("|".join(_SHAPES))
_IN_URL = re.compile(r"(?P<head>\b[a-z][a-z0-9+.-]*://[^\s/:@\"'<>]*:)[^\s/@\"'<>]+(?=@)", re.IGNORECASE)
_IN_CONNINFO = re.compile(r"\bpassword\s*=\s*(?:'((?:[^'\\]|\\.)*)'|([^\s']+))", re.IGNORECASE)
_LONG_WORD = re.compile(r"[A-Za-z0-9+/=_-]{24,}")


class Mask:
    """Replaces secrets in texts. It learns while the process runs; safe to call from any thread."""

    def __init__(self) -> None:
        self._values: frozenset[str] = frozenset()
        self._public = ""
        self._known: re.Pattern[str] | None = None

    def publish(self, words: Iterable[str]) -> None:
        """Words that stand in the plan file for everybody to read. A value among them is no secret, whatever its
        reference says, and hiding it would hide the names people need."""
        self._public += "\n" + "\n".join(words)
        self._compile(self._values)

    def learn(self, value: str) -> None:
        """A value that must not be shown from now on, in any of the forms it takes on its way into a text."""
        found = set(_parts(value)) - self._values
        if found:
            self._compile(self._values | found)

    def __call__(self, text: str) -> str:
        """The text without secrets."""
        if self._known is not None:
            text = self._known.sub(MARK, text)
        return _IN_URL.sub(rf"\g<head>{MARK}", _TOKENS.sub(MARK, text))

    def tree(self, value: T) -> T:
        """The same structure with every text in it masked; keys stay."""
        masked: T = _tree(self, value)
        return masked

    def _compile(self, values: frozenset[str]) -> None:
        self._values = values
        hidden = [value for value in values if value not in self._public]
        forms = {form for value in hidden for form in _forms(value)}
        # The longest first: of two values that begin alike, the rest of the longer one must not be left standing.
        ordered = sorted(forms, key=lambda form: (-len(form), form))
        self._known = re.compile("|".join(re.escape(form) for form in ordered)) if ordered else None


def texts(value: Any) -> Iterable[str]:
    """Every text in a structure, keys left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts(item)


def _tree(mask: Mask, value: Any) -> Any:
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, Mapping):
        return {key: _tree(mask, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_tree(mask, item) for item in value]
    return value


def _parts(value: str) -> Iterable[str]:
    """What of a resolved value is secret: all of it, the password of an address, the long words of a file."""
    value = value.strip()
    if "\n" in value:
        yield from _LONG_WORD.findall(value)
    found = {value, *_passwords(value)}
    yield from (item for item in found if len(item) >= SHORTEST)


def _passwords(value: str) -> Iterable[str]:
    for quoted, bare in _IN_CONNINFO.findall(value):
        yield quoted.replace("\\'", "'") or bare
    try:
        password = urlsplit(value).password
    except ValueError:
        return
    if password:
        yield password
        yield unquote(password)


def _forms(value: str) -> Iterable[str]:
    yield value
    yield quote(value, safe="")
    yield json.dumps(value)[1:-1]
    yield repr(value)[1:-1]
    yield base64.b64encode(value.encode()).decode()
