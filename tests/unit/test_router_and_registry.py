"""Every command of the router fits what it leads to."""

from __future__ import annotations

import re

import pytest

from actions import registry
from actions.contract import Risk
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


def test_one_person_alone_starts_these_and_nothing_else() -> None:
    """A new action is no recovery until somebody adds it here."""
    assert registry.recoveries() == {
        "restore.dump",
        "restore.rescue",
        "restore.swap",
        "restore.promote",
        "restore.recovery_point",
        "application.scale",
        "application.rollout",
    }


def test_nothing_that_one_person_starts_alone_takes_away_what_others_need() -> None:
    """No backup, evidence or hold is deleted, no key changed, no roster, policy or answer to a run; whether Slack is
    trusted is no action at all."""
    alone = [action for action in registry.ACTIONS if action.recovery]
    taking = {
        "point.expire",
        "point.unpin",
        "secrets.expire",
        "backup.expire",
        "backup.delete",
        "backup.unpin",
        "scratch.discard",
        "secrets.escrow",
        "plan.activate",
    }
    steps = {step for action in registry.ACTIONS if action.name in taking or action.of_a_run for step in action.steps}

    assert len([action for action in registry.ACTIONS if action.name in taking]) == len(taking)
    assert not [action.name for action in alone if action.of_a_run or action.risk is Risk.IRREVERSIBLE]
    assert not {step for action in alone for step in action.steps} & steps
    kinds = {str(step.model_fields["kind"].default) for action in alone for step in action.steps}
    words = r"delete|expire|discard|drop|rotate|pin|escrow|activate|clear"
    assert not [kind for kind in kinds if re.search(words, kind)]
    assert not [action.name for action in registry.ACTIONS if "suspect" in action.name]
