"""Text as people type it on phones, in Slack and in a shell, cut into words.

Slack replaces people, channels and links by `<...>` and escapes `&<>`
(docs.slack.dev/messaging/formatting-message-text); phones turn quotes and double hyphens into typographic ones.
Nothing here raises: an odd quote is just a character.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_DOUBLE = '"“”„‟«»'
_SINGLE = "'‘’‚‛"
_SPACES = re.compile(r"[\u00a0\u1680\u2000-\u200b\u202f\u205f\u2060\u3000\ufeff\s]+")
_MARK = re.compile(r"<([@#!]?)([^<>|\n]*)(?:\|([^<>\n]*))?>")
_DASHES = re.compile(r"[-‐‑‒–—―−]{1,3}(?=[A-Za-z])")


class Token(NamedTuple):
    """One word: `value` for a parameter (ids), `readable` for a sentence (names). `dashed` holds an option's dashes."""

    value: str
    readable: str
    dashed: str = ""

    @property
    def option(self) -> bool:
        """True for `--x`, and for a typographic dash in its place."""
        return self.dashed not in ("", "-")


def tokens(text: str) -> list[Token]:
    """Cut at white space; quotes keep words together where they open a word (or follow `=`) and are closed."""
    text = _SPACES.sub(" ", text).strip()
    found: list[Token] = []
    at = 0
    while at < len(text):
        if text[at] == " ":
            at += 1
            continue
        word, quoted, at = _word(text, at)
        found.append(_token(word, quoted=quoted))
    return found


def _word(text: str, at: int) -> tuple[str, bool, int]:
    """The word that starts at `at`, whether it was quoted from its start, and where the next one starts."""
    start, out = at, ""
    quoted = False
    while at < len(text) and text[at] != " ":
        opens = at == start or text[at - 1] == "="
        closed = _closing(text, at) if opens else None
        if closed is not None:
            quoted = quoted or at == start
            out += re.sub(r"\\([\"'\\])", r"\1", text[at + 1 : closed])
            at = closed + 1
            continue
        if text[at] == "<" and (mark := _MARK.match(text, at)):
            out += mark.group()  # a label may hold spaces
            at = mark.end()
            continue
        out += text[at]
        at += 1
    return out, quoted, at


def _closing(text: str, at: int) -> int | None:
    """Where the quote that opens at `at` is closed: before a space or the end, so that apostrophes stay letters."""
    kinds = next((kinds for kinds in (_DOUBLE, _SINGLE) if text[at] in kinds), None)
    if kinds is None:
        return None
    for end in range(at + 1, len(text)):
        if text[end] in kinds and text[end - 1] != "\\" and (end + 1 == len(text) or text[end + 1] == " "):
            return end
    return None


def _token(word: str, *, quoted: bool) -> Token:
    dashes = None if quoted else _DASHES.match(word)
    dashed = dashes.group() if dashes else ""
    body = word[len(dashed) :] if dashed not in ("", "-") else word
    return Token(_unescape(_MARK.sub(_id, body)), _unescape(_MARK.sub(_name, word)), dashed)


def _id(mark: re.Match[str]) -> str:
    kind, target, _ = mark.groups()
    if kind == "!":
        return target.rpartition("^")[2]
    return target.removeprefix("mailto:").removeprefix("tel:")


def _name(mark: re.Match[str]) -> str:
    kind, _, label = mark.groups()
    if kind in ("@", "#"):
        return kind + (label or _id(mark))
    return label if kind == "!" and label else _id(mark)


def _unescape(text: str) -> str:
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
