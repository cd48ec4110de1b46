"""Block Kit, as little of it as the views need, with the limits of docs.slack.dev/reference/block-kit.

Text of people and of the world goes through `plain` or `code`; `mrkdwn` is for sentences of the product, whose names
have been through `escape`. Nothing here reads a clock or a setting.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

Block = dict[str, Any]
View = dict[str, Any]
Message = dict[str, Any]
"""`text` and `blocks`, to be given to chat.postMessage."""

SECTION = 3000
HEADER = 150
BUTTON = 75
OPTION = 75
VALUE = 150
TITLE = 24
MESSAGE_BLOCKS = 50
MODAL_BLOCKS = 100
MESSAGE_CHARACTERS = 12_000
"""Slack answers `msg_blocks_too_long` near 13.2 thousand characters; the limit is not documented."""

_INVISIBLE = {"Cf", "Cc", "Co", "Cs", "Cn"}
_KEPT = {"\n"}


def printable(text: str) -> str:
    """Without control, zero-width and direction characters, so that a text shows as it is stored."""
    return "".join(
        sign if sign in _KEPT or unicodedata.category(sign) not in _INVISIBLE else (" " if sign in "\t\r" else "")
        for sign in text
    )


def escape(text: str) -> str:
    """For mrkdwn: nothing in it can become a mention, a link or a broadcast."""
    return printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def cut(text: str, limit: int) -> str:
    """At most `limit` characters, the cut visible."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def cut_escaped(text: str, limit: int) -> str:
    """As `cut`, for escaped text: no half entity is left at the end."""
    if len(text) <= limit:
        return text
    head = text[: limit - 1]
    entity = head.rfind("&", max(0, len(head) - 5))
    return (head[:entity] if entity >= 0 and ";" not in head[entity:] else head) + "…"


def plain(text: str, limit: int = SECTION) -> dict[str, Any]:
    return {"type": "plain_text", "text": cut(printable(text).strip() or "-", limit), "emoji": False}


def mrkdwn(text: str, limit: int = SECTION) -> dict[str, Any]:
    return {"type": "mrkdwn", "text": cut_escaped(text.strip() or "-", limit), "verbatim": True}


def header(text: str) -> Block:
    return {"type": "header", "text": plain(" ".join(text.split()), HEADER)}


def section(text: str) -> Block:
    """`text` is mrkdwn of the product."""
    return {"type": "section", "text": mrkdwn(text)}


def words(text: str) -> Block:
    """`text` is somebody's own words: shown as they are, alone in their block."""
    return {"type": "section", "text": plain(text)}


def context(*texts: str) -> Block:
    """Up to ten small mrkdwn texts of the product."""
    return {"type": "context", "elements": [mrkdwn(text) for text in texts[:10] if text.strip()] or [mrkdwn("-")]}


def quiet(text: str) -> Block:
    """Somebody's own words, small."""
    return {"type": "context", "elements": [plain(text, 1000)]}


def divider() -> Block:
    return {"type": "divider"}


def fields(pairs: Sequence[tuple[str, str]]) -> Block:
    """Up to ten facts; names and values are texts of the product or of the world."""
    shown = [mrkdwn(f"*{escape(name)}*\n{escape(value)}", 2000) for name, value in pairs[:10]]
    return {"type": "section", "fields": shown}


def fenced(text: str) -> Block:
    """Text in columns, as in a terminal. What does not fit is cut at a line, visibly."""
    kept: list[str] = []
    room = SECTION - 20
    for line in escape(text).replace("```", "'''").splitlines():
        if len(line) + 1 > room:
            kept.append("…")
            break
        kept.append(line)
        room -= len(line) + 1
    return section("```" + "\n".join(kept or ["-"]) + "```")


def button(text: str, action: str, value: str, *, style: str | None = None) -> Block:
    element: Block = {"type": "button", "text": plain(text, BUTTON), "action_id": action, "value": value}
    if style is not None:
        element["style"] = style
    return element


