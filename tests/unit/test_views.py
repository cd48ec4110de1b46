"""Every view is a payload Slack takes, says what it must, and shows nobody's text as the product's."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actions.approval import Act
from actions.contract import Finding, Report, Verdict
from bot.counter import report_text
from bot.ports import TimelinePage
from bot.router import Router
from bot.services.cards import Demands, GlassLine, PlanState, SignerLine, StepState
from bot.slack.views import blocks, run_control, run_form
from bot.slack.views.help import help_message
from bot.slack.views.incident import incident_message
from bot.slack.views.plan import plan_message
from bot.slack.views.report import report_message, timeline_message
from bot.slack.views.restore import restore_modal
from bot.slack.views.signing import Metadata, approve_modal, deny_modal, details_modal, withdraw_modal
from bot.slack.views.text import loading_modal, sentence, text_modal
from tests.fakes.block_rules import check_message, check_view
from tests.fakes.cards import NOW, a_card, a_line, a_step, an_incident, an_offer

NASTY = "<!channel> <@U1> *b* `c` & \u202edlrow\u200b <https://x|y> ```\x07 é日本"


def shown(payload: Any) -> str:
    return json.dumps(payload, ensure_ascii=False)


def action_ids(payload: Any) -> list[str]:
    if isinstance(payload, dict):
        own = [payload["action_id"]] if "action_id" in payload else []
        return own + [name for value in payload.values() for name in action_ids(value)]
    return [name for item in payload for name in action_ids(item)] if isinstance(payload, list) else []


@pytest.mark.parametrize("state", PlanState)
def test_a_plan_is_a_valid_message_in_every_state(state: PlanState) -> None:
    card = a_card(state=state, started_at=NOW - timedelta(seconds=75), message="It ended so.")
    check_message(plan_message(card, now=NOW))
    check_view(approve_modal(card, channel="C1", ts="1.2", now=NOW))
    check_view(deny_modal(card, channel="C1", ts="1.2", now=NOW))
    check_view(details_modal(card, now=NOW))


@pytest.mark.parametrize("state", PlanState)
def test_only_a_pending_plan_can_be_signed(state: PlanState) -> None:
    ids = action_ids(plan_message(a_card(state=state), now=NOW))
    assert ("plan.approve" in ids) == (state is PlanState.PENDING)
    assert "plan.details" in ids
    assert ("callback_id" in approve_modal(a_card(state=state), channel="C", ts="1", now=NOW)) == (
        state is PlanState.PENDING
    )


@pytest.mark.parametrize("state", PlanState)
def test_until_the_start_it_can_be_denied_and_signatures_withdrawn(state: PlanState) -> None:
    before = state in (PlanState.PENDING, PlanState.APPROVED)
    ids = action_ids(plan_message(a_card(state=state), now=NOW))
    assert ("plan.deny" in ids, "plan.withdraw" in ids) == (before, before)
    for modal in (deny_modal, withdraw_modal):
        assert ("callback_id" in modal(a_card(state=state), channel="C", ts="1", now=NOW)) == before


RUN_BUTTONS = {
    PlanState.RUNNING: ["run.pause", "run.abort", "run.stop"],
    PlanState.PAUSED: ["run.resume", "run.abort"],
    PlanState.ASKING: ["run.happened", "run.repeat", "run.undo", "run.again"],
    PlanState.FAILED: ["run.retry"],
    PlanState.ABORTED: ["run.retry"],
    PlanState.PREEMPTED: ["run.retry"],
}


@pytest.mark.parametrize("state", PlanState)
def test_the_buttons_of_a_run_follow_its_state(state: PlanState) -> None:
    ids = action_ids(plan_message(a_card(state=state), now=NOW))
    assert [name for name in ids if name.startswith("run.")] == RUN_BUTTONS.get(state, [])


def test_an_optional_step_that_asks_can_be_skipped() -> None:
    steps = (a_step(1, state=StepState.VERIFIED), a_step(2, state=StepState.ASKING, optional=True))
    ids = action_ids(plan_message(a_card(state=PlanState.ASKING, steps=steps), now=NOW))
    assert "run.skip" in ids


def test_a_pending_plan_says_all_that_is_signed() -> None:
    text = shown(plan_message(a_card(), now=NOW))
    for words in (
        "DESTRUCTIVE",
        "superprismora",
        "0123abcd",
        "Still missing",
        "1 more person",
        "8 h 12 min",
        "→",
        "WARNING",
        "RTO left 41 min",
        "2026-11-23 10:42 UTC",
        "4 min",
    ):
        assert words in text, words


def demanded(**changes: Any) -> Demands:
    values: dict[str, Any] = {
        "persons": 2,
        "slots": "1 of dba AND 1 of sre",
        "may_sign": ("dba: Dan, Dora",),
        "start_within": timedelta(minutes=15),
    }
    return Demands(**(values | changes))


def test_it_says_who_must_sign_who_may_and_until_when() -> None:
    text = shown(plan_message(a_card(demands=demanded(key_required=True, freeze="Black Friday, until x")), now=NOW))
    for words in (
        "2 person(s), the requester included AND 1 of dba AND 1 of sre AND one signature with a key",
        "dba: Dan, Dora",
        "until 2026-11-23 10:42 UTC",
        "within 15 min of the last signature",
        "Black Friday, until x",
    ):
        assert words in text, words


def test_a_signed_plan_says_until_when_it_may_start() -> None:
    card = a_card(state=PlanState.APPROVED, demands=demanded(start_by=NOW + timedelta(minutes=5)))
    found = plan_message(card, now=NOW)
    assert "until 2026-11-23 10:17 UTC, or not at all" in shown(found)
    check_message(found)


def test_break_glass_counts_down_to_its_start_and_can_be_vetoed() -> None:
    glass = GlassLine(person="Ana", delay=timedelta(minutes=5), ready_at=NOW + timedelta(minutes=3))
    found = plan_message(a_card(demands=demanded(glass=glass)), now=NOW)
    assert "Ana starts this alone. It starts at 2026-11-23 10:15 UTC, in 3 min," in shown(found)
    assert '"Veto"' in shown(found)
    unsigned = plan_message(a_card(demands=demanded(glass=glass.model_copy(update={"ready_at": None}))), now=NOW)
    assert "5 min after the signature" in shown(unsigned)


def test_a_run_under_break_glass_asks_for_its_review_until_it_is_complete() -> None:
    glass = GlassLine(person="Ana", delay=timedelta(minutes=5), review_by=NOW + timedelta(days=1), reviewers=("Dan",))
    text = shown(plan_message(a_card(state=PlanState.SUCCEEDED, demands=demanded(glass=glass)), now=NOW))
    assert "Reviewed by Dan. 1 other person(s) must review it until 2026-11-24 10:12 UTC" in text
    both = glass.model_copy(update={"reviewers": ("Dan", "Sam")})
    assert "must review" not in shown(
        plan_message(a_card(state=PlanState.SUCCEEDED, demands=demanded(glass=both)), now=NOW)
    )


def test_an_overruled_denial_and_suspect_slack_stand_over_everything() -> None:
    asked = demanded(overrules="Overrules the denial of plan x by Sam", overruled_reason="no", slack_suspect_since=NOW)
    for payload in (
        plan_message(a_card(demands=asked), now=NOW),
        approve_modal(a_card(demands=asked), channel="C", ts="1", now=NOW),
        details_modal(a_card(demands=asked), now=NOW),
    ):
        text = shown(payload)
        assert "Overrules the denial of plan x by Sam" in text
        assert "buttons below do not count" in text


def test_a_running_plan_follows_its_steps() -> None:
    card = a_card(
        state=PlanState.RUNNING,
        started_at=NOW - timedelta(seconds=90),
        steps=(
            a_step(1, state=StepState.VERIFIED, elapsed=timedelta(seconds=4.2)),
            a_step(2, state=StepState.RUNNING, progress="412 MB of 690 MB, 96 MB/s, about 3 s left"),
            a_step(3),
        ),
    )
    text = shown(plan_message(card, now=NOW))
    assert "done in 4.2 s" in text
    assert "412 MB of 690 MB" in text
    assert "1 of 3 steps done" in text
    assert "running for 1 min 30 s" in text
    assert "RTO left 41 min" in text


@pytest.mark.parametrize(
    ("running_for", "state", "words"),
    [
        (90, PlanState.RUNNING, "By its estimate done at 2026-11-23 10:22:35 UTC, in 10 min"),
        (780, PlanState.RUNNING, "1 min beyond its estimate"),
        (90, PlanState.ASKING, ""),
    ],
)
def test_a_running_plan_says_when_it_ends_by_what_was_forecast(running_for: int, state: PlanState, words: str) -> None:
    started = NOW - timedelta(seconds=running_for)
    card = a_card(state=state, started_at=started, estimate=timedelta(minutes=12))
    text = shown(plan_message(card, now=NOW))
    assert words in text
    assert ("its estimate" in text) is bool(words)
    assert "beyond the RTO" not in text


def test_a_running_plan_that_will_miss_the_rto_says_so_before_it_does() -> None:
    card = a_card(
        state=PlanState.RUNNING, started_at=NOW, estimate=timedelta(minutes=12), rto_deadline=NOW + timedelta(minutes=9)
    )
    assert "in 12 min, 3 min beyond the RTO" in shown(plan_message(card, now=NOW))


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (
            20,
            "in 20 min, 9 min 30 s later than its estimate, 11 min beyond the RTO",
        ),
        (4, "At its measured pace done at"),
        (-1, "By its estimate done at"),
    ],
)
def test_a_running_plan_says_when_it_ends_at_its_pace(left: int, words: str) -> None:
    card = a_card(
        state=PlanState.RUNNING,
        started_at=NOW - timedelta(seconds=90),
        estimate=timedelta(minutes=12),
        expected_at=NOW + timedelta(minutes=left),
        rto_deadline=NOW + timedelta(minutes=9),
    )
    text = shown(plan_message(card, now=NOW))
    assert words in text
    assert ("later than" in text) is (left == 20)
    assert ("by its estimate" in text.lower()) is (left < 0)


def test_the_report_compares_with_the_rto() -> None:
    card = a_card(state=PlanState.SUCCEEDED, started_at=NOW - timedelta(minutes=3), ended_at=NOW)
    assert "within the RTO, spare 41 min" in shown(plan_message(card, now=NOW + timedelta(days=1)))


def test_a_long_plan_is_cut_with_a_pointer_and_keeps_its_buttons() -> None:
    steps = tuple(a_step(number, summary="s" * 2000, detail="d" * 2000) for number in range(1, 90))
    for state in (PlanState.PENDING, PlanState.RUNNING):
        found = plan_message(a_card(steps=steps, state=state), now=NOW)
        check_message(found)
        assert "drbot plan show abcdefghjk" in shown(found)
        assert "plan.details" in action_ids(found)
    check_view(details_modal(a_card(steps=steps), now=NOW))
    check_view(approve_modal(a_card(steps=steps), channel="C", ts="1", now=NOW))


def test_approving_asks_for_the_typed_target_where_the_policy_does() -> None:
    assert "typed" in action_ids(approve_modal(a_card(), channel="C", ts="1", now=NOW))
    assert "typed" not in action_ids(approve_modal(a_card(typed_target=False), channel="C", ts="1", now=NOW))
    metadata = Metadata.model_validate_json(approve_modal(a_card(), channel="C", ts="1", now=NOW)["private_metadata"])
    assert (metadata.token, metadata.digest, metadata.channel) == ("t" * 43, "0123abcd" * 8, "C")


def test_people_cannot_write_into_the_product_s_blocks() -> None:
    signers = (SignerLine(person=NASTY, act=Act.APPROVE, at=NOW, reason=NASTY),)
    payloads = [
        plan_message(a_card(signers=signers, target=NASTY, summary=NASTY), now=NOW),
        plan_message(a_card(demands=demanded(overrules=NASTY, overruled_reason=NASTY, may_sign=(NASTY,))), now=NOW),
        incident_message(an_incident(title=NASTY, commander=NASTY, next_step=NASTY), now=NOW),
        timeline_message(TimelinePage(incident=NASTY, number=1, lines=(a_line(text=NASTY, actor=NASTY),))),
        report_message(Report(title=NASTY, lines=(NASTY,), columns=(NASTY,), rows=((NASTY,),))),
        sentence(NASTY),
    ]
    for payload in payloads:
        check_message(payload)
        for text in mrkdwn_texts(payload):
            assert "<!channel>" not in text
            assert "<@U1>" not in text
            assert "\u202e" not in text
            assert "\u200b" not in text


def test_a_reason_never_shares_a_block_with_facts() -> None:
    signers = (SignerLine(person="Ana", act=Act.APPROVE, at=NOW, reason="Code ffffffff"),)
    for block in plan_message(a_card(signers=signers), now=NOW)["blocks"]:
        if "ffffffff" in shown(block):
            assert "0123abcd" not in shown(block)
            assert block["elements"][0]["type"] == "plain_text"


def mrkdwn_texts(payload: Any) -> list[str]:
    if isinstance(payload, dict):
        own = [payload["text"]] if payload.get("type") == "mrkdwn" or "blocks" in payload else []
        return own + [text for value in payload.values() for text in mrkdwn_texts(value)]
    return [text for item in payload for text in mrkdwn_texts(item)] if isinstance(payload, list) else []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "RTO left 41 min of 1 h"),
        ({"impact_started_at": NOW - timedelta(minutes=90)}, "RTO exceeded by 30 min of 1 h"),
        ({"recovered_at": NOW}, "achieved 19 min, within the target of 1 h"),
        ({"recovered_at": NOW + timedelta(hours=2)}, "achieved 2 h 19 min, beyond the target of 1 h"),
        ({"open": False, "closed_at": NOW}, "not measured, target 1 h"),
    ],
)
def test_the_incident_card_counts_the_rto(changes: dict[str, Any], words: str) -> None:
    found = incident_message(an_incident(**changes), now=NOW)
    check_message(found)
    assert words in found["text"]
    assert words in shown(found["blocks"])


def test_the_restore_form_recommends_one_and_hides_the_others() -> None:
    form = restore_modal(an_offer(), channel="C1")
    check_view(form)
    text = shown(form)
    assert "loses 8 h 12 min, BEYOND the RPO of 15 min" in text
    assert "loses 32 h" not in text
    assert "restore.alternatives" in action_ids(form)
    assert {"reason", "typed"} <= set(action_ids(form))


def test_the_alternatives_are_a_choice() -> None:
    form = restore_modal(an_offer(), channel="C1", alternatives=True)
    check_view(form)
    assert "backup" in action_ids(form)
    assert "1 d 8 h" in shown(form)


def test_the_moment_of_the_impact_goes_with_the_answer() -> None:
    offer = an_offer(before=NOW - timedelta(hours=9))
    form = restore_modal(offer, channel="C1")
    check_view(form)
    assert offer.before is not None
    assert json.loads(form["private_metadata"])["before"] == offer.before.isoformat()


def test_a_suspect_server_can_be_said_in_the_form_where_there_is_a_spare_one() -> None:
    form = restore_modal(an_offer(spare="standby-2"), channel="C1")
    check_view(form)
    assert "restore on server standby-2 instead" in shown(form)
    assert "suspect" not in action_ids(restore_modal(an_offer(), channel="C1"))


def test_a_database_without_backups_offers_nothing_to_sign() -> None:
    form = restore_modal(an_offer(recommended=None, alternatives=(), why="No dump of `x` verifies."), channel="C1")
    check_view(form)
    assert "submit" not in form


def test_the_timeline_shows_when_it_happened_and_when_it_was_recorded() -> None:
    lines = tuple(a_line(seq=number) for number in range(1, 24))
    found = timeline_message(TimelinePage(incident="x", number=7, page=2, pages=3, lines=lines))
    check_message(found)
    text = shown(found)
    assert "2026-11-23 10:12:05 UTC" in text
    assert "recorded 2026-11-23 10:17:05 UTC" in text
    assert "--page 3" in text
    assert "|message>" in text


def test_links_that_are_none_are_not_links() -> None:
    for link in ("javascript:alert(1)", "https://x|y>", None):
        page = TimelinePage(incident="x", number=7, lines=(a_line(permalink=link),))
        assert "|message>" not in shown(timeline_message(page))


def test_reports_are_tables_in_fixed_width() -> None:
    rows = tuple((f"b{number}", "1 GB " * 30) for number in range(200))
    report = Report(title="Backups", lines=("Newest is 3 h old.",), columns=("Backup", "Size"), rows=rows)
    found = report_message(report)
    check_message(found)
    assert "140 more rows" in shown(found)


def test_a_report_that_is_cut_says_how_much_more_there_is() -> None:
    told = tuple(Finding(check="lacks", verdict=Verdict.WARN, detail=f"part {number}") for number in range(23))
    found = report_message(Report(title="P", lines=tuple(f"line {number}" for number in range(26)), findings=told))
    check_message(found)
    assert "1 more line on the command line" in shown(found)
    assert "3 more findings on the command line" in shown(found)


def test_nobody_signs_a_plan_of_which_the_worst_finding_is_cut_or_any_without_a_word() -> None:
    told = tuple(Finding(check="by hand", verdict=Verdict.WARN, detail=f"part {number}") for number in range(30))
    card = a_card(findings=(*told, Finding(check="disk", verdict=Verdict.STOP, detail="the disk is full")))
    for view, more in (
        (plan_message(card, now=NOW), 23),
        (approve_modal(card, channel="C1", ts="1.2", now=NOW), 11),
        (details_modal(card, now=NOW), 16),
    ):
        assert "the disk is full" in shown(view)
        assert f"{more} more findings: `drbot plan show abcdefghjk`" in shown(view)


def test_a_hash_in_a_table_is_shown_whole() -> None:
    sha256 = "0123456789abcdef" * 4
    report = Report(title="E-1: Disk", columns=("no.", "what", "SHA-256"), rows=(("1", "collected", sha256),))
    assert sha256 in shown(report_message(report))
    assert sha256 in report_text(report)


def test_help_names_every_command_and_its_example() -> None:
    router = Router()
    everything = help_message(router)
    check_message(everything)
    for noun in router.nouns():
        one = help_message(router, noun)
        check_message(one)
        for entry in router.entries(noun):
            assert entry.example in shown(one["blocks"]).replace('\\"', '"')
    check_message(help_message(router, "nonsense"))


def test_small_views_are_valid() -> None:
    check_view(loading_modal("Approve"))
    check_view(text_modal("Refused", NASTY))
    check_message(sentence(""))


@given(st.text(max_size=4000))
@settings(max_examples=60)
def test_any_text_makes_valid_payloads(text: str) -> None:
    check_message(sentence(text))
    check_message(plan_message(a_card(summary=text, target=text, data_loss=text, message=text), now=NOW))
    check_message(timeline_message(TimelinePage(incident=text, number=1, lines=(a_line(text=text, actor=text),))))
    check_message(report_message(Report(title=text, lines=(text,), columns=("a",), rows=((text,),))))
    check_view(text_modal("Refused", text))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0.0 s"), (4.24, "4.2 s"), (61, "1 min 1 s"), (2460, "41 min"), (29_520, "8 h 12 min"), (90_000, "1 d 1 h")],
)
def test_spans_have_at_most_two_units(seconds: float, words: str) -> None:
    assert blocks.span(timedelta(seconds=seconds)) == words


@pytest.mark.parametrize("command", run_control.SIGNED)
@pytest.mark.parametrize("typed", [True, False])
def test_the_form_of_an_answer_is_a_valid_view(command: str, typed: bool) -> None:
    steps = (a_step(1), a_step(2, state=StepState.ASKING))
    card = a_card(state=PlanState.ASKING, message="<!channel> " * 400, steps=steps, typed_target=typed)
    view = run_form.form(card, command, channel="C1")
    check_view(view)
    assert "<!channel>" not in json.dumps(view)
    assert ("Type exactly" in json.dumps(view)) == typed


SERVERS = (
    "`primary`, primary at db.example:5432 on timeline id 3, system id 7000000000000000001, PostgreSQL 18.6",
    "`scratch-s1`, which becomes the primary as of 0/4000100 of timeline id 3",
)


def test_the_servers_that_a_plan_acts_on_stand_with_the_buttons_and_in_every_form() -> None:
    card = a_card(acts_on=SERVERS)
    forms = [form(card, channel="C", ts="1", now=NOW) for form in (approve_modal, deny_modal, withdraw_modal)]
    for view in (*forms, details_modal(card, now=NOW)):
        assert all(server in shown(view) for server in SERVERS)

    steps = tuple(a_step(number).model_copy(update={"before": "x" * 600}) for number in range(1, 40))
    long = a_card(acts_on=SERVERS, steps=steps)
    for each, at_the_end in ((card, True), (long, False)):
        message = plan_message(each, now=NOW)
        check_message(message)
        [buttons] = [number for number, block in enumerate(message["blocks"]) if block["type"] == "actions"]
        assert (buttons == len(message["blocks"]) - 1) is at_the_end
        assert all(server in shown(message["blocks"][buttons - 1]) for server in SERVERS)


def test_a_plan_that_acts_on_no_server_says_nothing_of_one() -> None:
    assert "Acts on" not in shown(plan_message(a_card(), now=NOW))


def test_the_end_of_a_run_shows_the_commands_that_come_next() -> None:
    told = "x" * 1200 + " Next: `/dr-restore rescue k7m2n3p4q5 public.documents` brings a table back."
    steps = [a_step(number=number, state=StepState.VERIFIED, detail=told) for number in (1, 2, 3)]
    steps.append(a_step(number=4, state=StepState.VERIFIED, detail=""))
    message = plan_message(a_card(state=PlanState.SUCCEEDED, steps=tuple(steps)), now=NOW)
    check_message(message)
    assert shown(message).count("rescue k7m2n3p4q5 public.documents` brings a table back.") == 1
