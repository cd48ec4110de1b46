"""Every mistake in a plan file is told with its line, its key and what would be right."""

from datetime import date
from pathlib import Path

import pytest
from typer.testing import CliRunner

from actions import registry
from actions.errors import UserError
from bot.cli import app
from bot.plan_file import Problem, Severity, check, check_text, load, report
from bot.plan_file.rules import Broken, new_rules

SHIPPED = Path(__file__).parents[2] / "dr-plan.yml"
TEXT = SHIPPED.read_text(encoding="utf-8")
INCREMENTAL_STORES = "retention: 7d\n        stores: [superprismora-backups]"


def broken(tmp_path: Path, *changes: tuple[str, str]) -> Path:
    """The shipped plan with texts replaced, each at its first place."""
    text = TEXT
    for old, new in changes:
        assert old in text, f"the shipped plan no longer holds {old!r}"
        text = text.replace(old, new, 1)
    path = tmp_path / "dr-plan.yml"
    path.write_text(text, encoding="utf-8")
    return path


def line_of(path: Path, text: str) -> int:
    return path.read_text(encoding="utf-8").split(text)[0].count("\n") + 1


def errors(problems: list[Problem]) -> list[Problem]:
    return [problem for problem in problems if problem.severity is Severity.ERROR]


# (what is replaced, by what, a text on the line expected, key, part of what is wrong, part of what would be right)
MISTAKES = [
    ("rpo: 15m", "rpo: 15", "rpo: 15 ", "objectives.rpo", "`15` is not a duration", "15m"),
    ("rpo: 15m", "rpo: 15 min", "rpo: 15 min", "objectives.rpo", "`15 min` is not a duration", "number and its unit"),
    ("rpo: 15m", "rpo: 0m", "rpo: 0m", "objectives.rpo", "no time at all", "longer than zero"),
    ("rpo: 15m", "rpo: -15m", "rpo: -15m", "objectives.rpo", "`-15m` is not a duration", "number"),
    ("rpo: 15m", "rpo:", "rpo:  ", "objectives.rpo", "is not a duration", "number"),
    ("  rpo: 15m ", "  rop: 15m ", "rop:", "objectives.rop", "no key `rop` here", "did you mean `rpo`?"),
    ("  rpo: 15m ", "  #", "objectives:", "objectives.rpo", "the key `rpo` is missing", "most data"),
    ("\nroster:", "\nrooster:", "rooster:", "rooster", "no key `rooster` here", "did you mean `roster`?"),
    ("version: 1\n", "version: 2\n", "version: 2", "version", "not one of those allowed", "use 1"),
    ("version: 1\n", "", "# The disaster", "version", "the key `version` is missing", "format"),
    ("status: draft", "status: drift", "status: drift", "document.status", "not one of", "'draft'"),
    ("written: 2026-02-26", "written: 26.02.2026", "26.02", "document.written", "not a date", "2026-03-01"),
    ('version: "1.0"', "version: 1.0", "version: 1.0", "document.version", "number", "quotes"),
    ("server: primary", "server: primry", "primry", "databases[0].server", "no server `primry`", "mean `primary`?"),
    (
        "application: superprismora",
        "application: shop",
        ": shop",
        "databases[0].application",
        "no service",
        "use one of",
    ),
    (
        "spare_server: secondary",
        "spare_server: primary",
        "spare_server",
        "databases[0].spare_server",
        "itself",
        "another",
    ),
    (
        "cluster: production",
        "cluster: prod",
        "cluster: prod",
        "services[0].cluster",
        "no cluster `prod`",
        "`production`",
    ),
    (
        "[superprismora]",
        "[superprisma]",
        "[superprisma]",
        "services[0].workloads[0].writes_to[0]",
        "no database",
        "mean",
    ),
    (
        "kind: Deployment ",
        "kind: Deploy ",
        "kind: Deploy ",
        "services[0].workloads[0].kind",
        "not one of",
        "'Deployment'",
    ),
    (
        "[local, superprismora-backups]",
        "[local, backups]",
        "[local, backups]",
        "backups.databases[0].dump.stores[1]",
        "no bucket `backups`",
        "`superprismora-backups`",
    ),
    ("role: dba", "role: dbas", "role: dbas", "approval.rules[3].slots[0].role", "no role `dbas`", "mean `dba`?"),
    ("count: 1", "count: 2", "- role: dba", "approval.rules[3].slots[0]", "roster has 1", "more persons"),
    ("count: 1", "count: one", "count: one", "approval.rules[3].slots[0].count", "not a whole number", "whole number"),
    ("count: 1", "count: 0", "count: 0", "approval.rules[3].slots[0].count", "does not fit", "greater than or equal"),
    (
        "scenarios: [security_breach]",
        "scenarios: [breach]",
        "[breach]",
        "runbooks[10].scenarios[0]",
        "no scenario `breach`",
        "`security_breach`",
    ),
    (
        "person: database-admin",
        "person: db-admin",
        "db-admin",
        "contacts[2].person",
        "no person",
        "mean `database-admin`?",
    ),
    (
        "- id: security-team",
        "- id: database-admin",
        "- id: database-admin\n    name: TBD\n    roles: [security",
        "roster[3].id",
        "named twice",
        "once",
    ),
    (
        "schedule: 02:00 UTC",
        "schedule: 2:00",
        "schedule: 2:00",
        "backups.databases[0].dump.schedule",
        "not a schedule",
        "UTC",
    ),
    (
        "retention: forever",
        "retention: always",
        "always",
        "backups.applications[0].retention",
        "not a duration",
        "unit",
    ),
    (
        "frequency: continuous",
        "frequency: hourly",
        "hourly",
        "backups.databases[0].wal.frequency",
        "not one of",
        "continuous",
    ),
    (
        "versioning: true",
        "versioning: yes",
        "versioning: yes",
        "buckets[0].versioning",
        "not true or false",
        "true or false",
    ),
    (
        "prefix: backups/",
        "prefix: backups",
        "prefix: backups",
        "buckets[0].prefix",
        "wrong form",
        "end the folder in `/`",
    ),
    (
        "    secret_key: k8s:dr/superprismora-dr/backup-secret-key\n",
        "",
        "access_key:",
        "buckets[0].access_key",
        "without",
        "add",
    ),
    (
        "    prover_secret_key: k8s:dr/superprismora-prover/backup-secret-key\n",
        "",
        "prover_access_key:",
        "buckets[0].prover_access_key",
        "without `prover_secret_key`",
        "add",
    ),
    (
        "  prover_identity: file",
        "  prover: apart\n  prover_identity: file",
        "prover: apart",
        "backups.prover",
        "a prover apart needs `proof_signing_key`",
        "add `backups.proof_signing_key`",
    ),
    (
        "  prover_identity: file:/run/drbot/prover/age-identity ",
        (
            "  prover: apart\n  proof_signing_key: env:K\n  proof_signers: [env:P]\n"
            "  prover_identity: file:/run/drbot/keys/dr-age-identity "
        ),
        "  prover_identity:",
        "backups.prover_identity",
        "the same secret, so the prover would not be apart",
        "a secret of their own",
    ),
    (
        "  prover_identity: file",
        "  proof_signing_key: env:K\n  prover_identity: file",
        "proof_signing_key",
        "backups.proof_signing_key",
        "nobody trusts this key",
        "add `proof_signers`",
    ),
    (
        "  prover_identity: file",
        "  proof_signers: [env:DR_MANIFEST_SIGNER]\n  prover_identity: file",
        "proof_signers",
        "backups.proof_signers",
        "among `signers` too",
        "a key of their own",
    ),
    (
        "sql: SELECT COUNT(*) FROM users",
        "sql: SELECT COUNT(*) FROM users\n        expect: 4711",
        "4711",
        "databases[0].invariants[0].expect",
        "as a number or",
        "put it in quotes",
    ),
    (
        "sql: SELECT COUNT(*) FROM users",
        "sql: DELETE FROM users",
        "DELETE",
        "databases[0].invariants[0].sql",
        "not a SELECT",
        "SELECT",
    ),
    (
        "FROM users\n",
        "FROM users; DROP TABLE users\n",
        "DROP",
        "databases[0].invariants[0].sql",
        "more than one",
        "without `;`",
    ),
    (
        "restore_jobs: 4",
        'restore_jobs: "4"',
        "restore_jobs",
        "databases[0].restore_jobs",
        "not a whole number",
        "whole number",
    ),
    (
        "restore_jobs: 4",
        "restore_jobs: true",
        "restore_jobs",
        "databases[0].restore_jobs",
        "not a whole number",
        "whole number",
    ),
    (
        "- env:DR_RECIPIENT_PROVER",
        "- age1short",
        "age1short",
        "backups.recipients[1]",
        "not an age public key",
        "age1...",
    ),
    ("- env:DR_MANIFEST_SIGNER", "- c2hvcnQ=", "c2hvcnQ=", "backups.signers[0]", "not an Ed25519 public key", "base64"),
    (
        "endpoint: env:DR_FILES_ENDPOINT",
        "endpoint: ${FILES}",
        "${FILES}",
        "buckets[1].endpoint",
        "is not expanded",
        "env:NAME",
    ),
    ("endpoint: env:DR_FILES_ENDPOINT", "endpoint: env:A-B", "env:A-B", "buckets[1].endpoint", "malformed", "env:NAME"),
    ('on_call: "#dr-oncall"', "on_call: #dr-oncall", "on_call: #", "channels.on_call", "value is empty", "give text"),
    ("slack_ids: [] ", "slack_ids: U0123 ", "slack_ids: U0123", "roster[0].slack_ids", "not a list", "[one, two]"),
    ("slack_ids: [] ", "slack_ids: ['@ann'] ", "@ann", "roster[0].slack_ids[0]", "wrong form", "Slack member id"),
    ("phone: TBD", "phone: +49301234567", "phone: +49", "roster[0].phone", "as a number", "quotes"),
    (
        "action: restore.dump",
        "action: restore",
        "action: restore\n",
        "scenarios[0].steps[2].action",
        "wrong form",
        "noun.verb",
    ),
    ("- Zero data corruption tolerance\n", "- ''\n", "- ''", "objectives.integrity[0]", "empty", "write"),
    ("owner: superprismora\n", f"owner: {'ü' * 32}\n", "üü", "databases[0].owner", "not a PostgreSQL name", "63 bytes"),
]


