"""Names that plans derive, figures as people read them, and commands ready to paste."""

from __future__ import annotations

import re
import shlex
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actions.errors import UserError
from actions.site import WorkloadKind, WorkloadRef
from actions.steps import byhand, naming, phrases

DATABASE_NAMES = st.text(min_size=1, max_size=63).filter(lambda name: len(name.encode()) <= 63 and "\0" not in name)


# ---------------------------------------------------------------- names


def test_a_short_name_stays_readable() -> None:
    assert naming.quarantine_name("superprismora", "k7m2n3p4q5") == "superprismora_quarantine_k7m2n3p4q5"
    assert naming.backup_id("superprismora", "k7m2n3p4q5") == "superprismora-k7m2n3p4q5"
    assert naming.job_name("k7m2n3p4q5", 1) == "drbot-k7m2n3p4q5-1"
    assert naming.beside_job_name("k7m2n3p4q5", 1) == "drbot-beside-k7m2n3p4q5-1"


@settings(max_examples=200)
@given(database=DATABASE_NAMES)
def test_names_fit_and_do_not_meet(database: str) -> None:
    names = [make(database, "k7m2n3p4q5") for make in (naming.restore_name, naming.quarantine_name, naming.adopt_name)]

    assert all(len(name.encode()) <= 63 for name in names)
    assert len({*names, database}) == 4
    assert all(name.endswith("k7m2n3p4q5") for name in names)


def test_two_long_names_that_begin_alike_stay_apart() -> None:
    first, second = ("a" * 62 + last for last in "xy")

    assert naming.quarantine_name(first, "k7m2n3p4q5") != naming.quarantine_name(second, "k7m2n3p4q5")


def test_a_plan_id_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(UserError, match="too long"):
        naming.restore_name("shop", "x" * 60)


@settings(max_examples=200)
@given(name=DATABASE_NAMES)
def test_labels_are_rfc_1123(name: str) -> None:
    label = naming.backup_id(name, "k7m2n3p4q5")

    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", label)


def test_labels_of_names_that_look_alike_differ() -> None:
    assert len({naming.label(name) for name in ("shop", "Shop", "shop ", "sh-op", "sh_op")}) == 5


# ---------------------------------------------------------------- figures


@pytest.mark.parametrize(
    ("count", "text"),
    [  # as PostgreSQL 18 answers `SELECT pg_size_pretty(n)`
        (0, "0 bytes"),
        (10239, "10239 bytes"),
        (10240, "10 kB"),
        (10751, "10 kB"),
        (10752, "11 kB"),
        (10485247, "10239 kB"),
        (10485248, "10 MB"),
        (3289384960, "3137 MB"),
        (10736893952, "10 GB"),
        (1 << 60, "1024 PB"),
    ],
)
def test_sizes_are_said_as_postgresql_says_them(count: int, text: str) -> None:
    assert phrases.size(count) == text


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (timedelta(seconds=-3), "0 s"),
        (timedelta(seconds=59), "59 s"),
        (timedelta(minutes=15), "15 min"),
        (timedelta(hours=8, minutes=12, seconds=40), "8 h 12 min"),
        (timedelta(days=3, hours=4), "3 d 4 h"),
    ],
)
def test_durations_have_two_units_at_most(duration: timedelta, text: str) -> None:
    assert phrases.span(duration) == text


def test_lists_of_names() -> None:
    assert [phrases.names(items) for items in ([], ["a"], ["a", "b", "c"])] == ["", "`a`", "`a`, `b` and `c`"]


# ---------------------------------------------------------------- commands

NASTY = "a\"b'; $(rm -rf /) `x` \\ é"


def test_a_nasty_name_is_one_word_of_the_shell_and_one_identifier() -> None:
    words = shlex.split(byhand.psql("primary", byhand.rename(NASTY, "x")))

    assert words[-2:] == ["-c", 'ALTER DATABASE "' + NASTY.replace('"', '""') + '" RENAME TO "x"']


def test_two_statements_are_one_transaction() -> None:
    words = shlex.split(byhand.psql("primary", "SELECT 1", "SELECT 2"))

    assert "-1" in words
    assert words.count("-c") == 2


def test_a_connection_string_keeps_quotes_and_backslashes() -> None:
    assert byhand.conninfo("a'b", "c\\d") == r"service='a\'b' dbname='c\\d'"


def test_a_cron_job_is_suspended_not_scaled() -> None:
    job = WorkloadRef("main", "shop", WorkloadKind.CRON_JOB, "nightly")
    api = WorkloadRef("main", "shop", WorkloadKind.DEPLOYMENT, "api")

    assert '{"spec":{"suspend":true}}' in byhand.scaled(job, 0)
    assert byhand.scaled(api, 3) == "kubectl --context main -n shop scale deployment/api --replicas=3"