def actions(name: str, *elements: Block) -> Block:
    return {"type": "actions", "block_id": name, "elements": list(elements)}


def text_input(
    name: str, label: str, *, hint: str = "", long: bool = False, limit: int = 500, optional: bool = False
) -> Block:
    """A text, required unless `optional`; the value is found under block and action `name`."""
    element = {"type": "plain_text_input", "action_id": name, "min_length": 1, "max_length": limit, "multiline": long}
    block: Block = {"type": "input", "block_id": name, "label": plain(label, 2000), "element": element}
    if optional:
        block["optional"] = True
    if hint:
        block["hint"] = plain(hint, 2000)
    return block


def option(label: str, value: str) -> Block:
    return {"text": plain(label, OPTION), "value": cut(value, VALUE)}


def select_input(name: str, label: str, options: Sequence[Block], *, initial: Block) -> Block:
    """A required choice of up to a hundred options."""
    element = {
        "type": "static_select",
        "action_id": name,
        "options": list(options[:100]),
        "initial_option": initial,
    }
    return {"type": "input", "block_id": name, "label": plain(label, 2000), "element": element}


def checkbox_input(name: str, label: str, choice: Block) -> Block:
    """One box that may be ticked; it has the choice's value then."""
    element = {"type": "checkboxes", "action_id": name, "options": [choice]}
    return {"type": "input", "block_id": name, "label": plain(label, 2000), "element": element, "optional": True}


def message(text: str, blocks: Sequence[Block], *, more: str) -> Message:
    """A message within Slack's limits; what is cut is announced by `more`, which says where to read on."""
    kept: list[Block] = []
    room = MESSAGE_CHARACTERS - len(more)
    for index, block in enumerate(blocks):
        size = characters(block)
        last = index == len(blocks) - 1
        if size > room or (len(kept) == MESSAGE_BLOCKS - 1 and not last):
            kept.append(context(more))
            break
        kept.append(block)
        room -= size
    return {"text": cut_escaped(text.strip() or "-", 3000), "blocks": kept}


def modal(
    title: str,
    blocks: Sequence[Block],
    *,
    callback: str = "",
    submit: str = "",
    private: str = "",
    close: str = "Close",
) -> View:
    """A modal of at most a hundred blocks. With `submit` it has a form."""
    view: View = {"type": "modal", "title": plain(title, TITLE), "close": plain(close, TITLE)}
    if callback:
        view["callback_id"] = callback
    if submit:
        view["submit"] = plain(submit, TITLE)
    if private:
        view["private_metadata"] = private
    kept = list(blocks)
    if len(kept) > MODAL_BLOCKS:
        kept = [*kept[: MODAL_BLOCKS - 1], context("More than fits here; the rest is in `drbot plan show`.")]
    return view | {"blocks": kept}


def characters(value: Any) -> int:
    """All characters a person could see in a block."""
    if isinstance(value, dict):
        return sum(
            len(item) if key == "text" and isinstance(item, str) else characters(item) for key, item in value.items()
        )
    return sum(characters(item) for item in value) if isinstance(value, list) else 0


def moment(at: datetime) -> str:
    """`2026-11-23 02:00:05 UTC`."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def minute(at: datetime) -> str:
    """`2026-11-23 02:00 UTC`."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def span(length: timedelta) -> str:
    """`8 h 12 min`, `41 min`, `3 min 5 s`, `4.2 s`: two units at most."""
    seconds = abs(length.total_seconds())
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    days, rest = divmod(whole, 86_400)
    hours, rest = divmod(rest, 3_600)
    minutes, left = divmod(rest, 60)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (left, "s")]
    first = next((index for index, (count, _) in enumerate(parts) if count), 3)
    shown = [f"{count} {unit}" for count, unit in parts[first : first + 2] if count]
    if first == 2 and minutes >= 10:
        shown = shown[:1]
    return " ".join(shown) or "0 s"