@pytest.mark.parametrize(("old", "new", "on_line", "key", "wrong", "right"), MISTAKES)
def test_a_mistake_is_told_where_it_stands(
    tmp_path: Path, old: str, new: str, on_line: str, key: str, wrong: str, right: str
) -> None:
    path = broken(tmp_path, (old, new))
    problems = [problem for problem in errors(check(path)) if problem.key == key]
    assert len(problems) == 1, report(check(path))
    problem = problems[0]
    assert wrong in problem.wrong
    assert right in problem.right
    assert problem.line == line_of(path, on_line)
    assert str(problem).startswith(f"{path}:{problem.line}:{problem.column}: error: {key}: ")


@pytest.mark.parametrize(
    ("risk", "old", "new", "wrong"),
    [
        ("DISRUPTIVE", "besides_requester: 1", "besides_requester: 0", "DISRUPTIVE needs at least 2 persons"),
        ("DESTRUCTIVE", "besides_requester: 1", "besides_requester: 0", "DESTRUCTIVE needs at least 2 persons"),
        ("IRREVERSIBLE", "besides_requester: 2", "besides_requester: 1", "IRREVERSIBLE needs at least 3 persons"),
        ("DESTRUCTIVE", "typed_target: true", "typed_target: false", "needs the name of the target typed"),
        ("IRREVERSIBLE", "besides_requester: 2", "besides_requester: 4", "5 persons must sign, but the roster has 4"),
        (
            "IRREVERSIBLE",
            "- role: security",
            "- {role: on_call, count: 2}\n        - role: security",
            "ask for 4 persons",
        ),
    ],
)
def test_policy_never_goes_under_the_two_person_rule(tmp_path: Path, risk: str, old: str, new: str, wrong: str) -> None:
    head, rule = TEXT.split(f"- risk: {risk} ", 1)
    path = tmp_path / "dr-plan.yml"
    path.write_text(head + f"- risk: {risk} " + rule.replace(old, new, 1), encoding="utf-8")
    problems = errors(check(path))
    assert [wrong in problem.wrong for problem in problems] == [True], report(problems)
    assert problems[0].key.startswith("approval.rules[")


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("admin_dsn: k8s:dr/superprismora-dr/primary-admin-dsn", "admin_dsn: {}", "servers[0].admin_dsn"),
        ("identity: file:/run/drbot/keys/dr-age-identity", "identity: {}", "backups.identity"),
        ("- env:DR_RECIPIENT_PROVER", "- {}", "backups.recipients[1]"),
        ("- env:DR_MANIFEST_SIGNER", "- {}", "backups.signers[0]"),
        ("health_url: env:DR_HEALTH_URL", "health_url: env:{}", "services[0].health_url"),
        ("role: spare", "role: {}", "servers[1].role"),
        ("version: 1\n", "version: 1\n: {} {{\n", ""),
    ],
)
def test_a_secret_typed_into_the_plan_is_refused_and_never_repeated(
    tmp_path: Path, old: str, new: str, key: str
) -> None:
    canary = "AGE-SECRET-KEY-1QQcanary+hunter2"
    path = broken(tmp_path, (old, new.format(canary)))
    problems = errors(check(path))
    assert key in [problem.key for problem in problems]
    assert "canary" not in report(problems)
    with pytest.raises(UserError) as refused:
        load(path)
    assert "canary" not in str(refused.value)
    assert "canary" not in repr(refused.value.__cause__) + repr(refused.value.__context__)


