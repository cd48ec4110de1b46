"""What people have typed reaches a terminal as signs to read, never as orders to it."""

from __future__ import annotations

import shlex
import sys
import unicodedata
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actions.approval import Act
from actions.contract import Finding, Observation, Report, Verdict
from actions.errors import UserError
from bot import cli, logs
from bot.counter import plan_text, report_text
from bot.redaction import Mask
from bot.router import Entry, Router
from bot.services.cards import SignerLine
from bot.terminal import at_a_terminal, hand_out, quote, say
from bot.visible import visible, visible_lines
from tests.fakes.cards import NOW, a_card, a_step

NASTY = "\x1b]0;owned\x07\x1b[2Jgone\u202edeton\u200b\x9b2J\r\u2028end"
SHOWN = r"\x1b]0;owned\x07\x1b[2Jgone\u202edeton\u200b\x9b2J\r\u2028end"
FORGED = "fine\nOK    doctor: nothing is wrong"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("naïve 日本 `a` 🙂", "naïve 日本 `a` 🙂"),
        ("a\tb\nc\x00", r"a\tb\nc\x00"),
        ("\u202e\u2066\u200b\ufeff\u00ad", r"\u202e\u2066\u200b\ufeff\xad"),
        ("\U000e0041\ue000\ud800", r"\U000e0041\ue000\ud800"),
        (NASTY, SHOWN),
    ],
)
def test_what_steers_or_hides_is_written_as_an_escape(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert visible(shown) == shown


@given(st.text())
def test_only_ends_of_lines_are_left(text: str) -> None:
    left = {unicodedata.category(sign) for sign in visible_lines(text) if sign != "\n"}

    assert not left & {"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"}
    assert visible_lines(text).count("\n") == text.count("\n")


def test_a_report_shows_what_people_wrote_and_lets_them_add_no_line() -> None:
    finding = Finding(check=NASTY, verdict=Verdict.WARN, detail=FORGED, hint=NASTY)
    said = report_text(
        Report(
            title=NASTY,
            lines=(f"#{NASTY}", FORGED),
            columns=("Who", "What"),
            rows=((NASTY, FORGED), ("Ana", "x")),
            findings=(finding,),
        )
    )

    title, channel, line, more, head, first, second, found, rest = said.split("\n")
    assert (title, channel) == (SHOWN, f"#{SHOWN}")
    assert (line, more) == ("fine", "      | OK    doctor: nothing is wrong")
    assert head.index("What") == first.index("fine") == second.index("x") == len(SHOWN) + 2
    assert first.endswith(r"fine\nOK    doctor: nothing is wrong")
    assert (found, rest) == (f"WARN  {SHOWN}: fine", f"      | OK    doctor: nothing is wrong Next: {SHOWN}")


def test_a_plan_shows_what_people_wrote_and_lets_them_add_no_line() -> None:
    card = a_card(
        summary=NASTY,
        requester=NASTY,
        target=NASTY,
        message=FORGED,
        steps=(a_step(summary=NASTY, before=NASTY, after=FORGED, by_hand=(f"psql {NASTY}", "a\nb"), detail=NASTY),),
        preconditions=(NASTY,),
        observations=(Observation(name=NASTY, value=FORGED),),
        signers=(SignerLine(person=NASTY, act=Act.REQUEST, at=NOW, reason=NASTY),),
    )
    said = plan_text(card)

    assert said == visible_lines(said)
    assert said.count(SHOWN) == 11
    assert "\nOK" not in said
    assert f"       $ psql {SHOWN}\n       $ a\\nb\n" in said


def test_a_run_that_has_ended_says_where_the_commands_by_hand_are() -> None:
    card = a_card(plan_id="k7m2n3p4q5", steps=(a_step(by_hand=("pg_ctl start",), detail="Reached 0/3000028"),))
    said = plan_text(card, by_hand=False)
    assert "pg_ctl start" not in said
    assert "Reached 0/3000028" in said
    assert said.endswith("By hand: `drbot plan show k7m2n3p4q5` has the commands of every step.")


def test_whatever_is_said_is_shown_and_a_document_is_handed_out_as_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    say(f"{NASTY}\nsecond")
    assert capsys.readouterr().out == f"{SHOWN}\nsecond\n"
    document = "name: \u202eà\n"
    hand_out(document)
    assert capsys.readouterr().out == document
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    hand_out(document)
    assert capsys.readouterr().out == "name: \\u202eà\n"


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("Next: `/dr-restore` for a database", "Next: `drbot restore` for a database"),
        ("`/dr run happened`, `/dr run repeat b7`.", "`drbot run happened`, `drbot run repeat b7`."),
        ("see `/dr help`, `/dr`", "see `drbot --help`, `drbot --help`"),
        ("`/etc/dr-plan.yml`, `/dr-plan.yml` and /dr-restore", "`/etc/dr-plan.yml`, `/dr-plan.yml` and /dr-restore"),
    ],
)
def test_slash_commands_are_told_as_they_are_typed_here(
    told: str, shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    say(told)
    assert capsys.readouterr().out == f"{shown}\n"

    def fail() -> None:
        raise UserError(told)

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == shown
    quote(told)
    hand_out(f"{told}\n")
    assert capsys.readouterr().out == f"{told}\n" * 2, "what somebody signs or has written stays as it is"


@pytest.mark.parametrize("entry", Router().table, ids=lambda entry: entry.name)
def test_what_is_told_here_means_what_it_means_in_slack(entry: Entry) -> None:
    slash, _, words = entry.example.partition(" ")
    typed = at_a_terminal(f"`/{entry.example}`")[1:-1]

    program, *argv = shlex.split(typed)
    assert program == "drbot"
    assert Router().parse_argv(argv) == Router().parse_slash(f"/{slash}", words)


def test_an_error_cannot_steer_the_terminal_either(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise UserError(f"There is no plan `{NASTY}`;\nask again.")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == f"There is no plan `{SHOWN}`;\nask again."


def test_a_crash_is_told_without_orders_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", written := StringIO())
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    logs.configure("text", Mask())
    sys.excepthook(ValueError, ValueError(NASTY), None)

    assert written.getvalue() == f"ValueError: {SHOWN}\n"
