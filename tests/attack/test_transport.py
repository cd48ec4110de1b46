"""What arrives, and whether it is Slack's. Rows T1 to T13 of docs/reference/attacks.md."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any
from urllib.parse import quote, urlencode

import pytest
import structlog
from slack_sdk.signature import SignatureVerifier

from actions.approval import Act
from bot.ports import Who
from bot.services.cards import PlanState
from bot.slack import deeds
from bot.slack.inspection import LARGEST
from tests.attack.conftest import Setting
from tests.attack.launch import TARGET
from tests.attack.stage import DANIEL, OLIVIA, STRANGER, Stage
from tests.fakes.slack import SECRET, TEAM, Message, signed_http
from tests.fixtures.office import CHANNEL, OfficeForTests

pytestmark = [pytest.mark.attack, pytest.mark.integration]


async def turned_away(stage: Stage, count: int, *reasons: str) -> None:
    """The door has counted them, and tells it in one row; nothing of them is stored."""
    door = stage.runtime._door
    assert door is not None
    await door.tell()
    await stage.refused("bad_signature")
    told = await stage.value("SELECT text FROM refusal")
    assert told.startswith(f"{count} request(s) over HTTP")
    for reason in reasons:
        assert reason in told
    assert await stage.value("SELECT count(*) FROM inbox") == 0
    assert await stage.value("SELECT count(*) FROM request") == 0


def asking(stage: Stage) -> tuple[str, dict[str, str]]:
    """A good request for a plan."""
    words = f"{TARGET} --from b-1 --reason gone --target {TARGET}"
    return signed_http(stage.slack.slash("/dr-restore", words, user=OLIVIA, channel=CHANNEL))


def signed_raw(
    raw: str, kind: str = "application/x-www-form-urlencoded", *, stamp: str | None = None
) -> dict[str, str]:
    """Headers with a good signature over any body."""
    stamp = stamp or str(int(time.time()))
    signature = SignatureVerifier(SECRET).generate_signature(timestamp=stamp, body=raw) or ""
    return {"content-type": kind, "x-slack-request-timestamp": stamp, "x-slack-signature": signature}


async def test_t1_without_the_right_signature_nothing_gets_in(stage: Stage) -> None:
    raw, headers = asking(stage)
    statuses = [
        await stage.post(raw.replace("gone", "g0ne"), headers),  # one byte
        await stage.post(raw.replace("+", "%20"), headers),  # the same form, written in another way
        await stage.post(raw + "&", headers),
        await stage.post(raw, signed_http({"command": "/dr", "text": ""}, secret="wrong")[1]),
        await stage.post(raw, {"content-type": headers["content-type"]}),
        await stage.post(raw, {name: value for name, value in headers.items() if name != "x-slack-signature"}),
    ]
    assert {status for status, _ in statuses} == {401}
    assert {answer for _, answer in statuses} == {""}, "the door says nothing"
    await turned_away(stage, 6, "wrong signature: 4", "unsigned: 2")


async def test_t1_two_signatures_are_none(stage: Stage) -> None:
    raw, headers = asking(stage)
    pairs = [*headers.items(), ("x-slack-signature", "v0=" + "0" * 64)]
    async with stage.http.post(stage.address(), data=raw, headers=pairs) as response:
        assert response.status == 401
    await turned_away(stage, 1)


@pytest.mark.parametrize(("age", "allowed"), [(301, False), (-62, False), (295, True), (-55, True)])
async def test_t2_old_and_future_requests_stay_out(stage: Stage, age: int, allowed: bool) -> None:
    body = stage.slack.slash("/dr", "help")
    status, _ = await stage.post(*signed_http(body, age=age))
    assert status == (200 if allowed else 401)
    if not allowed:
        await turned_away(stage, 1, "old" if age > 0 else "ahead")


async def test_t3_the_same_bytes_have_one_effect_in_every_process(stage: Stage) -> None:
    other = OfficeForTests(stage.memory, stage.office.plan, catalogue=stage.catalogue)
    plan = await stage.plan()
    view = await stage.window(plan)
    raw, headers = signed_http(stage.slack.submission(view, user=DANIEL, reason="seen", typed="wrong"))
    try:
        async with stage.serving(office=other) as second:
            assert (await stage.post(raw, headers))[1] != ""
            for runtime in (stage.runtime, second, second):
                assert await stage.post(raw, headers, runtime=runtime) == (200, "")
            for runtime in (stage.runtime, second):
                door = runtime._door
                assert door is not None
                await door.tell()
            assert await stage.signers(plan) == [("olivia", "request")]
            await stage.refused("replayed", times=2)  # a row of each process
    finally:
        await other.close()


async def test_t3_copies_at_one_instant_make_one_plan(stage: Stage) -> None:
    raw, headers = asking(stage)
    answers = await asyncio.gather(*(stage.post(raw, headers) for _ in range(8)))
    assert {status for status, _ in answers} == {200}
    await stage.slack.until(lambda: bool(stage._cards()))
    await stage.untouched()
    assert await stage.value("SELECT count(*) FROM plan") == 1


@pytest.mark.parametrize(
    ("stamp", "signature"),
    [
        ("abc", None),
        ("", None),
        ("1_7", None),
        ("-1", None),
        ("٣٣٣", None),
        ("9" * 5_000, None),
        ("1790000000.5", None),
        (None, "v0=\u00e9" + "0" * 63),
        (None, "v0=" + "A" * 64),
        (None, "v0=" + "0" * 63),
        (None, "v1=" + "0" * 64),
        (None, ""),
        (None, "v0=" + "0" * 5_000),
    ],
)
async def test_t4_garbage_is_401_and_never_500(stage: Stage, stamp: str | None, signature: str | None) -> None:
    raw, headers = asking(stage)
    if stamp is not None:
        headers["x-slack-request-timestamp"] = stamp
    if signature is not None:
        headers["x-slack-signature"] = signature
    assert await stage.post(raw, headers) == (401, "")
    await turned_away(stage, 1, "garbled: 1")


async def test_t5_no_word_of_a_body_is_logged(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    marker = "words-of-a-person"
    body = stage.slack.slash("/dr-restore", marker, user=STRANGER)
    with structlog.testing.capture_logs() as events, caplog.at_level(logging.DEBUG):
        assert (await stage.post(*signed_http(body, secret="wrong")))[0] == 401
        assert (await stage.post(*signed_http(body, age=1_000)))[0] == 401
        await stage.post(f"payload={marker}", signed_raw(f"payload={marker}"))
        await turned_away(stage, 3, "wrong signature", "old", "not readable")
        await stage.send(stage.slack.click(marker, marker, user=DANIEL))
        await stage.send({"type": "view_closed", "user": {"id": DANIEL}, "view": {"callback_id": marker}})
    ours = [record for record in caplog.records if not record.name.startswith(("aiohttp", "asyncio"))]
    assert marker not in json.dumps(events, default=repr)
    assert not [record for record in ours if marker in record.getMessage() and "slack_sdk" not in record.name]
    assert any(event["event"] == "requests_turned_away" and event["count"] == 3 for event in events)
    await stage.untouched()


async def test_t6_a_look_at_the_certificate_reaches_no_handler(stage: Stage) -> None:
    words = urlencode({"command": "/dr-restore", "text": f"{TARGET} --target {TARGET}", "user_id": OLIVIA})
    for raw in (f"ssl_check=1&{words}", f"{words}&ssl_check=1", "ssl_check=1"):
        kind = {"content-type": "application/x-www-form-urlencoded"}
        assert await stage.post(raw, kind) == (200, "")
        assert await stage.post(raw, signed_raw(raw)) == (200, "")
        assert await stage.post(raw, signed_raw(raw) | {"x-slack-signature": "v0=" + "0" * 64}) == (401, "")
    await turned_away(stage, 3, "wrong signature")


async def test_t7_an_envelope_that_comes_twice_signs_once(setting: Setting) -> None:
    async with setting(socket_mode=True) as stage:
        await stage.slack.connected(2)
        words = f"{TARGET} --from b-1 --reason gone --target {TARGET}"
        body = stage.slack.slash("/dr-restore", words, user=OLIVIA, channel=CHANNEL)
        for socket in (0, 1, 0):
            await stage.slack.deliver("slash_commands", body, socket=socket)
        await stage.slack.until(lambda: bool(stage._cards()))
        stranger = stage.slack.click("plan.approve", "x" * 32, message=stage._cards()[0], user=STRANGER)
        for socket in (0, 1):
            await stage.slack.deliver("interactive", stranger, socket=socket)
        await stage.refused("unknown_button")
        assert await stage.value("SELECT count(*) FROM plan") == 1


async def crafted(stage: Stage) -> dict[str, Any]:
    plan = await stage.plan()
    return stage.slack.click("plan.approve", plan.card.token, message=plan.message, user=DANIEL)


async def test_t8_two_buttons_in_one_click_are_refused(stage: Stage) -> None:
    click = await crafted(stage)
    await stage.send(click | {"actions": click["actions"] * 2})
    await stage.refused("malformed")
    await stage.send(click | {"actions": []})
    await stage.refused("malformed", times=2)
    assert stage.slack.views == {}


async def test_t8_a_click_for_another_app_is_refused(stage: Stage) -> None:
    await stage.send(await crafted(stage) | {"api_app_id": "A0OTHER"})
    await stage.refused("wrong_app")
    assert stage.slack.views == {}


async def test_t8_a_button_nobody_made_is_refused(stage: Stage) -> None:
    click = await crafted(stage)
    click["actions"][0]["action_id"] = "plan.execute"
    await stage.send(click)
    await stage.refused("unknown_control")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: raw.replace('"type": "block_actions"', '"type": "block_actions", "type": "block_actions"'),
        lambda raw: raw.replace('"value": ', '"value": "forged", "value": '),
        lambda raw: raw.replace('"team": {', '"size": NaN, "team": {'),
        lambda raw: "[" * 50_000 + "]" * 50_000,
        lambda raw: "[]",
        lambda raw: raw[:-1],
    ],
    ids=["key twice", "value twice", "no number", "deep", "no object", "cut"],
)
async def test_t8_what_says_two_things_is_refused(stage: Stage, spoil: Any) -> None:
    click = await crafted(stage)
    raw = "payload=" + quote(spoil(json.dumps(click)))
    assert (await stage.post(raw, signed_raw(raw)))[0] == 400
    await one_row(stage)
    assert stage.slack.views == {}


async def one_row(stage: Stage) -> None:
    door = stage.runtime._door
    assert door is not None
    await door.tell()
    await stage.refused("bad_signature")


async def test_t8_two_payloads_are_refused(stage: Stage) -> None:
    payload = "payload=" + quote(json.dumps(await crafted(stage)))
    raw = f"{payload}&{payload}"
    assert (await stage.post(raw, signed_raw(raw)))[0] == 400
    await one_row(stage)


async def test_t8_a_huge_body_is_refused_unread(stage: Stage) -> None:
    raw = "text=" + "a" * LARGEST
    assert (await stage.post(raw, signed_raw(raw)))[0] == 413
    await one_row(stage)


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b"], ids=["NUL", "half a pair"])
async def test_t8_what_is_no_text_is_refused(stage: Stage, text: str) -> None:
    click = await crafted(stage) | {"extra": text}
    await stage.send(click)
    await stage.refused("malformed")


async def test_t9_a_token_of_another_plan_does_not_count_here(stage: Stage) -> None:
    one, other = await stage.plan(), await stage.plan()
    view = await stage.window(one, token=other.card.token)
    told = await stage.submit(view)
    assert "not on the plan's own message" in told
    await stage.refused("stale_revision", other)
    assert await stage.signers(one) == await stage.signers(other) == [("olivia", "request")]


@pytest.mark.parametrize("action", ["plan.approve", "plan.deny", "plan.details", "run.happened", "run.retry"])
async def test_t9_a_guessed_token_opens_nothing(stage: Stage, action: str) -> None:
    plan = await stage.plan()
    view = await stage.window(plan, token="A" * 32, action=action)
    assert "belongs to no plan" in json.dumps(stage.slack.views[view])
    await stage.refused("unknown_button")


@pytest.mark.parametrize("action", ["run.stop", "run.resume"])
async def test_t9_a_guessed_token_orders_nothing(stage: Stage, action: str) -> None:
    plan = await stage.plan()
    assert (await stage.send(stage.slack.click(action, "A" * 32, message=plan.message, user=DANIEL)))[0] == 200
    await stage.refused("unknown_button")
    assert await stage.value("SELECT count(*) FROM request WHERE name LIKE 'run.%'") == 0


async def test_t10_only_ids_are_read_from_a_payload(stage: Stage) -> None:
    plan = await stage.plan()
    claims = {
        "state": "approved",
        "approved": True,
        "user": {"id": STRANGER, "team_id": TEAM, "roles": ["dba"], "is_admin": True, "name": "daniel"},
        "message": {"ts": plan.message.ts, "text": "Approved by Daniel Dietrich", "blocks": []},
    }
    click = stage.slack.click("plan.approve", plan.card.token, message=plan.message)
    assert (await stage.send(click | claims))[0] == 200
    await stage.refused("not_on_roster", plan)
    assert await stage.state(plan) is PlanState.PENDING


async def test_t11_a_copy_of_the_message_signs_nothing(stage: Stage) -> None:
    plan = await stage.plan()
    copy = Message("C0OPS", "1790009999.000001", plan.message.text, plan.message.blocks)
    stage.slack.messages.append(copy)
    plan.message = copy
    assert "not on the plan's own message" in await stage.sign(plan)
    await stage.refused("stale_revision", plan)


@pytest.mark.parametrize("action", ["run.stop", "run.resume", "run.happened"])
async def test_t11_a_copy_of_the_message_orders_nothing(stage: Stage, action: str) -> None:
    """Whoever posts in the bot's name could call a button `Look again` that stops the run."""
    plan = await stage.plan()
    copy = Message(CHANNEL, "1790009999.000001", plan.message.text, plan.message.blocks)
    stage.slack.messages.append(copy)
    assert (await stage.send(stage.slack.click(action, plan.card.token, message=copy, user=DANIEL)))[0] == 200
    await stage.refused("stale_revision", plan)
    assert await stage.value("SELECT count(*) FROM request WHERE name LIKE 'run.%'") == 0