def test_a_literal_secret_is_told_to_become_a_reference(tmp_path: Path) -> None:
    path = broken(tmp_path, ("k8s:dr/superprismora-dr/primary-admin-dsn", "postgresql://root:pw@db/postgres"))
    (problem,) = errors(check(path))
    assert problem.wrong == "a secret is never written into the plan"
    assert problem.right == "give a reference: env:NAME, file:/path, k8s:namespace/secret/key or vault:path#key"


@pytest.mark.parametrize(
    ("text", "line", "wrong"),
    [
        ("", 1, "the file is empty"),
        ("# only a comment\n", 1, "the file is empty"),
        ("version: 1\n\tname: x\n", 2, "a tab is used for indentation"),
        ("version: 1\nname: 'open\n", 3, "not readable as YAML"),
        ("version: 1\nname: a: b\n", 2, "not readable as YAML"),
        ("version: 1\n---\nversion: 1\n", 2, "the file holds several documents"),
        ("version: 1\nname: *missing\n", 2, "an alias (`*name`) is not allowed"),
        ("version: 1\nname: a\x07b\n", 2, "a character YAML does not allow"),
        ("- version: 1\n", 1, "this is not a block of `key: value` lines"),
        ("just text\n", 1, "this is not a block of `key: value` lines"),
        ("[" * 1500, 1, "the file is nested too deeply"),
    ],
)
def test_what_is_not_a_plan_at_all_is_told(tmp_path: Path, text: str, line: int, wrong: str) -> None:
    path = tmp_path / "dr-plan.yml"
    path.write_text(text, encoding="utf-8")
    problem = check(path)[0]
    assert problem.wrong.startswith(wrong)
    assert problem.line == line


