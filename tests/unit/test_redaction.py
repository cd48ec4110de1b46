"""Secrets in texts: what a mask has learned, what it knows by its shape, what it must leave alone."""

from __future__ import annotations

import base64
import json
import logging
import sys
from urllib.parse import quote

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from actions.adapters.secrets import SecretReferences
from bot import logs
from bot.redaction import MARK, Mask, texts
from bot.settings import Settings

VALUE = "corr3ct horse+battery/staple"


@pytest.fixture
def mask() -> Mask:
    found = Mask()
    found.learn(VALUE)
    return found


@pytest.mark.parametrize(
    "form", [VALUE, quote(VALUE, safe=""), repr(VALUE), json.dumps(VALUE), base64.b64encode(VALUE.encode()).decode()]
)
def test_a_learned_value_is_hidden_in_every_form_it_travels_in(mask: Mask, form: str) -> None:
    assert MARK in mask(f"before {form} after")
    assert form.strip("'\"") not in mask(f"before {form} after")


def test_the_password_of_an_address_is_hidden_without_the_address() -> None:
    mask = Mask()
    mask.learn("postgresql://drbot:s3cr%21t-word@db.example:5432/bot")
    mask.learn("host=db.example password='it''s' user=x password=plain-word")
    assert mask("FATAL: s3cr!t-word and s3cr%21t-word and plain-word") == f"FATAL: {MARK} and {MARK} and {MARK}"
    assert mask("db.example:5432 is away") == "db.example:5432 is away"


def test_of_two_values_that_begin_alike_nothing_is_left_standing() -> None:
    mask = Mask()
    for value in ("secret-one", "secret-one-and-more"):
        mask.learn(value)
    assert mask("x secret-one-and-more x secret-one x") == f"x {MARK} x {MARK} x"


def test_long_words_of_a_file_are_hidden_one_by_one() -> None:
    mask, key = Mask(), base64.b64encode(bytes(range(48))).decode()
    mask.learn(f"-----BEGIN THING-----\n{key}\n-----END THING-----\napiVersion: v1\n")
    assert mask(f"took {key[:64]} from apiVersion: v1") == f"took {MARK} from apiVersion: v1"


@pytest.mark.parametrize(
    "token",
    [
        "xoxb-123456789012-abcdefABCDEF",
        "xapp-1-A0123456789-1234567890-abcdef",
        "xoxe.xoxp-1-abcdefghijk",
        "AGE-SECRET-KEY-1QQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQ",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1r\n-----END OPENSSH PRIVATE KEY-----",
        "SCRAM-SHA-256$4096:c2FsdA==$c3RvcmVk:c2VydmVy",
        "hvs.CAESIJlU02LQZqzQ1aaa7",
        "ghp_" + "a" * 36,
        "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ4In0xyz.c2lnbmF0dXJl",
    ],
)
def test_known_shapes_are_hidden_unlearned(token: str) -> None:
    assert Mask()(f"got {token} from it") == f"got {MARK} from it"


def test_a_key_that_was_cut_is_hidden_to_the_end() -> None:
    assert Mask()("got -----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2Vw") == f"got {MARK}"


def test_the_password_of_any_address_is_hidden() -> None:
    text = "cannot reach postgresql://app:hunter2@db/orders; see https://example.com:8443/a@b"
    assert Mask()(text) == f"cannot reach postgresql://app:{MARK}@db/orders; see https://example.com:8443/a@b"


def test_words_of_the_plan_file_and_short_ones_are_left_alone() -> None:
    mask = Mask()
    mask.publish(texts({"databases": [{"name": "superprismora"}]}))
    for value in ("superprismora", "app", "prism-or"):
        mask.learn(value)
    assert mask("app of superprismora") == "app of superprismora"
    assert mask("prism-or") == MARK


def test_structures_are_masked_everywhere_but_in_their_keys(mask: Mask) -> None:
    assert mask.tree({"a": [VALUE, {"b": (VALUE, 1, None)}]}) == {"a": [MARK, {"b": [MARK, 1, None]}]}


@given(st.text(min_size=6, max_size=60), st.text(max_size=40), st.text(max_size=40))
def test_no_learned_value_survives(value: str, before: str, after: str) -> None:
    mask = Mask()
    mask.learn(value)
    kept = value.strip()
    if len(kept) >= 6 and "\n" not in kept and kept not in MARK:
        assert kept not in mask(f"{before} {kept} {after}").replace(MARK, "\0")


async def test_what_is_resolved_is_learned_and_settings_are_too(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = Mask()
    await SecretReferences({"PASSWORD": VALUE}, seen=mask.learn).resolve("env:PASSWORD")
    assert mask(VALUE) == MARK
    monkeypatch.setenv("SLACK_SIGNING_SECRET", "signing-secret-of-slack")
    settings = Settings()
    settings.hide_with(mask)
    assert settings.mask("signing-secret-of-slack") == MARK


# ------------------------------------------------------------ logs


@pytest.mark.parametrize("form", ["json", "text"])
def test_logs_hold_no_secret_and_no_forged_line(mask: Mask, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(form, mask)
    forged = '\n{"event": "approved"}\x1b[2K\u2028\u202e'
    structlog.get_logger().info("note_taken", text=VALUE + forged, held={"key": [VALUE]}, error=ValueError(VALUE))
    logging.getLogger("library").warning("said %s", VALUE + forged)
    try:
        raise ValueError(VALUE)
    except ValueError:
        structlog.get_logger().exception("went_wrong")
        logging.getLogger("library").exception("went wrong")
    written = capsys.readouterr().err
    assert VALUE not in written
    assert written.count(MARK) >= 5
    assert not [line for line in written.splitlines() if line.startswith('{"event": "approved"')]
    assert "\x1b[2K" not in written
    assert not set(written) & {"\u2028", "\u202e"}
    if form == "json":
        assert [json.loads(line)["level"] for line in written.splitlines()] == ["info", "warning", "error", "error"]


def test_one_sentence_does_not_fill_the_disk(mask: Mask, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json", mask)
    structlog.get_logger().info("note_taken", text="a" * 1_990 + VALUE + "b" * 50_000)
    written = capsys.readouterr().err
    assert len(written) < 2_500
    assert "corr3ct" not in written


def test_a_crash_shows_no_secret(mask: Mask, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json", mask)
    error = RuntimeError(f"login with {VALUE} failed")
    sys.excepthook(RuntimeError, error, None)
    assert capsys.readouterr().err == f"RuntimeError: login with {MARK} failed\n"