@pytest.mark.parametrize("first_arrives", [True, False])
async def test_t12_a_retry_counts_once_and_is_not_dropped(stage: Stage, first_arrives: bool) -> None:
    words = f"{TARGET} --from b-1 --reason gone --target {TARGET}"
    body = stage.slack.slash("/dr-restore", words, user=OLIVIA, channel=CHANNEL)
    if first_arrives:
        assert (await stage.send(body))[0] == 200
    raw, headers = signed_http(body, age=1)
    again = headers | {"x-slack-retry-num": "1", "x-slack-retry-reason": "http_timeout"}
    assert (await stage.post(raw, again))[0] == 200
    await stage.slack.until(lambda: bool(stage._cards()))
    await stage.untouched()
    assert await stage.value("SELECT count(*) FROM plan") == 1


async def test_t13_a_click_outlives_the_process_that_took_it(stage: Stage) -> None:
    """It was stored and acknowledged; then the process died. The next one carries it out, once."""
    plan = await stage.plan()
    form = stage.slack.views[await stage.window(plan)]
    metadata = json.loads(form["private_metadata"])
    deed = deeds.Sign(
        who=Who(slack_user=DANIEL, team=TEAM, channel=CHANNEL),
        token=metadata["token"],
        act=Act.APPROVE,
        digest=metadata["digest"],
        typed=TARGET,
        reason="seen",
        ts=plan.message.ts,
    )
    await stage.office.desk.store("view:left behind", deeds.STORED_AS, deed.model_dump(mode="json"))
    assert stage.executor.starts == []
    next_one = OfficeForTests(stage.memory, stage.office.plan, catalogue=stage.catalogue)
    try:
        async with stage.serving(office=next_one):
            await stage.until(plan, PlanState.SUCCEEDED)
    finally:
        await next_one.close()
    assert await stage.signers(plan) == [("olivia", "request"), ("daniel", "approve")]
    assert len(stage.executor.starts) == 1