BOTH = "stores: [superprismora-backups, superprismora-files-copy]"
BASE = "        minimum: 2\n        stores: [superprismora-backups]"
INCREMENTAL = "        retention: 7d\n        stores: [superprismora-backups]\n      wal:"


def in_two(stores: str = BOTH, incremental: str = BOTH) -> tuple[tuple[str, str], ...]:
    return (
        (BASE, f"        minimum: 2\n        {stores}"),
        (INCREMENTAL, f"        retention: 7d\n        {incremental}\n      wal:"),
        ("prefix: copies/", "prefix: backups/"),
    )


def test_base_backups_may_be_in_two_buckets_of_different_regions(tmp_path: Path) -> None:
    assert errors(check(broken(tmp_path, *in_two()))) == []


@pytest.mark.parametrize(
    ("changes", "key", "wrong"),
    [
        (in_two(incremental="stores: [superprismora-backups]"), "incremental.stores", "not the same buckets"),
        (
            in_two(incremental="stores: [superprismora-files-copy, superprismora-backups]"),
            "incremental.stores",
            "in the same order",
        ),
        (
            in_two(*["stores: [superprismora-backups, superprismora-backups]"] * 2),
            "base.stores",
            "`superprismora-backups` is named twice",
        ),
        (
            (
                *in_two(*["stores: [superprismora-backups, superprismora-wal-open]"] * 2),
                ("short-lived: no Object Lock, no versions\n", "short-lived\n    prefix: backups/\n"),
            ),
            "base.stores",
            "in one region of one store",
        ),
        (in_two()[:2], "base.stores", "have different prefixes"),
        (
            in_two(*["stores: [superprismora-backups, superprismora-files-copy, superprismora-files]"] * 2),
            "base.stores",
            "at most 2",
        ),
        (in_two(*["stores: [superprismora-backups, nowhere]"] * 2), "base.stores[1]", "no bucket `nowhere`"),
        (
            (*in_two(), ("engine: native  ", "engine: pgbackrest  ")),
            "base.stores",
            "pgBackRest keeps its copies itself",
        ),
    ],
)
def test_mistakes_with_two_buckets_are_told(
    tmp_path: Path, changes: tuple[tuple[str, str], ...], key: str, wrong: str
) -> None:
    problems = [problem for problem in errors(check(broken(tmp_path, *changes))) if problem.key.endswith(key)]
    assert [wrong in f"{problem.wrong}; {problem.right}" for problem in problems] == [True], problems


