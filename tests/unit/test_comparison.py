"""What must hold of a restored database, and how it differs from production."""

from __future__ import annotations

import pytest

from actions.backup.manifest import Fingerprint
from actions.site import Invariant
from actions.steps.comparison import compared, differences, shown, unmet


def a_print(rows: dict[str, int], *, schema: str = "a", **invariants: str) -> Fingerprint:
    return Fingerprint(rows=rows, sequences={}, schema_hash=schema, invariants=invariants)


@pytest.mark.parametrize(
    ("expect", "answer", "said"),
    [
        ("", "7", ""),
        ("", "0", ""),
        ("", "null", "invariant `n` has no answer"),
        ("", "", "invariant `n` has no answer"),
        ("0", "0", ""),
        ("0", "2", "invariant `n` is 2, the plan file expects 0"),
        ("null", "null", ""),
        ("0", "null", "invariant `n` is null, the plan file expects 0"),
    ],
)
def test_an_invariant_holds_where_it_gives_what_is_expected_or_else_any_answer(
    expect: str, answer: str, said: str
) -> None:
    found = unmet((Invariant(name="n", sql="SELECT 1", expect=expect),), a_print({}, n=answer))
    assert found == ([said] if said else [])


def test_one_that_was_not_measured_does_not_hold() -> None:
    assert unmet((Invariant(name="n", sql="SELECT 1"),), a_print({})) == ["invariant `n` has no answer"]


def test_both_sides_are_told_of_rows_invariants_tables_and_schema() -> None:
    there = a_print({"a": 1, "b": 2}, n="1")
    assert compared(there, there) == "Every table has as many rows as in production."
    assert compared(there, a_print({"a": 1, "b": 2}, n="1", schema="b")) == (
        "Different: the schema, with the same tables in both."
    )
    assert compared(there, a_print({"a": 1, "c": 5}, n="3", schema="b")) == (
        "Different: invariant `n` is 1 here and 3 in production; `b` has 2 rows here and is gone in production; `c` in "
        "production alone."
    )


def test_many_differences_are_counted() -> None:
    assert shown([str(number) for number in range(7)]) == "0; 1; 2; 3; 4; and 2 more"


def test_a_step_that_was_signed_before_anything_could_be_expected_stays_as_it_was() -> None:
    assert Invariant(name="n", sql="SELECT 1").model_dump() == {"name": "n", "sql": "SELECT 1"}
    kept = Invariant(name="n", sql="SELECT 1", expect="0")
    assert Invariant.model_validate(kept.model_dump()) == kept


def test_the_table_that_was_harmed_is_told_first_and_then_where_most_is_missing() -> None:
    there = a_print({"a": 1, "b": 2, "c": 9, "users": 5}, n="1")
    here = a_print({"a": 3, "b": 1, "c": 2, "users": 4}, n="3")
    assert differences(there, here, about="users") == [
        "`users` has 5 rows here and 4 in production",
        "invariant `n` is 1 here and 3 in production",
        "`c` has 9 rows here and 2 in production",
        "`b` has 2 rows here and 1 in production",
        "`a` has 1 rows here and 3 in production",
    ]
