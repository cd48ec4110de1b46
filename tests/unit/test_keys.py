"""A proof shows exactly one act of one person, or nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from actions.errors import UserError
from bot.openssh import allowed_key
from bot.services.keys import Claim, Keys, once
from bot.services.statements import Proof, Statement, StatementError, incident_digest, read, statement
from tests.fixtures.ssh_keys import MakeKey, public_line, signed

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
DIGEST = "ab" * 32


def a_statement(**change: str) -> Statement:
    values = {"act": "approve", "subject": "plan k7m2", "digest": DIGEST, "person": "ona", "target": "shop"}
    return statement(**(values | {"reason": "seen: it is right"} | change), at=NOON)


def a_claim(**change: object) -> Claim:
    said = a_statement()
    values = said.model_dump() | {"nonce": "", "at": NOON + timedelta(seconds=5)} | change
    return Claim.model_validate(values)


def proof(said: Statement, key: Path, **change: str) -> str:
    return Proof(statement=said, armored=signed(said.text, key, **change)).text


@pytest.fixture
def ona(make_key: MakeKey) -> Path:
    return make_key("ona")


def keys_of(*lines: str, person: str = "ona") -> Keys:
    return Keys({person: [allowed_key(line) for line in lines]})


def test_a_statement_is_read_back_as_it_was_written() -> None:
    said = a_statement(reason="a: b: c, ünïcödé")
    assert read(said.text) == said
    assert said.text.splitlines()[0] == "drbot statement 1"
    assert "reason: a: b: c, ünïcödé" in said.text.splitlines()


@pytest.mark.parametrize("reason", ["two\nlines", "a\x1b[2J", "a\u2028b", "x" * 3000])
def test_what_is_not_one_line_cannot_be_stated(reason: str) -> None:
    with pytest.raises(UserError, match="one line"):
        a_statement(reason=reason)


def test_a_statement_in_another_order_or_with_more_fields_is_refused() -> None:
    head, *lines = a_statement().text.split("\n")
    for changed in (
        [head, *reversed(lines)],
        [head, *lines, "x: y"],
        [head, *lines[1:]],
        ["drbot statement 2", *lines],
    ):
        with pytest.raises(StatementError):
            read("\n".join(changed))


def test_the_proof_of_a_person_of_the_roster_counts(ona: Path) -> None:
    assert keys_of(public_line(ona)).problem(a_claim(), proof(a_statement(), ona)) is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"act": "deny"}, "the act is not"),
        ({"subject": "plan other"}, "the subject is not"),
        ({"digest": "cd" * 32}, "the digest is not"),
        ({"person": "dan"}, "the person is not"),
        ({"target": "other"}, "the target is not"),
        ({"reason": "edited"}, "the reason is not"),
        ({"at": NOON + timedelta(minutes=11)}, "set the clock"),
        ({"at": NOON - timedelta(minutes=3)}, "set the clock"),
    ],
)
def test_a_row_that_says_something_else_than_was_signed_does_not_count(
    ona: Path, change: dict[str, object], why: str
) -> None:
    found = keys_of(public_line(ona)).problem(a_claim(**change), proof(a_statement(), ona))
    assert found is not None
    assert why in found


def test_a_key_that_is_not_this_persons_does_not_count(ona: Path, make_key: MakeKey) -> None:
    dan = make_key("dan")
    both = Keys({"ona": [allowed_key(public_line(ona))], "dan": [allowed_key(public_line(dan))]})
    found = both.problem(a_claim(), proof(a_statement(), dan))
    assert found is not None
    assert "none of ona's keys" in found


def test_a_signature_for_another_purpose_does_not_count(ona: Path) -> None:
    found = keys_of(public_line(ona)).problem(a_claim(), proof(a_statement(), ona, namespace="git"))
    assert found is not None
    assert "'git'" in found


def test_an_expired_key_does_not_count(ona: Path) -> None:
    found = keys_of(f'valid-before="20261123" {public_line(ona)}').problem(a_claim(), proof(a_statement(), ona))
    assert found is not None
    assert "expired" in found


def test_a_second_key_of_the_person_counts_too(ona: Path, make_key: MakeKey) -> None:
    second = make_key("ona2")
    assert keys_of(public_line(ona), public_line(second)).problem(a_claim(), proof(a_statement(), second)) is None


@pytest.mark.parametrize("text", ["", "x", "\n\n", "drbot statement 1\n\nx"])
def test_rubbish_is_refused_with_a_reason(ona: Path, text: str) -> None:
    assert keys_of(public_line(ona)).problem(a_claim(), text)


def test_a_copied_proof_is_told_once(ona: Path) -> None:
    first, second = proof(a_statement(), ona), proof(a_statement(), ona)
    assert once([first, "", first, second, ""]) == [True, True, False, True, True]


def test_a_later_suspicion_is_another_one() -> None:
    assert incident_digest("i1", NOON) != incident_digest("i1", NOON + timedelta(microseconds=1))
    assert incident_digest("i1", NOON) != incident_digest("i2", NOON)