def test_a_dump_is_never_kept_on_one_machine_alone(tmp_path: Path) -> None:
    (problem,) = errors(check(broken(tmp_path, ("stores: [local, superprismora-backups]", "stores: [local]"))))
    assert problem.key == "backups.databases[0].dump.stores"
    assert problem.right == "add the name of a bucket"


@pytest.mark.parametrize(
    ("old", "new", "key", "wrong"),
    [
        ("  - name: secondary ", "  - name: scratch-1 ", "servers[1].name", "looks like a scratch instance"),
        ("    lifetime: 12h\n", "    ports: 55400-55401\n", "backups.scratch", "2 ports for 3 instances"),
        ("    lifetime: 12h\n", "    ports: 55499-55400\n", "backups.scratch.ports", "is no range of ports"),
        ("    lifetime: 12h\n", "    ports: 800-900\n", "backups.scratch.ports", "has the wrong form"),
        ("    lifetime: 12h\n", "    ports: 55400-70000\n", "backups.scratch.ports", "is no range of ports"),
        ("    role: spare\n", "    role: spare\n    standby_of: primary\n", "servers[1].standby_of", "is no standby"),
        ("    role: spare\n", "    role: standby\n    standby_of: secondary\n", "servers[1].standby_of", "from itself"),
        ("    role: spare\n", "    role: standby\n    standby_of: third\n", "servers[1].standby_of", "third"),
        (
            "  - name: secondary ",
            "  - {name: third, role: standby, standby_of: secondary, admin_dsn: env:THIRD}\n  - name: secondary ",
            "servers[1].standby_of",
            "`secondary` has no WAL that `drbot wal` archives",
        ),
        (
            "    host: env:DR_PRIMARY_HOST",
            "    workload: {cluster: staging, kind: StatefulSet, name: postgres}\n    host: env:DR_PRIMARY_HOST",
            "servers[0].workload.cluster",
            "there is no cluster `staging`",
        ),
        (
            "    host: env:DR_PRIMARY_HOST",
            "    workload: {cluster: production, kind: CronJob, name: postgres}\n    host: env:DR_PRIMARY_HOST",
            "servers[0].workload.kind",
            "not one of those allowed",
        ),
        ("open_store: superprismora-wal-open", "open_store: superprismora-backups", "wal.open_store", "Object Lock"),
        ("open_store: superprismora-wal-open", "open_store: elsewhere", "wal.open_store", "there is no bucket"),
        (
            INCREMENTAL_STORES,
            INCREMENTAL_STORES.replace("backups", "files"),
            "stores",
            "useless",
        ),
        (
            INCREMENTAL_STORES,
            INCREMENTAL_STORES.replace("superprismora-backups", "local"),
            "stores[0]",
            "there is no bucket",
        ),
    ],
)
def test_physical_backups_rest_on_a_base_and_on_buckets(
    tmp_path: Path, old: str, new: str, key: str, wrong: str
) -> None:
    found = errors(check(broken(tmp_path, (old, new))))
    assert any(problem.key.endswith(key) and wrong in problem.wrong for problem in found), report(found)


@pytest.mark.parametrize(("left", "key"), [("      incremental:", "incremental"), ("      wal:", "wal")])
def test_incrementals_and_wal_need_a_base(tmp_path: Path, left: str, key: str) -> None:
    begin = TEXT.index("      base: ")
    (problem,) = errors(check(broken(tmp_path, (TEXT[begin : TEXT.index(left, begin)], ""))))
    assert problem.key == f"backups.databases[0].{key}"
    assert "rests on a base backup, and there is none (a dump cannot be rolled forward)" in problem.wrong


def test_one_database_carries_the_wal_of_a_server(tmp_path: Path) -> None:
    second = "  - name: second\n    server: primary\n    owner: second\n\nclusters:"
    backups = TEXT[TEXT.index("    - database: superprismora\n") : TEXT.index("  scratch:")]
    path = broken(
        tmp_path,
        ("\nclusters:", second),
        ("  scratch: ", backups.replace("database: superprismora", "database: second") + "  scratch: "),
    )
    (problem,) = errors(check(path))
    assert problem.key == "backups.databases[1].base"
    assert "has the base backup and the WAL of server `primary`" in problem.wrong


