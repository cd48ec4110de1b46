"""The shipped plan represents every figure of the written one, and the models hold their promises."""

import re
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import jsonschema_rs
import pytest
from apscheduler.triggers.cron import CronTrigger
from pydantic import ValidationError
from ruamel.yaml import YAML

from actions.errors import UserError
from actions.schedules import cron_fields
from bot.plan_file import (
    DrPlan,
    PlanStatus,
    Risk,
    UnknownNameError,
    load,
    schema,
)
from bot.plan_file.values import Part

SHIPPED = Path(__file__).parents[2] / "dr-plan.yml"


@pytest.fixture(scope="module")
def plan() -> DrPlan:
    return load(SHIPPED)


def minutes(number: int) -> timedelta:
    return timedelta(minutes=number)


def test_section_1_objectives(plan: DrPlan) -> None:
    assert plan.objectives.rpo == minutes(15)
    assert plan.objectives.rto == minutes(60)
    assert "15-minute WAL shipping" in plan.objectives.rpo_by
    assert plan.objectives.integrity == ("Zero data corruption tolerance", "Checksum validation on all restores")


def test_section_2_1_database_backups(plan: DrPlan) -> None:
    backup = plan.backup_of("superprismora")
    assert backup.incremental is not None
    assert backup.wal is not None
    assert (backup.dump.schedule, backup.dump.retention) == ("02:00 UTC", timedelta(days=30))
    assert backup.dump.stores == ("local", "superprismora-backups")
    assert (backup.incremental.every, backup.incremental.retention) == (minutes(15), timedelta(days=7))
    assert (backup.wal.frequency, backup.wal.retention) == ("continuous", timedelta(days=7))
    assert backup.incremental.stores == backup.wal.stores == ("superprismora-backups",)
    assert backup.base is not None
    assert (backup.base.schedule, backup.base.retention) == ("02:30 UTC", timedelta(days=30))


def test_sections_2_2_and_2_3_other_backups(plan: DrPlan) -> None:
    rows = [(row.component, row.method, row.frequency, row.retention) for row in plan.backups.applications]
    assert rows == [
        ("Kubernetes", "GitOps (declarative)", "Every commit", "forever"),
        ("ConfigMaps", "GitOps", "Every commit", "forever"),
        ("Secrets", "Sealed Secrets", "Every commit", "forever"),
        ("Images", "Container Registry", "Every build", timedelta(days=90)),
    ]
    assert [(row.component, row.frequency, row.retention) for row in plan.backups.files] == [
        ("MinIO Data", "Daily", timedelta(days=30)),
        ("Uploads", "Continuous", timedelta(days=90)),
    ]


def test_sections_3_to_5_and_appendices_have_runbooks(plan: DrPlan) -> None:
    assert [runbook.section for runbook in plan.runbooks] == [
        *("3.1", "3.2", "4.1", "4.2", "4.3", "5.1", "5.2", "A", "B", "B", "B")
    ]
    commands = [command for runbook in plan.runbooks for step in runbook.steps for command in step.by_hand]
    for command in (
        "./scripts/backup_database.sh",
        "kubectl scale deployment superprismora-api --replicas=0 -n production",
        "kubectl scale deployment superprismora-api --replicas=3 -n production",
        "kubectl scale deployment superprismora-api --replicas=5 -n production",
        "kubectl apply -f k8s/production/sealed-secrets.yaml",
        "kubectl apply -f k8s/dr/secondary-region/",
        "pg_ctl promote -D /var/lib/postgresql/data",
        "pg_restore --list backup_20260226.dump | head -20",
        (
            "kubectl patch configmap superprismora-config -n production "
            """-p '{"data":{"DATABASE_HOST":"new-primary-host"}}'"""
        ),
    ):
        assert command in commands
    assert [runbook.link for runbook in plan.runbooks if runbook.link] == [
        "../runbooks/database.md",
        "../runbooks/kubernetes.md",
        "./security-incident.md",
    ]


def test_what_the_written_plan_got_wrong_is_not_repeated(plan: DrPlan) -> None:
    commands = " ".join(c for runbook in plan.runbooks for step in runbook.steps for c in step.by_hand)
    assert "DROP DATABASE" not in commands
    assert "--target-time" not in commands


def test_section_6_scenarios(plan: DrPlan) -> None:
    assert [(scenario.name, scenario.rto, len(scenario.steps)) for scenario in plan.scenarios] == [
        ("datacenter_failure", minutes(60), 4),
        ("database_corruption", minutes(30), 5),
        ("security_breach", minutes(120), 5),
        ("accidental_deletion", minutes(15), 4),
    ]
    assert plan.scenario("security_breach").impact == "Potential data compromise"
    assert plan.scenario("database_corruption").steps[1].text == "Identify last known good backup"


def test_section_7_drills(plan: DrPlan) -> None:
    assert [(drill.title, drill.frequency, drill.last, drill.next) for drill in plan.drills] == [
        ("Backup Restore", "Monthly", None, date(2026, 3, 1)),
        ("Full DR Drill", "Quarterly", None, date(2026, 4, 1)),
        ("Failover Test", "Monthly", None, date(2026, 3, 15)),
    ]
    assert [step.text for step in plan.drills[1].steps][-1] == "Document lessons learned"


