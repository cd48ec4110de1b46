"""Text of people and of the world, written so that it cannot speak to the terminal of whoever reads it."""

from __future__ import annotations

import unicodedata

_HIDDEN = {"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"}
"""Controls, directions and zero width, what no font is bound to show, and ends of lines."""


def visible(text: str) -> str:
    """On one line, with each sign that steers or hides written as an escape: a text neither colours, moves nor reorders
    what stands around it, and two that look the same are the same."""
    return "".join(sign if unicodedata.category(sign) not in _HIDDEN else _escape(sign) for sign in text)


def visible_lines(text: str) -> str:
    """As `visible`, line by line."""
    return "\n".join(map(visible, text.split("\n")))


def _escape(sign: str) -> str:
    return sign.encode("unicode_escape", "replace").decode()