PGBACKREST = ("engine: native ", "engine: pgbackrest\n        stanza: main\n        # ")


def test_a_pgbackrest_of_the_plan_gets_its_secrets_by_reference(tmp_path: Path) -> None:
    secrets = "stanza_secrets:\n          - {option: repo1-cipher-pass, value: env:CIPHER}\n        # "
    without = [(line, "") for line in TEXT.splitlines(keepends=True) if "open_store: " in line or "slot: " in line]
    assert not errors(check(broken(tmp_path, (PGBACKREST[0], f"engine: pgbackrest\n        {secrets}"), *without)))
    plan = load(tmp_path / "dr-plan.yml")
    assert plan.backups.databases[0].base is not None
    assert plan.backups.databases[0].base.engine == "pgbackrest"
    plain = secrets.replace("env:CIPHER", "correct-horse")
    (problem,) = errors(check(broken(tmp_path, (PGBACKREST[0], f"engine: pgbackrest\n        {plain}"), *without)))
    assert problem.key == "backups.databases[0].base.stanza_secrets[0].value"
    assert "correct-horse" not in report([problem])


def test_a_rule_that_the_plan_alone_finds_broken_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Broken(("owner",), "nobody owns it", "name an owner")]
    monkeypatch.setattr("bot.plan_file.document.broken_rules", lambda _: found)
    with pytest.raises(UserError, match="nobody owns it, name an owner"):
        load(broken(tmp_path))


def test_keys_of_one_engine_are_not_given_to_the_other(tmp_path: Path) -> None:
    (problem,) = errors(check(broken(tmp_path, ("engine: native ", "stanza: main\n        # "))))
    assert problem.key == "backups.databases[0].base.stanza"
    assert "is of pgBackRest" in problem.wrong
    found = errors(check(broken(tmp_path, PGBACKREST)))
    assert [problem.key.rpartition(".")[2] for problem in found] == ["open_store", "slot"]
    assert "archive_timeout" in found[0].right


def test_keys_given_twice_are_all_told(tmp_path: Path) -> None:
    path = broken(
        tmp_path,
        ("owner: Operations Team\n", "owner: Operations Team\nowner: Others\n"),
        ("rto: 30m\n", "rto: 30m\n    rto: 40m\n"),
    )
    problems = errors(check(path))
    assert [problem.key for problem in problems] == ["owner", "scenarios[1].rto"]
    assert problems[0].line == line_of(path, "owner: Others")
    assert problems[0].right == f"keep one; the first is in line {problems[0].line - 1}"


def test_anchors_and_tags_are_refused(tmp_path: Path) -> None:
    path = broken(
        tmp_path,
        ("rpo: 15m", "rpo: &quarter 15m"),
        ("every: 15m", "every: *quarter"),
        ("owner: Operations Team", "owner: !team Operations"),
    )
    assert [(problem.key, problem.wrong) for problem in errors(check(path))] == [
        ("owner", "the tag `!team` is not allowed"),
        ("backups.databases[0].incremental.every", "an alias (`*name`) is not allowed"),
    ]


def test_several_mistakes_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = broken(
        tmp_path,
        ("server: primary", "server: primry"),
        ("rpo: 15m", "rpo: soon"),
        ("schedule: 02:00 UTC", "schedule: nightly"),
        ("owner: Operations Team\n", "owner: Operations Team\nowner: Others\n"),
    )
    problems = errors(check(path))
    assert [problem.key for problem in problems] == [
        "owner",
        "objectives.rpo",
        "databases[0].server",
        "backups.databases[0].dump.schedule",
    ]
    with pytest.raises(UserError) as refused:
        load(path)
    assert str(refused.value) == report(problems)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (problem,) = check(tmp_path / "nowhere.yml")
    assert problem.wrong == "cannot be read (No such file or directory)"
    (tmp_path / "latin.yml").write_bytes(b"version: 1\nname: caf\xe9\n")
    (problem,) = check(tmp_path / "latin.yml")
    assert (problem.line, problem.wrong) == (2, "the line is not UTF-8")
    (tmp_path / "huge.yml").write_bytes(b"#" * 1_000_001)
    (problem,) = check(tmp_path / "huge.yml")
    assert problem.wrong == "the file has 1000001 bytes"


def test_one_slack_account_is_one_person(tmp_path: Path) -> None:
    path = broken(
        tmp_path, ("slack_ids: [] ", "slack_ids: [U0ANN0001] "), ("slack_ids: []\n", "slack_ids: [U0ANN0001]\n")
    )
    (problem,) = errors(check(path))
    assert (problem.key, problem.wrong) == ("roster[1].slack_ids[0]", "the Slack account `U0ANN0001` is named twice")


