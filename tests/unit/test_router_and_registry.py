"""Every command of the router fits what it leads to."""

from __future__ import annotations

import pytest

from actions import registry
from bot.router import TABLE, CommandKind, Entry
from bot.services.run_control import ORDERS

OWN = {"status", "doctor", "drill.list", "drill.next", "evidence.list", "evidence.show"}
"""Answered by the worker from the bot's own memory."""


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: " ".join(entry.words))
def test_the_parameters_of_a_command_are_those_of_its_action(entry: Entry) -> None:
    if (
        entry.kind
        in (CommandKind.LOCAL, CommandKind.INCIDENT, CommandKind.CUSTODY, CommandKind.ORDER, CommandKind.SIGN)
        or entry.name.startswith("incident.")
        or entry.name in OWN
    ):
        return
    plan = entry.kind is CommandKind.PLAN
    target = registry.action(entry.name) if plan else registry.query(entry.name)
    taken = target.params.model_fields
    assert entry.params.model_fields.keys() <= taken.keys()
    # The only database of a plan and the only open run need not be named; everything else that is needed is asked for.
    needed = {name for name, field in taken.items() if field.is_required()} - {"database", "run"}
    assert needed <= {name for name, field in entry.params.model_fields.items() if field.is_required()} | {"backup"}


def test_the_orders_of_the_router_are_those_of_the_service() -> None:
    assert {entry.name for entry in TABLE if entry.kind is CommandKind.ORDER} == set(ORDERS)


def test_every_action_can_be_asked_for() -> None:
    reachable = {entry.name for entry in TABLE}
    # A plan file is a document; `drbot plan activate FILE` asks for it, on the command line alone.
    assert {action.name for action in registry.ACTIONS} - reachable == {"plan.activate"}
    assert {query.name for query in registry.QUERIES} <= reachable