def test_section_8_contacts(plan: DrPlan) -> None:
    assert [(contact.role, contact.name, contact.phone, contact.email) for contact in plan.contacts] == [
        ("Primary On-Call", "TBD", "TBD", "oncall@superprismora.com"),
        ("Secondary On-Call", "TBD", "TBD", "oncall-backup@superprismora.com"),
        ("Database Admin", "TBD", "TBD", "dba@superprismora.com"),
        ("Security Team", "TBD", "TBD", "security@superprismora.com"),
    ]


def test_head_and_foot_of_the_document(plan: DrPlan) -> None:
    assert (plan.name, plan.owner) == ("Super_Prismora Disaster Recovery Plan", "Operations Team")
    assert plan.document is not None
    assert (plan.document.version, plan.document.status) == ("1.0", PlanStatus.DRAFT)
    assert (plan.document.written, plan.document.next_review) == (date(2026, 2, 26), date(2026, 3, 26))


def test_every_risk_has_a_rule(plan: DrPlan) -> None:
    others = {rule.risk: rule.persons_besides_requester for rule in plan.approval.rules}
    assert others == {
        Risk.READ: 0,
        Risk.REVERSIBLE: 0,
        Risk.DISRUPTIVE: 1,
        Risk.DESTRUCTIVE: 1,
        Risk.IRREVERSIBLE: 2,
    }


def test_a_look_up_that_fails_names_the_nearest(plan: DrPlan) -> None:
    with pytest.raises(UnknownNameError, match="there is no database `superprisma` in the plan; did you mean") as error:
        plan.database("superprisma")
    assert isinstance(error.value, UserError)
    with pytest.raises(UnknownNameError, match="use one of"):
        plan.backup_of("x")
    assert plan.person("U0NOBODY1") is None


def test_a_service_without_a_namespace_runs_in_its_clusters(plan: DrPlan) -> None:
    assert plan.namespace(plan.service("superprismora")) == "production"


@pytest.mark.parametrize(
    ("schedule", "fires"),
    [
        ("02:00 UTC", "2026-03-01T02:00"),
        ("mon 09:30 UTC", "2026-03-02T09:30"),
        ("1st mon 09:00 UTC", "2026-03-02T09:00"),
        ("last fri 23:59 UTC", "2026-03-27T23:59"),
        ("last 00:00 UTC", "2026-03-31T00:00"),
        ("15 09:00 UTC", "2026-03-15T09:00"),
        ("1 of jan,apr,jul,oct 09:00 UTC", "2026-04-01T09:00"),
        ("31 of may 06:05 UTC", "2026-05-31T06:05"),
    ],
)
def test_a_schedule_fires_when_it_says(schedule: str, fires: str) -> None:
    trigger = CronTrigger(**cron_fields(schedule), timezone="UTC")
    start = datetime(2026, 3, 1, tzinfo=UTC)
    assert trigger.get_next_fire_time(None, start) == datetime.fromisoformat(fires).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    "schedule", ["2:00 UTC", "02:00", "24:00 UTC", "32 02:00 UTC", "6th mon 02:00 UTC", "*/15 * * * *"]
)
def test_what_is_no_schedule_is_refused(schedule: str) -> None:
    with pytest.raises(ValueError, match="is not a schedule"):
        cron_fields(schedule)


def test_every_part_is_frozen_closed_and_described(plan: DrPlan) -> None:
    for model in Part.__subclasses__():
        assert model.model_config["frozen"], model
        assert model.model_config["extra"] == "forbid", model
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name} has no description"
    assert hash(plan) == hash(load(SHIPPED))
    with pytest.raises(ValidationError):
        plan.owner = "someone else"  # type: ignore[misc]  # the point of the test


def test_a_plan_built_by_a_program_keeps_the_rules_between_parts(plan: DrPlan) -> None:
    values = {name: getattr(plan, name) for name in DrPlan.model_fields}
    moved = plan.databases[0].model_copy(update={"server": "nowhere"})
    with pytest.raises(ValidationError, match="there is no server `nowhere`"):
        DrPlan(**{**values, "databases": (moved,)})


def test_the_schema_accepts_the_shipped_plan_and_refuses_a_literal_secret() -> None:
    data = YAML(typ="safe", pure=True).load(SHIPPED.read_text(encoding="utf-8"))
    dates = [*((data["document"], key) for key in ("written", "last_updated", "next_review"))]
    dates += [(drill, "next") for drill in data["drills"]]
    for holder, key in dates:
        holder[key] = holder[key].isoformat()  # YAML's dates are JSON's strings
    jsonschema_rs.meta.validate(schema())
    validator = jsonschema_rs.Draft202012Validator(schema())
    assert list(validator.iter_errors(data)) == []
    data["servers"][0]["admin_dsn"] = "postgresql://root:pw@db/postgres"
    data["objectives"]["rpo"] = "15 minutes"
    assert {tuple(error.instance_path) for error in validator.iter_errors(data)} == {
        ("servers", 0, "admin_dsn"),
        ("objectives", "rpo"),
    }


def test_the_reference_describes_every_key_in_the_models_words() -> None:
    reference = (SHIPPED.parent / "docs" / "reference" / "plan-file.md").read_text(encoding="utf-8")
    # Those of an engine that another test has added are not gone before they are collected.
    for model in (each for each in Part.__subclasses__() if each.__module__ in sys.modules):
        for name, field in model.model_fields.items():
            row = rf"^\| `{name}` \| [^|]+ \| {re.escape(field.description or '')} \| "
            assert re.search(row, reference, re.MULTILINE), f"{model.__name__}.{name} is not in plan-file.md"