@pytest.mark.parametrize(
    "name",
    [
        "drbot",
        "DrBot",
        "Dr. Bot",
        "\uff24\uff52\uff42\uff4f\uff54",
        "The schedule of the plan",
        "dr\u200bbot",
        "Dr\u00adB\u043et",  # a soft hyphen, and an o of the Cyrillic alphabet
        "dr\u0412\u03bf\u03c4",
        "drb\u0336ot",
        "drb0t",
        "SCHEDU1E",
        "ScheduIe",
    ],
)
def test_nobody_is_called_as_the_bot_calls_itself(tmp_path: Path, name: str) -> None:
    path = broken(tmp_path, ("name: TBD", f"name: {name}"))
    (problem,) = errors(check(path))
    assert (problem.key, problem.right) == ("roster[0].name", "use the person's own name")


def test_unknown_actions_are_told_when_the_registry_is_given(tmp_path: Path) -> None:
    path = broken(tmp_path, ("action: restore.dump", "action: restore.dmup"))
    assert errors(check(path)) == []
    (problem,) = errors(check(path, actions=registry.names()))
    assert problem.key == "scenarios[0].steps[2].action"
    assert problem.right == "did you mean `restore.dump`?"


@pytest.mark.parametrize("action", ["restore.promote", "restore.dump", "status.databases", "backup.base"])
def test_a_drill_that_the_bot_cannot_run_as_one_is_refused(tmp_path: Path, action: str) -> None:
    path = broken(tmp_path, ("    action: backup.prove        # the", f"    action: {action}        # the"))
    (problem,) = errors(check(path, actions=registry.names()))
    assert problem.key == "drills[0].action"
    assert problem.line == line_of(path, f"action: {action}        # the")
    assert problem.wrong.startswith(f"the bot does not run `{action}` as a drill")
    assert problem.right == (
        "name one of `backup.check_base`, `backup.prove`, `backup.verify`, "
        "or leave `action` out and let people do the steps"
    )


def test_what_the_bot_can_drill_is_taken(tmp_path: Path) -> None:
    for action, of in registry.names().items():
        if of is not None:
            path = broken(tmp_path, ("    action: backup.prove        # the", f"    action: {action}        # the"))
            assert errors(check(path, actions=registry.names())) == []
            registry.action(action).params.model_validate({of.value: "main"})


def test_the_command_knows_the_actions(tmp_path: Path) -> None:
    path = broken(tmp_path, ("    action: backup.prove        # the", "    action: restore.promote        # the"))
    said = CliRunner().invoke(app, ["plan", "check", str(path)])
    assert said.exit_code == 1
    assert "the bot does not run `restore.promote` as a drill" in said.output


def test_the_shipped_plan_has_no_errors_and_warns_about_what_is_open() -> None:
    problems = check(SHIPPED, actions=registry.names())
    assert errors(problems) == []
    warned = {problem.key for problem in problems}
    assert {"contacts[0].name", "contacts[0].phone", "roster[0]", "approval.rules[2]"} <= warned
    assert "contacts[0].email" not in warned


def test_an_overdue_review_is_warned_about() -> None:
    overdue = [p for p in check(SHIPPED, today=date(2026, 4, 1)) if p.key == "document.next_review"]
    assert [problem.wrong for problem in overdue] == ["the review of 2026-03-26 is overdue"]
    assert not [p for p in check(SHIPPED, today=date(2026, 3, 26)) if p.key == "document.next_review"]


def test_a_record_without_witnesses_is_warned_about(tmp_path: Path) -> None:
    record = TEXT[TEXT.index("record:\n") : TEXT.index("# -- Who must sign what")]
    told = report(check(broken(tmp_path, (record, ""))))
    assert "nobody outside the bot's own database vouches" in told
    assert "DESTRUCTIVE and IRREVERSIBLE plans are refused" in told
    switch = ("  break_glass: ", "  unwitnessed: true\n  break_glass: ")
    assert "`approval.unwitnessed` lets destructive plans run" in report(check(broken(tmp_path, (record, ""), switch)))
    assert "vouches" not in report(check(SHIPPED))
    assert "`drbot record adopt` takes two" in report(check(SHIPPED))  # nobody has a key in the shipped plan


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        ("    object_lock: compliance", "    object_lock: governance", "could be deleted"),
        ("      bucket: superprismora-witness", "      bucket: superprismora-witnes", "there is no bucket"),
        ("      bucket: superprismora-witness\n", "", "a witness is one place"),
        ("    - name: local\n      file", "    - name: vault\n      file", "witness `vault` is named twice"),
    ],
)
def test_a_witness_that_would_keep_nothing_is_refused(tmp_path: Path, old: str, new: str, wrong: str) -> None:
    path = broken(tmp_path, (old, new))
    assert wrong in report(errors(check(path)))


