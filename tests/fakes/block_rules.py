"""A strict judge of Block Kit payloads, for tests and for the fake Slack.

Three judges together, since none sees everything: the models of slack-sdk with the rule that a round trip changes
nothing, the JSON schema made of the types of the Node SDK (structure, enums, extra keys), and rules by hand for what
both miss. No live Slack confirmed the limits; they are those of docs.slack.dev/reference/block-kit.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema_rs import Draft7Validator
from slack_sdk.errors import SlackObjectFormationError
from slack_sdk.models.blocks import Block
from slack_sdk.models.views import View

SCHEMAS = Path(__file__).parents[3] / "shared" / "schemas"
TYPES = SCHEMAS / "slack-types.schema.json"

MESSAGE_ONLY = {"markdown", "plan", "task_card", "video_call", "data_table", "data_visualization", "table"}
MODAL_ONLY = {"alert"}
INTERACTIVE_LIMIT = {"actions": 25, "context": 10}
CHARACTERS = 13_000


class BlocksRefusedError(AssertionError):
    """At least one judge refused; the text holds every reason."""


def check_message(message: Mapping[str, Any]) -> None:
    """Raise BlocksRefusedError unless Slack would take and show this message."""
    problems = list(message_problems(message))
    if problems:
        raise BlocksRefusedError("\n".join(problems))


def check_view(view: Mapping[str, Any]) -> None:
    """Raise BlocksRefusedError unless Slack would open this modal."""
    problems = list(view_problems(view))
    if problems:
        raise BlocksRefusedError("\n".join(problems))


def message_problems(message: Mapping[str, Any]) -> Iterator[str]:
    """Everything wrong with a message: `text` and `blocks`."""
    text = message.get("text")
    if not isinstance(text, str) or not text.strip():
        yield "a message needs text, for notifications and screen readers"
    elif len(text) > 4000:
        yield "message text is longer than 4000"
    blocks = message.get("blocks", [])
    yield from _limit("blocks of a message", len(blocks), 50)
    yield from _blocks(blocks, surface="message")
    yield from _limit("characters of all blocks", _characters(blocks), CHARACTERS)
    yield from _limit("tables", sum(block.get("type") == "table" for block in blocks), 1)
    markdown = sum(len(block.get("text", "")) for block in blocks if block.get("type") == "markdown")
    yield from _limit("characters of markdown", markdown, 12_000)


def view_problems(view: Mapping[str, Any]) -> Iterator[str]:
    """Everything wrong with a modal."""
    blocks = view.get("blocks", [])
    yield from _limit("blocks of a modal", len(blocks), 100)
    yield from _blocks(blocks, surface="modal")
    for key, limit in (("private_metadata", 3000), ("callback_id", 255), ("external_id", 255)):
        yield from _limit(key, len(view.get(key, "")), limit)
    for key in ("title", "submit", "close"):
        text = view.get(key)
        if text is None:
            continue
        if text.get("type") != "plain_text":
            yield f"{key} must be plain_text"
        yield from _limit(key, len(text.get("text", "")), 24)
    if any(block.get("type") == "input" for block in blocks) and "submit" not in view:
        yield "a modal with an input needs submit"
    yield from _round_trip_view(view)
    if types_known():
        rest = {key: value for key, value in view.items() if key != "blocks"} | {"blocks": []}
        yield from _schema("ModalView", rest)


def types_known() -> bool:
    """Whether the schema of the types lies beside the repository."""
    return TYPES.exists()


def _blocks(blocks: Sequence[Mapping[str, Any]], *, surface: str) -> Iterator[str]:
    names = Counter(block["block_id"] for block in blocks if "block_id" in block)
    yield from (f"block_id {name} stands twice" for name, count in names.items() if count > 1)
    for number, block in enumerate(blocks):
        for problem in _block(block, surface=surface):
            yield f"block {number} ({block.get('type')}): {problem}"


def _block(block: Mapping[str, Any], *, surface: str) -> Iterator[str]:
    kind = str(block.get("type"))
    if kind in MESSAGE_ONLY and surface != "message":
        yield "not allowed in a modal"
    if kind in MODAL_ONLY and surface == "message":
        yield "not allowed in a message"
    if kind == "task_card" and block.get("status") == "pending":
        yield "a task card on its own may not be pending"
    yield from _round_trip(block)
    yield from _by_hand(block, kind)
    yield from _texts(block)
    if types_known():
        yield from _schema("KnownBlock", block)


def _by_hand(block: Mapping[str, Any], kind: str) -> Iterator[str]:
    elements = block.get("elements", [])
    if kind in INTERACTIVE_LIMIT:
        if not elements:
            yield "elements are empty"
        yield from _limit("elements", len(elements), INTERACTIVE_LIMIT[kind])
    ids = Counter(item["action_id"] for item in elements if isinstance(item, dict) and "action_id" in item)
    yield from (f"action_id {name} stands twice" for name, count in ids.items() if count > 1)
    if kind == "section":
        for field in block.get("fields", []):
            yield from _limit("field", len(field.get("text", "")), 2000)
    if kind == "header" and block.get("text", {}).get("type") != "plain_text":
        yield "a header is plain_text"
    if kind == "table":
        rows = block.get("rows", [])
        yield from _limit("rows", len(rows), 100)
        yield from _limit("columns", max((len(row) for row in rows), default=0), 20)


def _texts(value: Any) -> Iterator[str]:
    """Rules for every object inside a block: texts, buttons, selects."""
    if isinstance(value, list):
        for item in value:
            yield from _texts(item)
    if not isinstance(value, Mapping):
        return
    kind = value.get("type")
    if kind in ("plain_text", "mrkdwn") and not str(value.get("text", "")).strip():
        yield "empty text"
    if kind == "button":
        if value.get("text", {}).get("type") != "plain_text":
            yield "a button is plain_text"
        yield from _limit("button value", len(value.get("value", "")), 2000)
        if value.get("style") not in (None, "primary", "danger"):
            yield f"there is no button style {value['style']}"
    if "options" in value:
        yield from _options(value)
    yield from _limit("action_id", len(value.get("action_id", "")), 255)
    for item in value.values():
        yield from _texts(item)


def _options(element: Mapping[str, Any]) -> Iterator[str]:
    options = element["options"]
    yield from _limit("options", len(options), 100)
    if not options:
        yield "options are empty"
    for option in options:
        yield from _limit("option text", len(option.get("text", {}).get("text", "")), 75)
        yield from _limit("option value", len(option.get("value", "")), 150)
    values = Counter(option.get("value") for option in options)
    yield from (f"option value {name} stands twice" for name, count in values.items() if count > 1)
    if "initial_option" in element and element["initial_option"] not in options:
        yield "initial_option is not among the options"


def _round_trip(block: Mapping[str, Any]) -> Iterator[str]:
    try:
        parsed = Block.parse(dict(block))
        out = None if parsed is None else parsed.to_dict()
    except (SlackObjectFormationError, TypeError, ValueError, AttributeError, KeyError) as error:
        yield f"slack-sdk refuses it: {error}"
        return
    if out != block:
        yield "slack-sdk reads something else: unknown or dropped keys"


def _round_trip_view(view: Mapping[str, Any]) -> Iterator[str]:
    try:
        out = View(**view).to_dict()
    except (SlackObjectFormationError, TypeError, ValueError, AttributeError) as error:
        yield f"slack-sdk refuses the view: {error}"
        return
    if {key: value for key, value in out.items() if key != "blocks"} != {
        key: value for key, value in view.items() if key != "blocks"
    }:
        yield "slack-sdk reads another view: unknown or dropped keys"


def _schema(definition: str, value: Mapping[str, Any]) -> Iterator[str]:
    error = next(_validator(definition).iter_errors(value), None)
    if error is not None:
        where = "/".join(str(part) for part in error.instance_path)
        yield f"the types refuse it at /{where}: {error.message[:300]}"


@cache
def _validator(definition: str) -> Draft7Validator:
    document = json.loads(TYPES.read_text())
    return Draft7Validator({"$ref": f"#/definitions/{definition}", "definitions": document["definitions"]})


def _limit(name: str, size: int, limit: int) -> Iterator[str]:
    if size > limit:
        yield f"{name}: {size} are more than {limit}"


def _characters(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(
            len(item) if key == "text" and isinstance(item, str) else _characters(item) for key, item in value.items()
        )
    return sum(_characters(item) for item in value) if isinstance(value, list) else 0
