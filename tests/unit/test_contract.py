"""A plan as data: what people sign, how it survives JSON, and what cannot change it."""

from __future__ import annotations

import json
import unicodedata
from datetime import UTC, datetime, timedelta
from typing import Literal

import pytest
from pydantic import ValidationError

from actions.contract import (
    Finding,
    Kinds,
    Observation,
    Plan,
    Precondition,
    Probe,
    Risk,
    Step,
    UnknownKindError,
    Verdict,
    canonical,
    new_plan_id,
)
from actions.errors import PermanentError
from actions.ports import Ports, Progress

NOW = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)


class Paint(Step):
    kind: Literal["paint"] = "paint"
    wall: str

    @property
    def summary(self) -> str:
        return f"Paint {self.wall}"

    def by_hand(self) -> tuple[str, ...]:
        return (f"paint {self.wall}",)

    async def probe(self, ports: Ports) -> Probe:
        return Probe.TODO

    async def apply(self, ports: Ports, progress: Progress) -> None: ...

    async def verify(self, ports: Ports) -> None: ...


class Dry(Precondition):
    kind: Literal["dry"] = "dry"

    @property
    def summary(self) -> str:
        return "The wall is dry"

    async def violation(self, ports: Ports) -> str | None:
        return None


KINDS = Kinds(steps={"paint": Paint}, preconditions={"dry": Dry})


def a_plan(**changes: object) -> Plan:
    plan = Plan(
        id="abc",
        action="wall.paint",
        summary="Paint",
        risk=Risk.REVERSIBLE,
        target="wall",
        params={"wall": "north"},
        steps=(Paint(wall="north"),),
        preconditions=(Dry(),),
        made_at=NOW,
    )
    return plan.model_copy(update=changes)


def test_a_plan_comes_back_from_json_with_its_own_types_and_digest() -> None:
    plan = a_plan()

    back = KINDS.plan(json.loads(plan.model_dump_json()))

    assert back == plan
    assert isinstance(back.steps[0], Paint)
    assert back.digest == plan.digest


def test_a_kind_of_a_newer_version_is_refused() -> None:
    with pytest.raises(UnknownKindError, match="paint"):
        Kinds(steps={}, preconditions={}).plan(json.loads(a_plan().model_dump_json()))


@pytest.mark.parametrize(
    "changes",
    [
        {"made_at": NOW + timedelta(days=1)},
        {"findings": (Finding(check="lag", verdict=Verdict.WARN, detail="3 MB"),)},
        {"observations": (Observation(name="lag", value="3 MB"),)},
        {"alternatives": ("another one",)},
        {"estimate": timedelta(seconds=3)},
        {"data_loss": "8 h"},
    ],
)
def test_what_is_shown_is_not_signed(changes: dict[str, object]) -> None:
    assert a_plan(**changes).digest == a_plan().digest


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "abd"},
        {"action": "wall.break"},
        {"summary": "Break"},
        {"risk": Risk.DESTRUCTIVE},
        {"target": "roof"},
        {"params": {"wall": "south"}},
        {"steps": (Paint(wall="south"),)},
        {"steps": (Paint(wall="north"), Paint(wall="north"))},
        {"steps": (Paint(wall="north", undo_on_failure=True),)},
        {"steps": (Paint(wall="north", timeout=timedelta(minutes=11)),)},
        {"preconditions": ()},
        {"plan_schema": 2},
    ],
)
def test_everything_else_is(changes: dict[str, object]) -> None:
    assert a_plan(**changes).digest != a_plan().digest


def test_the_commands_by_hand_are_signed_too() -> None:
    assert a_plan().signed_part()["by_hand"] == [["paint north"]]
    assert a_plan(by_hand=(("paint south",),)).digest != a_plan().digest


def test_stored_commands_change_nothing_of_what_is_signed() -> None:
    """Plans were stored without them once."""
    plan = a_plan()
    assert a_plan(by_hand=plan.worded()).digest == plan.digest
    assert a_plan(by_hand=(("paint south",),)).commands == (("paint south",),)


def test_commands_for_another_number_of_steps_are_no_plan() -> None:
    document = json.loads(a_plan().model_dump_json()) | {"by_hand": []}
    with pytest.raises(UnknownKindError, match="another number of steps"):
        KINDS.plan(document)


def test_two_encodings_of_one_name_give_one_digest() -> None:
    composed, decomposed = (unicodedata.normalize(form, "Bücher") for form in ("NFC", "NFD"))

    assert composed != decomposed
    assert a_plan(target=composed).digest == a_plan(target=decomposed).digest


def test_the_digest_is_what_it_was() -> None:
    # A plan that was signed by one version must have the same digest in the next.
    assert canonical({"b": 1, "a": "ü"}) == '{"a":"ü","b":1}'
    assert a_plan().digest == "18b9883d98bcc5ab4d20c08ff0f521de8f1ddd042360b56766dbf094afc52b38"
    assert a_plan().short_code == a_plan().digest[:8]


def test_stop_findings_are_told_apart() -> None:
    stop = Finding(check="disk", verdict=Verdict.STOP, detail="full")
    warn = Finding(check="lag", verdict=Verdict.WARN, detail="3 MB")

    assert a_plan(findings=(warn, stop)).stopped == (stop,)


def test_a_plan_is_frozen_and_takes_nothing_unknown() -> None:
    with pytest.raises(ValidationError):
        a_plan().summary = "Break"  # type: ignore[misc]
    with pytest.raises(UnknownKindError, match="cannot read the plan \\(`extra`: Extra inputs"):
        KINDS.plan({**json.loads(a_plan().model_dump_json()), "extra": 1})


async def test_a_step_without_an_undo_says_so() -> None:
    with pytest.raises(PermanentError, match="Paint north: cannot be undone"):
        await Paint(wall="north").undo(None)  # type: ignore[arg-type]


def test_plan_ids_are_short_and_different() -> None:
    ids = {new_plan_id() for _ in range(1000)}

    assert len(ids) == 1000
    assert all((len(name) == 10 and name.isalnum() and name.islower()) or name.isdigit() for name in ids)


def test_risks_are_ordered() -> None:
    assert [risk.level for risk in Risk] == [0, 1, 2, 3, 4]