@pytest.mark.parametrize(
    ("new", "wrong"),
    [
        ("    - component: Uploads\n      name: minio-data", "files `minio-data` are named twice"),
        ("    - component: Minio Data", "files `minio-data` are named twice"),
        ("    - component: Загрузки", "nobody can call these files by a name"),
        ("    - component: Загрузки\n      name: uploads", ""),
    ],
)
def test_files_that_are_kept_by_their_versions_are_called_by_a_name_of_their_own(
    tmp_path: Path, new: str, wrong: str
) -> None:
    found = errors(check(broken(tmp_path, ("    - component: Uploads", new))))
    assert [problem.wrong for problem in found] == ([wrong] if wrong else [])


def test_a_name_of_files_that_nothing_reads_is_refused(tmp_path: Path) -> None:
    path = broken(tmp_path, ("    - component: MinIO Data", "    - component: MinIO Data\n      name: data"))
    assert [problem.wrong for problem in errors(check(path))] == ["nothing reads this name"]


def test_a_time_that_nothing_is_locked_for_is_refused(tmp_path: Path) -> None:
    lock = "    object_lock: governance     # off | governance | compliance"
    assert errors(check(broken(tmp_path, (lock, f"{lock}\n    object_lock_for: 14d")))) == []
    [problem] = errors(check(broken(tmp_path, (lock, "    object_lock_for: 14d"))))
    assert (problem.key, "add `object_lock: governance`" in str(problem)) == ("buckets[0].object_lock_for", True)


def test_evidence_that_could_be_deleted_is_warned_about(tmp_path: Path) -> None:
    kept = "# evidence:                     # files that people add as evidence"
    told = report(check(broken(tmp_path, (kept, "evidence: {bucket: superprismora-files}\n#"))))
    assert "`superprismora-files` is not under Object Lock, so evidence in it could be deleted" in told
    locked = report(check(broken(tmp_path, (kept, "evidence: {bucket: superprismora-backups}\n#"))))
    assert "so evidence in it could" not in locked
    missing = errors(check(broken(tmp_path, (kept, "evidence: {bucket: superprismora-evidence}\n#"))))
    assert "there is no bucket `superprismora-evidence`" in report(missing)


def test_promises_the_copies_cannot_keep_are_warned_about(tmp_path: Path) -> None:
    wal = TEXT[TEXT.index("      wal:\n") : TEXT.index("  applications:")]
    path = broken(tmp_path, (wal, ""))
    assert "can lose up to a day" in report(check(path))


def test_what_a_missing_key_means_is_told_with_names_as_they_are_written() -> None:
    said = {problem.key: str(problem) for problem in check_text("version: 1\n", name="dr-plan.yml")}
    assert said["objectives"].endswith("add it: RPO and RTO")
    assert said["servers"].endswith("add it: PostgreSQL servers")
    assert said["owner"].endswith("add it: who answers for it")


def test_a_prover_apart_has_a_key_of_its_own_for_the_bucket_of_dumps() -> None:
    """By itself, since a version in force may be from before dumps were tested."""
    document = {
        "buckets": [
            {"name": "bases", "access_key": "env:A", "prover_access_key": "env:P"},
            {"name": "dumps", "access_key": "env:A"},
        ],
        "backups": {
            "prover": "apart",
            "databases": [{"database": "shop", "base": {"stores": ["bases"]}, "dump": {"stores": ["local", "dumps"]}}],
        },
    }
    [broken] = new_rules(document)
    assert (broken.path, broken.wrong) == (
        ("buckets", 1),
        "a prover apart has no key for `dumps`, which restore tests read",
    )
    document["buckets"][1]["prover_access_key"] = "env:A"  # type: ignore[index]
    [broken] = new_rules(document)
    assert broken.wrong == "this is the key of the workers, so the prover would not be apart"
    document["buckets"][1]["prover_access_key"] = "env:P"  # type: ignore[index]
    assert new_rules(document) == []
