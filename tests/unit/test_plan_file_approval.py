"""The policy in a plan file: scopes, freezes, keys, groups, break-glass, the rota, and whether anybody can sign."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from actions.approval import Method
from actions.contract import Risk
from actions.errors import UserError
from actions.policy import Once, Weekly
from bot.demo.keys import make_keys
from bot.demo.plan import Addresses, demo_plan
from bot.plan_file import DrPlan, Severity, check, load, load_activated
from bot.plan_file.doubts import doubts
from bot.plan_file.quorum import gaps, reachable
from tests.fixtures.office import shipped_plan
from tests.unit.test_plan_file_check import SHIPPED, broken, line_of

A_MONDAY = datetime(2026, 1, 5, tzinfo=UTC)
RULE = "      # key_required: true      # one signature by `drbot sign`; needs `keys` in the roster\n"
"""A place in the DESTRUCTIVE rule of the shipped plan where lines can be put in."""

Document = dict[str, Any]


def a_key() -> str:
    public = Ed25519PrivateKey.generate().public_key()
    return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def in_rule(tmp_path: Path, *lines: str) -> Path:
    return broken(tmp_path, (RULE, "".join(f"      {line}\n" for line in lines)))


def errors(path: Path) -> dict[str, tuple[str, str]]:
    problems = [problem for problem in check(path) if problem.severity is Severity.ERROR]
    assert all(problem.line > 1 for problem in problems)
    return {
        problem.key.partition("approval.")[2] or problem.key: (problem.wrong, problem.right) for problem in problems
    }


# ---------------------------------------------------------------- scopes and freezes


def test_everything_a_rule_can_say_is_read(tmp_path: Path) -> None:
    path = in_rule(
        tmp_path,
        "key_required: true",
        "actions: [restore.dump]",
        "targets: [superprismora]",
        "services: [superprismora]",
        "channels: [incident, on_call, C0123ABCD]",
        "freezes:",
        "  - {reason: Black Friday, since: 2026-11-27 00:00 UTC, until: 2026-12-01 06:00 UTC}",
        '  - {reason: payroll, every: [thu, fri], since: "22:00", until: "06:00", zone: Europe/Berlin}',
    )
    rule = load(path).approval.rules[3].rule()

    assert (rule.actions, rule.targets, rule.services) == (("restore.dump",), ("superprismora",), ("superprismora",))
    assert (rule.channels, rule.key_required) == (("incident", "on_call", "C0123ABCD"), True)
    assert rule.freezes == (
        Once(
            since=datetime(2026, 11, 27, tzinfo=UTC),
            until=datetime(2026, 12, 1, 6, tzinfo=UTC),
            reason="Black Friday",
        ),
        Weekly(days=frozenset({3, 4}), since=time(22), until=time(6), zone="Europe/Berlin", reason="payroll"),
    )


@pytest.mark.parametrize(
    ("line", "key", "wrong", "right"),
    [
        ("services: [shop]", "rules[3].services[0]", "no service `shop`", "superprismora"),
        ("channels: [ops]", "rules[3].channels[0]", "`ops` has the wrong form", "C0123ABCD"),
        ("actions: [restore]", "rules[3].actions[0]", "`restore` has the wrong form", "restore.dump"),
        ("slack_group: S1", "rules[3].slack_group", "no key `slack_group` here", ""),
    ],
)
def test_a_scope_that_means_nothing_is_told(tmp_path: Path, line: str, key: str, wrong: str, right: str) -> None:
    found = errors(in_rule(tmp_path, line))

    assert list(found) == [key]
    assert wrong in found[key][0]
    assert right in found[key][1]


def test_a_rule_for_an_action_nobody_knows_is_told(tmp_path: Path) -> None:
    problems = check(in_rule(tmp_path, "actions: [restore.dmp]"), actions={"restore.dump": None})

    told = {problem.key: problem.right for problem in problems}
    assert told["approval.rules[3].actions[0]"] == "did you mean `restore.dump`?"


@pytest.mark.parametrize(
    ("freeze", "wrong"),
    [
        ("{reason: x, since: 2026-11-27, until: 2026-12-01 06:00 UTC}", "`2026-11-27` is not an instant"),
        ("{reason: x, since: 2026-13-27 00:00 UTC, until: 2026-12-01 06:00 UTC}", "is not an instant"),
        ("{reason: x, since: 2026-12-01 06:00 UTC, until: 2026-12-01 06:00 UTC}", "it ends before it begins"),
        ('{reason: x, since: "22:00", until: "06:00"}', "`22:00` is not an instant"),
        ('{reason: x, every: [thu], since: "22:00", until: "24:00"}', "`24:00` is not a time of day"),
        ("{reason: x, every: [thursday], since: 10:00, until: 11:00}", "not one of those allowed"),
        ("{reason: x, every: [thu], since: 10:00, until: 11:00, zone: Mars/Base}", "no time zone `Mars/Base`"),
        (
            "{reason: x, since: 2026-11-27 00:00 UTC, until: 2026-12-01 06:00 UTC, zone: Europe/Berlin}",
            "`zone` is for times of day",
        ),
        ("{since: 2026-11-27 00:00 UTC, until: 2026-12-01 06:00 UTC}", "the key `reason` is missing"),
    ],
)
def test_a_freeze_that_is_no_time_is_told(tmp_path: Path, freeze: str, wrong: str) -> None:
    found = errors(in_rule(tmp_path, "freezes:", f"  - {freeze}"))

    assert wrong in next(iter(found.values()))[0]


def test_a_second_rule_with_the_same_cover_is_told(tmp_path: Path) -> None:
    second = (
        "    - risk: DESTRUCTIVE\n      persons_besides_requester: 2\n      typed_target: true\n"
        "      approval_expiry: 1h\n      execution_expiry: 1h\n"
    )
    where = "    - risk: IRREVERSIBLE"

    assert "named twice" in errors(broken(tmp_path, (where, second + where)))["rules[4].risk"][0]
    scoped = second + "      targets: [superprismora]\n"
    assert errors(broken(tmp_path, (where, scoped + where))) == {}


# ---------------------------------------------------------------- break-glass, groups, keys


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        ("    delay: 5m ", "    delay: 59s ", "no time for a veto"),
        ("    review_within: 24h\n", "    review_within: 24h\n    reviewers: 1\n", "two persons review"),
        ("    review_within: 24h\n", "", "the key `review_within` is missing"),
    ],
)
def test_break_glass_leaves_room_for_others(tmp_path: Path, old: str, new: str, wrong: str) -> None:
    assert wrong in next(iter(errors(broken(tmp_path, (old, new))).values()))[0]


def without_pager(tmp_path: Path) -> Path:
    [line] = [line for line in SHIPPED.read_text().splitlines(keepends=True) if line.startswith("pager: ")]
    return broken(tmp_path, (line, ""))


def test_break_glass_that_nobody_outside_slack_hears_of_is_refused(tmp_path: Path) -> None:
    path = without_pager(tmp_path)
    (problem,) = [item for item in check(path) if item.severity is Severity.ERROR]
    assert problem.key == "approval.break_glass"
    assert problem.line == line_of(path, "    delay: 5m")
    assert "announced outside Slack" in problem.wrong
    assert "add `pager`" in problem.right
    with pytest.raises(UserError, match="no `pager` is named"):
        load(path)
    assert (
        errors(
            broken(tmp_path, ("  break_glass: ", "  # "), ("    delay: 5m ", "    # "), ("    review_within: 24h", ""))
        )
        == {}
    )


def test_a_version_that_was_activated_before_that_rule_can_still_be_read(tmp_path: Path) -> None:
    plan = load_activated(without_pager(tmp_path).read_text(), name="version 3")
    assert plan.pager is None
    assert plan.approval.break_glass is not None
    with pytest.raises(UserError, match="persons_besides_requester"):
        load_activated("version: 1\napproval: {rules: [{risk: READ}]}\n", name="version 3")


def test_a_slot_may_name_a_slack_group(tmp_path: Path) -> None:
    role = "        - role: dba\n          count: 1\n"
    path = broken(tmp_path, (role, role + "          slack_group: S0123ABCD\n"))

    assert [slot.group for slot in load(path).approval.rules[3].rule().slots] == ["S0123ABCD"]
    assert (
        "has the wrong form"
        in next(iter(errors(broken(tmp_path, (role, role + "          slack_group: dbas\n"))).values()))[0]
    )


def keyed(tmp_path: Path, *lines: str) -> Path:
    first = "    keys: []                    # such as [ssh-ed25519 AAAA... name], from ~/.ssh/id_ed25519.pub\n"
    return broken(tmp_path, (first, "    keys:\n" + "".join(f"      - {line}\n" for line in lines)))


def test_keys_are_what_ssh_keygen_writes(tmp_path: Path) -> None:
    plan = load(keyed(tmp_path, f"{a_key()} ona@laptop", f"'valid-before=\"20270101\" {a_key()}'"))

    assert len(plan.roster[0].keys) == 2


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQ", "no key to sign with"),
        ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA", "no key to sign with"),
        ("'-----BEGIN OPENSSH PRIVATE KEY-----'", "the private half of a key"),
        ("SHA256:abc", "no key to sign with"),
    ],
)
def test_what_is_no_public_key_is_told_and_not_repeated(tmp_path: Path, line: str, wrong: str) -> None:
    found = errors(keyed(tmp_path, line))

    assert wrong in found["roster[0].keys[0]"][0]
    assert "AAAAB3" not in str(found)


def test_one_key_belongs_to_one_person(tmp_path: Path) -> None:
    key = a_key()
    path = keyed(tmp_path, f"{key} ona", f"{key} somebody else")

    assert errors(path)["roster[0].keys[1]"] == ("this key is given twice", "give every person keys of their own")


def test_the_roster_knows_what_everybody_signs_with() -> None:
    document = shipped_plan().model_dump(mode="json")
    document["roster"][0]["keys"] = [a_key()]
    document["roster"][1]["slack_ids"] = []
    means = [person.means for person in reachable(DrPlan.model_validate(document), A_MONDAY)]

    assert means == [frozenset({Method.SLACK, Method.KEY}), frozenset(), frozenset({Method.SLACK})]


# ---------------------------------------------------------------- who can sign when


def changed(change: Callable[[Document], object]) -> DrPlan:
    document = shipped_plan().model_dump(mode="json")
    change(document)
    return DrPlan.model_validate(document)


def by_day(document: Document) -> None:
    document["rota"] = [
        {"persons": ["olivia", "daniel", "sam"], "every": ["mon"], "since": "08:00", "until": "20:00"},
        {"persons": ["olivia", "daniel"], "every": ["mon"], "since": "20:00", "until": "02:00"},
    ]


def test_the_rota_says_who_is_there() -> None:
    plan = changed(by_day)

    def there(hour: int) -> list[str]:
        return [person.id for person in reachable(plan, A_MONDAY + timedelta(hours=hour))]

    assert (there(7), there(8), there(20), there(25), there(26)) == (
        [],
        ["olivia", "daniel", "sam"],
        ["olivia", "daniel"],
        ["olivia", "daniel"],
        [],
    )


def test_hours_without_a_quorum_are_named_rule_by_rule() -> None:
    found = {gap.risk: gap for gap in gaps(changed(by_day), A_MONDAY)}

    assert found[Risk.DESTRUCTIVE].hours == 168 - 18
    assert found[Risk.IRREVERSIBLE].hours == 168 - 12
    assert Risk.READ not in found
    assert found[Risk.DESTRUCTIVE].sentence.startswith(
        "DESTRUCTIVE plans cannot be signed in 150 of 168 hours (Mon 00:00-08:00, Tue 02:00-Mon 00:00 UTC): "
    )


def test_minutes_without_a_quorum_between_two_shifts_are_found() -> None:
    def half_past(document: Document) -> None:
        document["rota"] = [
            {"persons": ["olivia", "daniel", "sam"], "since": "08:00", "until": "20:10"},
            {"persons": ["olivia", "daniel", "sam"], "since": "20:15", "until": "08:00"},
        ]

    found = {gap.risk: gap for gap in gaps(changed(half_past), A_MONDAY)}
    gap = found[Risk.DESTRUCTIVE]
    assert gap.hours == pytest.approx(7 * 5 / 60)
    assert "cannot be signed in 0.58 of 168 hours (Mon 20:10-20:15, Tue 20:10-20:15, " in gap.sentence


def test_the_week_a_clock_is_put_forward_is_counted_in_true_hours() -> None:
    def in_berlin(document: Document) -> None:
        document["rota"] = [
            {"persons": ["olivia", "daniel", "sam"], "since": "03:00", "until": "02:00", "zone": "Europe/Berlin"}
        ]

    found = {gap.risk: gap for gap in gaps(changed(in_berlin), datetime(2026, 3, 23, 12, tzinfo=UTC))}
    # On Sunday the hour from 02:00 to 03:00 does not exist, so there is no gap in it.
    assert found[Risk.DESTRUCTIVE].hours == 6


def scoped(document: Document, **cover: Any) -> None:
    general = next(rule for rule in document["approval"]["rules"] if rule["risk"] == "DESTRUCTIVE")
    document["approval"]["rules"].append({**general, "persons_besides_requester": 2, "slots": [], **cover})


def test_rules_that_cover_one_plan_together_are_looked_at_together() -> None:
    """Each by itself can be signed by three persons; both together ask the DBA for a second seat."""

    def two(document: Document) -> None:
        scoped(document, actions=["restore.dump"], slots=[{"role": "dba"}, {"role": "security"}])
        scoped(document, targets=["superprismora"], key_required=True)
        document["roster"][2]["keys"] = [a_key()]
        document["rota"] = [
            {"persons": ["olivia", "daniel", "sam"], "since": "00:00", "until": "12:00"},
            {"persons": ["olivia", "daniel"], "since": "12:00", "until": "00:00"},
        ]

    found = {gap.cover: gap for gap in gaps(changed(two), A_MONDAY) if gap.risk is Risk.DESTRUCTIVE}
    assert set(found) == {"restore.dump", "superprismora", "restore.dump and superprismora"}
    both = found["restore.dump and superprismora"]
    assert "1 of security" in both.lacks
    assert "one signature with a key" in both.lacks


def test_rules_that_never_cover_one_plan_are_not_joined() -> None:
    def apart(document: Document) -> None:
        scoped(document, targets=["superprismora"], key_required=True)
        scoped(document, targets=["other"], slots=[{"role": "dba"}, {"role": "security"}])

    covers = {gap.cover for gap in gaps(changed(apart), A_MONDAY)}
    assert covers == {"superprismora"}


def test_what_a_smaller_cover_lacks_already_is_told_once() -> None:
    def nobody(document: Document) -> None:
        scoped(document, actions=["restore.dump"])
        for person in document["roster"]:
            person["slack_ids"] = []

    assert [gap.cover for gap in gaps(changed(nobody), A_MONDAY) if gap.risk is Risk.DESTRUCTIVE] == [
        "",
        "restore.dump",
    ]


def test_without_a_rota_the_roster_is_looked_at_as_a_whole() -> None:
    def no_dba(document: Document) -> None:
        document["roster"][1]["slack_ids"] = []

    assert list(gaps(shipped_plan(), A_MONDAY)) == []
    found = [gap.sentence for gap in gaps(changed(no_dba), A_MONDAY)]
    assert found[0] == "DESTRUCTIVE plans cannot be signed by this roster: 1 of dba is missing"


def test_the_people_of_the_demo_and_of_the_shipped_plan_fill_every_seat(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    demo = demo_plan(
        Addresses(
            workspace="T0000000000",
            channel="C0000000000",
            production_dsn=nothing,
            production_host="127.0.0.1",
            spare_dsn=nothing,
            spare_host="127.0.0.1",
            application_dsn=nothing,
            health_url="http://127.0.0.1:9/",
            kubeconfig=nothing,
            s3_endpoint="http://127.0.0.1:9",
            s3_access_key=nothing,
            s3_secret_key=nothing,
            copies=nothing,
            keys=make_keys(tmp_path),
        )
    )
    assert [gap.sentence for plan in (shipped_plan(), demo) for gap in gaps(plan, A_MONDAY)] == []


def test_one_person_of_two_roles_leaves_a_seat_of_two_rules_empty() -> None:
    def both(document: Document) -> None:
        scoped(document, actions=["restore.dump"], persons_besides_requester=1, slots=[{"role": "security"}])
        document["roster"][1]["roles"] = ["dba", "security"]
        document["roster"][2]["roles"] = ["on_call"]

    found = [gap.sentence for gap in gaps(changed(both), A_MONDAY) if gap.risk is Risk.DESTRUCTIVE]
    assert found == [
        "DESTRUCTIVE plans of restore.dump cannot be signed by this roster: 1 of security is missing",
    ]


def test_narrow_rules_that_meet_are_told_without_a_rota_too() -> None:
    def two(document: Document) -> None:
        scoped(document, actions=["restore.dump"], persons_besides_requester=1, slots=[{"role": "security"}])
        scoped(document, targets=["superprismora"], persons_besides_requester=1, slots=[{"role": "on_call"}])
        document["roster"][1]["roles"] = ["dba", "operator"]
        document["roster"][0]["roles"] = ["security", "on_call", "incident_commander"]
        document["roster"][2]["roles"] = ["incident_commander"]

    told = [doubt.wrong for doubt in doubts(changed(two), today=None) if "cannot be signed" in doubt.wrong]
    assert told == [
        "DESTRUCTIVE plans of restore.dump and superprismora cannot be signed by this roster: 1 of on_call is missing",
    ]


def test_a_narrow_rule_is_looked_at_together_with_the_general_one() -> None:
    def for_the_shop(document: Document) -> None:
        general = next(rule for rule in document["approval"]["rules"] if rule["risk"] == "DESTRUCTIVE")
        narrow = {**general, "slots": [], "targets": ["superprismora"], "key_required": True}
        document["approval"]["rules"].append(narrow)

    (found,) = gaps(changed(for_the_shop), A_MONDAY)
    assert found.sentence == (
        "DESTRUCTIVE plans of superprismora cannot be signed by this roster: "
        "one signature with a key (`drbot sign`) is missing"
    )


@pytest.mark.parametrize(
    ("rota", "key", "wrong"),
    [
        ("  - {persons: [nobody]}", "rota[0].persons[0]", "no person `nobody`"),
        ("  - {persons: []}", "rota[0].persons", "empty"),
        ("  - {persons: [security-team], since: 8}", "rota[0].since", "in quotes"),
        ("  - {persons: [security-team], since: '8:00'}", "rota[0].since", "wrong form"),
    ],
)
def test_a_rota_that_means_nothing_is_told(tmp_path: Path, rota: str, key: str, wrong: str) -> None:
    found = errors(broken(tmp_path, ("\nroster: ", f"\nrota:\n{rota}\nroster: ")))

    assert wrong in " ".join(found[key])


def test_warnings_name_what_this_roster_can_never_sign(tmp_path: Path) -> None:
    told = [problem.wrong for problem in check(broken(tmp_path, ("slack_ids: []  ", "slack_ids: [U0ONCALL]  ")))]

    assert "DESTRUCTIVE cannot be signed yet: the roster lacks 1 more person(s) besides the requester; 1 of dba" in told
    assert any(text.startswith("nobody has a key, so break-glass is open to the incident commander") for text in told)


def test_a_risk_that_only_narrow_rules_cover_is_warned_about(tmp_path: Path) -> None:
    told = [problem.wrong for problem in check(in_rule(tmp_path, "targets: [superprismora]"))]

    assert "only some plans of DESTRUCTIVE are covered, so its others are refused" in told
