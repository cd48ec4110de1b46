"""The judge of payloads is itself judged: it takes good ones and refuses each defect."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.fakes.block_rules import BlocksRefusedError, check_message, check_view, types_known

TEXT = {"type": "plain_text", "text": "a"}
BUTTON = {"type": "button", "text": TEXT, "action_id": "x", "value": "v"}
OPTION = {"text": TEXT, "value": "1"}
SELECT = {"type": "static_select", "action_id": "s", "options": [OPTION], "initial_option": OPTION}
INPUT = {"type": "input", "block_id": "i", "label": TEXT, "element": {"type": "plain_text_input", "action_id": "i"}}
GOOD: list[dict[str, Any]] = [
    {"type": "header", "text": TEXT},
    {"type": "section", "text": {"type": "mrkdwn", "text": "*a*"}},
    {"type": "section", "fields": [{"type": "mrkdwn", "text": "a"}]},
    {"type": "context", "elements": [{"type": "mrkdwn", "text": "a"}]},
    {"type": "divider"},
    {"type": "actions", "block_id": "a", "elements": [BUTTON, SELECT]},
]
MODAL: dict[str, Any] = {"type": "modal", "title": TEXT, "submit": TEXT, "close": TEXT, "blocks": [*GOOD, INPUT]}


def section(text: str, kind: str = "mrkdwn") -> dict[str, Any]:
    return {"type": "section", "text": {"type": kind, "text": text}}


def actions(*elements: dict[str, Any]) -> dict[str, Any]:
    return {"type": "actions", "elements": list(elements)}


def table(rows: int, columns: int) -> dict[str, Any]:
    return {"type": "table", "rows": [[{"type": "raw_text", "text": "a"}] * columns] * rows}


def test_good_payloads_pass() -> None:
    check_message({"text": "a", "blocks": GOOD})
    check_view(MODAL)


BAD_BLOCKS = {
    "empty text": section(""),
    "blank text": section("  "),
    "long section": section("a" * 3001),
    "long field": {"type": "section", "fields": [{"type": "mrkdwn", "text": "a" * 2001}]},
    "eleven fields": {"type": "section", "fields": [{"type": "mrkdwn", "text": "a"}] * 11},
    "mrkdwn header": {"type": "header", "text": {"type": "mrkdwn", "text": "a"}},
    "long header": {"type": "header", "text": {"type": "plain_text", "text": "a" * 151}},
    "text is a string": {"type": "section", "text": "a"},
    "unknown block": {"type": "sektion", "text": TEXT},
    "unknown key": {"type": "divider", "colour": "red"},
    "empty actions": actions(),
    "too many buttons": actions(*({**BUTTON, "action_id": f"x{n}"} for n in range(26))),
    "action id twice": actions(BUTTON, BUTTON),
    "mrkdwn button": actions({**BUTTON, "text": {"type": "mrkdwn", "text": "a"}}),
    "long button": actions({**BUTTON, "text": {"type": "plain_text", "text": "a" * 76}}),
    "long value": actions({**BUTTON, "value": "a" * 2001}),
    "wrong style": actions({**BUTTON, "style": "green"}),
    "long option": actions({**SELECT, "options": [{"text": {"type": "plain_text", "text": "a" * 76}, "value": "1"}]}),
    "long option value": actions({**SELECT, "options": [{"text": TEXT, "value": "a" * 151}]}),
    "no options": actions({"type": "static_select", "action_id": "s", "options": []}),
    "101 options": actions(
        {"type": "static_select", "action_id": "s", "options": [{"text": TEXT, "value": str(n)} for n in range(101)]}
    ),
    "foreign initial option": actions({**SELECT, "initial_option": {"text": TEXT, "value": "2"}}),
    "eleven context elements": {"type": "context", "elements": [TEXT] * 11},
    "table too long": table(101, 1),
    "table too wide": table(1, 21),
    "alert in a message": {"type": "alert", "text": TEXT},
}


@pytest.mark.parametrize("name", BAD_BLOCKS)
def test_each_defect_of_a_block_is_refused(name: str) -> None:
    with pytest.raises(BlocksRefusedError):
        check_message({"text": "a", "blocks": [BAD_BLOCKS[name]]})


BAD_MESSAGES: dict[str, dict[str, Any]] = {
    "no text": {"blocks": GOOD},
    "51 blocks": {"text": "a", "blocks": [{"type": "divider"}] * 51},
    "block id twice": {"text": "a", "blocks": [{"type": "divider", "block_id": "x"}] * 2},
    "too many characters": {"text": "a", "blocks": [section("a" * 2900)] * 5},
    "two tables": {"text": "a", "blocks": [table(1, 1), table(1, 1)]},
}


@pytest.mark.parametrize("name", BAD_MESSAGES)
def test_each_defect_of_a_message_is_refused(name: str) -> None:
    with pytest.raises(BlocksRefusedError):
        check_message(BAD_MESSAGES[name])


BAD_VIEWS: dict[str, dict[str, Any]] = {
    "input without submit": {key: value for key, value in MODAL.items() if key != "submit"},
    "long title": {**MODAL, "title": {"type": "plain_text", "text": "a" * 25}},
    "mrkdwn title": {**MODAL, "title": {"type": "mrkdwn", "text": "a"}},
    "long metadata": {**MODAL, "private_metadata": "a" * 3001},
    "101 blocks": {**MODAL, "blocks": [{"type": "divider"}] * 101},
    "table in a modal": {**MODAL, "blocks": [table(1, 1)]},
    "unknown key": {**MODAL, "colour": "red"},
}


@pytest.mark.parametrize("name", BAD_VIEWS)
def test_each_defect_of_a_view_is_refused(name: str) -> None:
    with pytest.raises(BlocksRefusedError):
        check_view(BAD_VIEWS[name])


@pytest.mark.skipif(not types_known(), reason="no ../shared/schemas: no payload is held to the types")
def test_the_types_alone_refuse_what_slack_sdk_lets_pass() -> None:
    block = copy.deepcopy(GOOD[5])
    block["elements"][0]["confirm"] = {"title": TEXT, "text": TEXT, "confirm": TEXT, "deny": TEXT, "style": "green"}
    with pytest.raises(BlocksRefusedError):
        check_message({"text": "a", "blocks": [block]})
