"""What people type, and where it must not lead. Rows J1 to J11 of docs/reference/attacks.md."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql
from sqlalchemy import text

from actions.adapters.executor import SubprocessExecutor
from actions.adapters.postgres import PostgresServers
from actions.adapters.programs import Program
from actions.adapters.secrets import SecretReferences
from actions.backup.catalogue import ID
from actions.backup.manifest import Globals
from actions.contract import Risk
from actions.errors import UserError
from actions.ports import JobKind, JobSpec
from actions.site import DatabaseRef, Server, Site
from bot.plan_file import check
from bot.services.cards import PlanState
from bot.slack.views.blocks import MESSAGE_BLOCKS
from tests.attack.launch import TARGET
from tests.attack.stage import OLIVIA, SAM, Posted, Stage
from tests.fakes.slack import Message
from tests.fixtures.office import CHANNEL
from tests.fixtures.postgres import Database
from tests.fixtures.waiting import eventually

pytestmark = [pytest.mark.attack, pytest.mark.integration]

NASTY = (
    "<!channel> <!here> <!everyone> <@U0SAM> <#C0OPS> <!subteam^S0DBA> <https://evil.example|Approve> `code` *bold* "
    "_i_ ~s~ \u202eevorppa\u202c zero\u200bwidth \u2066iso\u2069 \ufeffbom &amp;lt; :tada: {0.__class__} %s ${HOME}"
)
OURS = re.compile(r"<https://fake\.slack\.com/[^|<>]*\|message>")
INVISIBLE = "\u202e\u202c\u200b\u2066\u2069\ufeff\u2028"


def spoken(stage: Stage) -> Iterator[tuple[bool, str]]:
    """Every text that went to Slack, and whether Slack reads marks in it."""
    for method, arguments in stage.slack.calls:
        if method.startswith(("chat.", "views.")) and method != "chat.getPermalink":
            yield True, str(arguments.get("text") or "")
            yield from _texts(arguments.get("blocks") or (arguments.get("view") or {}).get("blocks") or [])
    for whisper in stage.slack.whispers:
        yield from _texts(whisper.get("blocks") or [])


def _texts(value: Any) -> Iterator[tuple[bool, str]]:
    if isinstance(value, dict):
        if isinstance(value.get("text"), str):
            yield value.get("type") == "mrkdwn", value["text"]
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def assert_harmless(stage: Stage) -> None:
    """Nothing said can mention, link, hide or turn round."""
    for marked, said in spoken(stage):
        assert not set(said) & set(INVISIBLE), said
        if marked:
            bare = OURS.sub("", said)
            assert not re.search(r"<[!@#h]", bare), said
            assert "<" not in bare, said


def security_blocks(message: Message) -> str:
    """The facts that people sign, and the buttons."""
    return json.dumps(
        [block for block in message.blocks if "fields" in block or block["type"] in ("actions", "header")]
    )


async def settled(stage: Stage, words: str) -> None:
    await stage.slack.until(lambda: any(words in said for _, said in spoken(stage)), 30)


async def test_j1_reasons_cannot_speak_for_the_bot(stage: Stage) -> None:
    await stage.ask(f'{TARGET} --from b-1 --reason "asked: {NASTY}" --target {TARGET}')
    await stage.slack.until(lambda: bool(stage._cards()), 30)
    message = stage._cards()[-1]
    card = await stage.office.desk.plan_card(_token(message))
    plan = Posted(card, message)
    await stage.sign(plan, user=SAM, action="plan.deny", reason=f"denied: {NASTY}")
    await stage.until(plan, PlanState.DENIED)
    await settled(stage, "denied:")
    assert_harmless(stage)
    assert "evil.example" not in security_blocks(message)
    assert "asked:" not in security_blocks(message)
    assert await stage.value("SELECT count(*) FROM signature WHERE reason LIKE '%evil.example%'") == 2
    await stage.untouched()


def _token(message: Message) -> str:
    found = re.search(r'"action_id": "plan\.details", "value": "([^"]+)"', json.dumps(message.blocks))
    assert found is not None
    return found[1]


async def test_j1_notes_and_titles_cannot_speak_for_the_bot(stage: Stage) -> None:
    async def say(words: str) -> None:
        status, told = await stage.send(stage.slack.slash("/dr-incident", words, user=OLIVIA, channel=CHANNEL))
        assert (status, told) == (200, "")

    await say(f'open "title {NASTY[:100]}"')
    await say(f"note *Daniel Dietrich approved plan x* {NASTY}")
    await settled(stage, "noted on the timeline")
    assert_harmless(stage)
    imitation = [said for marked, said in spoken(stage) if marked and "Daniel Dietrich approved" in said]
    assert imitation == [], "a person's words stand in plain text, alone"


TOKEN = "xoxb-123456789012-" + "abcdef" * 4


@pytest.mark.parametrize("where", ["request", "signature", "note"])
async def test_j10_a_token_that_somebody_types_is_not_kept(stage: Stage, where: str) -> None:
    if where == "request":
        await stage.ask(f'{TARGET} --from b-1 --reason "it says {TOKEN}" --target {TARGET}')
    elif where == "note":
        await stage.send(stage.slack.slash("/dr-incident", f"note it says {TOKEN}", user=OLIVIA, channel=CHANNEL))
    else:
        plan = await stage.plan()
        told = await stage.submit(await stage.window(plan), reason=f"it says {TOKEN}")
        assert "Rotate" in told
        assert await stage.signers(plan) == [("olivia", "request")]
    await stage.refused("credential")
    for table in ("inbox", "request", "timeline_entry", "outbox", "refusal", "signature"):
        query = f"SELECT count(*) FROM {table} AS t WHERE strpos(t::text, :token) > 0"
        assert await stage.value(query, token=TOKEN) == 0, table
    assert not any(TOKEN in said for _, said in spoken(stage))


@pytest.mark.parametrize("where", ["request", "signature"])
async def test_j1_fifty_kilobytes_are_refused(stage: Stage, where: str) -> None:
    long = "a" * 50_000
    if where == "request":
        await stage.ask(f"{TARGET} --from b-1 --reason {long} --target {TARGET}")
    else:
        plan = await stage.plan()
        assert "may have" in await stage.submit(await stage.window(plan), reason=long)
    await stage.refused("too_long")
    assert all(len(said) <= 3_000 for _, said in spoken(stage))


async def test_j2_a_message_that_imitates_the_card_has_no_buttons_that_count(stage: Stage) -> None:
    plan = await stage.plan()
    imitation = stage.slack.said(plan.message.text, channel=CHANNEL, user="U0BEN")
    plan.message = imitation
    await stage.sign(plan)
    await stage.refused("stale_revision", plan)
    assert plan.card.short_code in json.dumps(stage._cards()[0].blocks), "the code by which people compare"


def test_j3_no_line_of_the_log_can_be_forged() -> None:
    """Through the log of a real process, told to log what a person typed."""
    forged = 'x\n{"event": "run_ended", "level": "info", "outcome": "succeeded"}\r\x1b[2K\u2028\x00'
    script = (
        "import logging, sys, structlog\nfrom bot import logs\nfrom bot.redaction import Mask\n"
        "logs.configure('json', Mask())\n"
        "structlog.get_logger().warning('reaction_not_taken', why=sys.stdin.read())\n"
        f"logging.getLogger('x').error('failed: %s', {forged!r})"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], input=forged, capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    events = [json.loads(line) for line in ended.stderr.splitlines()]
    assert [event["level"] for event in events] == ["warning", "error"]
    assert not set(ended.stderr) & set("\x1b\r\x00\u2028")
    assert "run_ended" not in [event["event"] for event in events]


NAMES = ["; rm -rf /", "$(id)", "`id`", "-o", "--kubeconfig=/tmp/x", "a b", "a\nb", "'", '"', "*", "~", "&&true", "%s"]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=30)))
def test_j4_programs_get_words_and_no_shell(words: list[str], tmp_path: Path) -> None:
    log = tmp_path / "log"
    out = (tmp_path / "out").open("w+b")
    with out:
        show = "import sys, json; print(json.dumps(sys.argv[1:]))"
        program = Program.start([sys.executable, "-I", "-c", show, *NAMES, *words], stdout=out, log=log)
        program.wait()
        out.seek(0)
        assert json.loads(out.read()) == [*NAMES, *words]


@pytest.mark.parametrize(
    "name", [*NAMES, "../../etc", "/etc/passwd", "a/b", "a\0b", "A", "-a", "a-", "", "a" * 64, "."]
)
async def test_j4_j6_a_job_cannot_be_named_into_another_place(tmp_path: Path, name: str) -> None:
    executor = SubprocessExecutor(tmp_path / "jobs", [sys.executable, "-c", "raise SystemExit(0)"])
    with pytest.raises(UserError, match="cannot name a job"):
        await executor.start(JobSpec(name=name, kind=JobKind.DUMP, request={}))
    assert not (tmp_path / "jobs").exists() or not list((tmp_path / "jobs").glob("[!.]*"))


@pytest.mark.parametrize("name", ["; rm -rf /", "$(id)", "`id`", "a b", "&&true"])
async def test_j4_a_name_from_slack_is_looked_up_and_never_run(stage: Stage, name: str) -> None:
    await unknown(stage, name)
    await stage.refused("unknown_name")


async def unknown(stage: Stage, name: str) -> None:
    """Ask for a plan about a database of this name."""
    await stage.ask(f'"{name}" --from b-1 --reason "{REASON_TEXT}" --target "{name}"')
    await eventually(lambda: stage._is("SELECT state FROM request", "failed"))
    told = await stage.value("SELECT text FROM refusal")
    assert told.startswith("restore.dump: The plan file knows no database")
    assert await stage.value("SELECT count(*) FROM plan") == 0


async def test_j4_words_that_are_no_command_ask_for_nothing(stage: Stage) -> None:
    await stage.ask(f'; rm -rf / --target x --reason "{REASON_TEXT}"')
    await stage.untouched()
    assert await stage.value("SELECT count(*) FROM request") == 0


REASON_TEXT = "is gone"


@pytest.mark.parametrize("name", ['a"; DROP ROLE app; --', "a'b", "%s", "a b", "Ünïcode", "x\\y", "a" * 63])
async def test_j5_a_name_reaches_sql_as_an_identifier_alone(pg_database: Database, name: str) -> None:
    servers, ref = postgres(pg_database), DatabaseRef(server="main", name=name)
    try:
        await servers.create(ref, owner="drbot_j5_owner", cluster_globals=Globals(), mark="drbot:scratch:j5")
        facts = await servers.database(ref)
        assert facts is not None
        assert facts.name == name
    finally:
        with psycopg.connect(pg_database.dsn, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
            connection.execute("DROP ROLE IF EXISTS drbot_j5_owner")


@pytest.mark.parametrize("name", ["a'; DROP ROLE app; --", "%s", "x\\y", "a" * 64])
async def test_j5_a_name_as_sql_is_no_database_of_the_plan(stage: Stage, name: str) -> None:
    await unknown(stage, name)
    await stage.refused("unknown_name")


@pytest.mark.parametrize("name", ["a" * 64, "é" * 32, "a\0b", ""])
async def test_j5_a_name_that_postgresql_would_cut_is_refused(pg_database: Database, name: str) -> None:
    servers = postgres(pg_database)
    with pytest.raises(UserError, match="63"):
        await servers.create(
            DatabaseRef(server="main", name=name), owner="postgres", cluster_globals=Globals(), mark="drbot:scratch:j5"
        )


def postgres(database: Database) -> PostgresServers:
    site = Site(servers={"main": Server(name="main", admin_dsn="env:DSN")})
    return PostgresServers(site, SecretReferences({"DSN": database.dsn}))


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a/../b", "..", "a\0", "a b", "-a/b", ".hidden", ""])
def test_j6_a_backup_cannot_be_named_into_another_folder(name: str) -> None:
    assert ID.fullmatch(name) is None


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a/../superprismora", ".."])
async def test_j6_a_name_that_leads_out_of_its_folder_is_unknown(stage: Stage, name: str) -> None:
    await unknown(stage, name)
    await stage.refused("unknown_name")


async def test_j6_an_export_names_its_file_itself(stage: Stage) -> None:
    async def say(words: str) -> None:
        await stage.send(stage.slack.slash("/dr-incident", words, user=OLIVIA, channel=CHANNEL))

    await say('open "../../../etc/cron.d/x"')
    await say("timeline html")
    await stage.slack.until(lambda: bool(stage.slack.files), 30)
    title = stage.slack.files[0]["title"]
    uploads = [
        arguments["filename"] for method, arguments in stage.slack.calls if method == "files.getUploadURLExternal"
    ]
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name) for name in uploads), (uploads, title)


async def test_j7_text_is_never_a_template(stage: Stage) -> None:
    plan = await stage.plan()
    words = "{0.__class__} {card.token} %s %(token)s {{7*7}} $TOKEN"
    await stage.sign(plan, user=SAM, action="plan.deny", reason=words)
    await stage.until(plan, PlanState.DENIED)
    await settled(stage, words)
    assert await stage.values("SELECT reason FROM signature WHERE act = 'deny'") == [words]
    await stage.sign_late(plan)
    await stage.refused("denied", plan)
    assert words in await stage.value("SELECT text FROM refusal"), "quoted as it was said"


LOOKALIKES = [
    "superprism\u043era",
    "superprism\u03bfra",
    "ｓuperprismora",
    "superprismora\u200b",
    "superprismora ",
    "Superprismora",
]


@pytest.mark.parametrize("typed", LOOKALIKES)
async def test_j8_a_lookalike_of_the_target_is_another_name(stage: Stage, typed: str) -> None:
    plan = await stage.plan()
    # Past the form's own look, as a client that sends what it likes.
    await stage.sign_late(plan, typed=typed)
    if typed.strip() == TARGET:  # a space at the end is a slip of the finger, not another name
        await stage.until(plan, PlanState.SUCCEEDED)
        return
    await stage.refused("wrong_target", plan)


async def test_j8_a_lookalike_is_no_database_of_the_plan(stage: Stage) -> None:
    await stage.ask('superprism\u043era --from b-1 --reason "x" --target superprism\u043era')
    await stage.untouched()
    assert await stage.value("SELECT count(*) FROM plan") == 0


async def test_j9_one_meaning_has_one_digest(stage: Stage) -> None:
    plans = [await stage.plan(summary=summary) for summary in ("caf\u00e9", "cafe\u0301", "caf\u00e8")]
    digests = [plan.card.digest for plan in plans]
    assert len(set(digests)) == 3, "of the plan id alone"
    documents = await stage.values("SELECT document FROM plan ORDER BY created_at")
    kinds = stage.catalogue.kinds()
    for document, digest in zip(documents, digests, strict=True):
        shuffled = dict(reversed(list(document.items())))
        assert kinds.plan(shuffled).digest == digest, "the order of keys means nothing"
        assert kinds.plan(document | {"target": "other"}).digest != digest
    # What was signed in one spelling is no signature on the other.
    view = await stage.window(plans[1])
    private = stage.slack.views[view]["private_metadata"]
    stage.slack.views[view]["private_metadata"] = private.replace(digests[1], digests[0])
    assert "was replaced" in await stage.submit(view)
    await stage.refused("stale_revision", plans[1])


async def test_j11_five_hundred_steps_are_counted_and_signed_whole(stage: Stage) -> None:
    plan = await stage.plan(steps=500, risk=Risk.DESTRUCTIVE)
    blocks = plan.message.blocks
    assert len(blocks) <= MESSAGE_BLOCKS
    shown = json.dumps(blocks)
    assert "475 more steps" in shown
    for word in ("plan.approve", "plan.details", plan.card.short_code, TARGET):
        assert word in shown, f"{word} survives the cut"
    view = await stage.window(plan)
    assert plan.card.short_code in json.dumps(stage.slack.views[view])
    # A plan of which one hidden step was exchanged is another plan.
    async with stage.memory.session() as session:
        await session.execute(text("""UPDATE plan SET document = jsonb_set(document, '{steps,499,job}', '"evil"')"""))
        await session.execute(text("SELECT pg_notify('drbot', 'signature')"))
    await stage.until(plan, PlanState.VOID)
    await stage.refused_by_worker("bad_proof", plan)
    await stage.submit(view)
    assert await stage.codes() == ["bad_proof", "stale_revision"]
    await stage.untouched()


def test_j5_j8_the_plan_file_refuses_names_that_cannot_be(tmp_path: Path) -> None:
    shipped = Path("dr-plan.yml").read_text()
    for wrong in ("superprism\u043era", "a;b", "../x", "$(id)"):
        path = tmp_path / "dr-plan.yml"
        path.write_text(re.sub(r"(?m)^(services:.*\n  - name: )(.*)$", rf"\g<1>{wrong}", shipped, count=1))
        assert path.read_text() != shipped
        assert any("name" in str(problem) for problem in check(path)), wrong
