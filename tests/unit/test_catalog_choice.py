"""Which backup is recommended, what it loses, and what signers of a restore are told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from actions.backup.manifest import Provenance
from actions.contract import Finding, Verdict
from actions.errors import UserError
from actions.ports import DatabaseFacts, GitOps, MeasuredLoad, ServerFacts, WorkloadFacts
from actions.site import BackupPolicy, Database, Service, WorkloadKind, WorkloadRef
from actions.steps import choice
from actions.steps.phrases import moment
from actions.steps.restore_findings import restore_findings
from actions.steps.scene import DISK_MARGIN, Application, Scene, Target, host_value
from tests.fakes.manifests import TAKEN, a_role, an_entry

NOW = TAKEN + timedelta(hours=8, minutes=12)
SHOP = Database(name="shop", server="primary", owner="shop", service="shop")
API = WorkloadRef("main", "shop", WorkloadKind.DEPLOYMENT, "api")

OLD = an_entry(id="shop-old", snapshot_at=TAKEN - timedelta(days=1))
NEW = an_entry(id="shop-new")
BAD = an_entry(id="shop-bad", snapshot_at=TAKEN + timedelta(hours=1), problem="the signature is not trusted.")


# ---------------------------------------------------------------- the choice


def test_the_newest_usable_backup_is_recommended() -> None:
    assert choice.recommended("shop", [OLD, BAD, NEW], before=None) is NEW


def test_from_before_the_damage_where_that_is_known() -> None:
    assert choice.recommended("shop", [OLD, NEW], before=TAKEN) is OLD


def test_without_a_usable_backup_the_next_thing_to_do_is_named() -> None:
    with pytest.raises(UserError, match=r"1 catalogued, 1 with a problem.*backup\.adopt"):
        choice.recommended("shop", [BAD], before=None)


def test_a_backup_can_be_asked_for_by_name_even_a_bad_one() -> None:
    # The plan then carries a STOP finding, which says more than a refusal.
    assert choice.chosen("shop", [NEW, BAD], backup="shop-bad", before=None) is BAD


def test_an_unknown_backup_names_those_there_are() -> None:
    with pytest.raises(UserError, match=r"no backup `shop-x`.*`shop-new`, `shop-old`"):
        choice.chosen("shop", [NEW, OLD, BAD], backup="shop-x", before=None)


def test_the_loss_is_one_sentence() -> None:
    sentence = choice.loss_sentence(SHOP, NEW, NOW)

    assert sentence == "Restores the state of 2026-11-23 02:00 UTC, loses 8 h 12 min (RPO 15 min: beyond)."


def test_a_loss_of_exactly_the_rpo_is_within() -> None:
    assert "within" in choice.loss_sentence(SHOP, NEW, TAKEN + SHOP.rpo)
    assert "beyond" in choice.loss_sentence(SHOP, NEW, TAKEN + SHOP.rpo + timedelta(seconds=1))


def test_a_clock_that_is_behind_loses_nothing() -> None:
    assert choice.loss(NEW, TAKEN - timedelta(hours=1)) == timedelta(0)


def test_an_alternative_names_its_id_and_its_health() -> None:
    checked = an_entry(id="shop-v", verified_at=TAKEN)

    assert choice.alternative(SHOP, checked, NOW).startswith("`shop-v`: restores the state of 2026-11-23 02:00 UTC")
    assert f"verified {moment(TAKEN)}" in choice.alternative(SHOP, checked, NOW)


def test_a_dump_is_estimated_from_the_newest_one_measured() -> None:
    assert choice.dump_estimate([NEW, OLD], 6_000_000_000) == timedelta(seconds=16)
    assert choice.dump_estimate([an_entry(provenance=Provenance.ADOPTED)], 1) is None
    assert choice.dump_estimate([], 1) is None


def test_a_restore_is_estimated_from_the_last_one_measured() -> None:
    entry = an_entry(database_bytes=3_400_000_000)
    at = datetime(2026, 11, 2, 23, tzinfo=UTC)
    last = MeasuredLoad(database_bytes=1_700_000_000, took=timedelta(seconds=50), at=at)

    assert choice.restore_estimate(entry, last) == timedelta(seconds=100) + choice.SWITCH
    assert choice.estimate_words(last) == "at the 34 MB/s of the restore of 2026-11-02"
    assert choice.restore_estimate(entry, None) == timedelta(seconds=34) + choice.SWITCH
    assert "no restore of this database was measured yet" in choice.estimate_words(None)


def test_a_load_of_nothing_estimates_without_dividing_by_it() -> None:
    last = MeasuredLoad(database_bytes=1, took=timedelta(hours=1), at=TAKEN)

    assert choice.restore_estimate(an_entry(database_bytes=60), last) == timedelta(seconds=60) + choice.SWITCH


# ---------------------------------------------------------------- what signers are told


def a_server(name: str = "primary", **changes: Any) -> ServerFacts:
    facts = ServerFacts(
        name=name,
        version=180006,
        system_id=NEW.manifest.system_id if name == "primary" else f"id-{name}",
        in_recovery=False,
        free_bytes=1 << 40,
        address="db:5432",
    )
    return facts.model_copy(update=changes)


def a_database(name: str = "shop", **changes: Any) -> DatabaseFacts:
    facts = DatabaseFacts(name=name, oid=16384, owner="shop", bytes=1, allows_connections=True, sessions=2)
    return facts.model_copy(update=changes)


def a_scene(**changes: Any) -> Scene:
    service = Service(name="shop", workloads=(API,), health_url="http://shop/health", config_map="shop-config")
    workload = WorkloadFacts(ref=API, uid="u", replicas=3, ready=3)
    scene = Scene(
        key="shop",
        database=SHOP,
        policy=BackupPolicy(
            database="shop",
            bucket="backups",
            recipients=("age1example",),
            identity="env:ID",
            signing_key="env:KEY",
            trusted_signers=(),
        ),
        endpoint=None,
        entry=NEW,
        home=Target(server=a_server(), databases=(a_database(),)),
        home_error="",
        spare=None,
        application=Application(service=service, workloads=(workload,), missing=()),
        suspect=False,
        elsewhere="",
        config_value="db-old",
        now=NOW,
    )
    return scene.model_copy(update=changes)


def found(scene: Scene, *names: str) -> dict[str, Finding]:
    return {finding.check: finding for finding in restore_findings(scene, names)}


def stops(scene: Scene, *names: str) -> list[str]:
    return [finding.check for finding in restore_findings(scene, names) if finding.verdict is Verdict.STOP]


def test_a_good_scene_has_no_stop() -> None:
    assert stops(a_scene(), "shop_restore_x") == []
    assert found(a_scene())["data loss"].verdict is Verdict.WARN  # 8 hours are beyond the RPO
    assert "origin" not in found(a_scene())


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"entry": BAD}, "backup"),
        ({"entry": an_entry(globals=a_role("shop", superuser=True))}, "owner"),
        ({"home": Target(server=a_server(version=170010), databases=())}, "version"),
        ({"home": Target(server=a_server(in_recovery=True), databases=())}, "server"),
        ({"home": Target(server=a_server(free_bytes=DISK_MARGIN), databases=())}, "disk"),
        ({"suspect": True, "elsewhere": "It is suspect."}, "server"),
    ],
)
def test_what_cannot_work_stops_the_plan_and_says_what_to_do(changes: dict[str, Any], check: str) -> None:
    scene = a_scene(**changes)

    assert stops(scene) == [check]
    assert found(scene)[check].hint


def test_a_name_that_is_taken_stops() -> None:
    home = Target(server=a_server(), databases=(a_database(), a_database("shop_restore_x")))

    assert stops(a_scene(home=home), "shop_restore_x") == ["names"]


def test_what_earlier_plans_left_is_shown_with_its_size() -> None:
    left = a_database("shop_quarantine_old", bytes=3_000_000_000)

    finding = found(a_scene(home=Target(server=a_server(), databases=(a_database(), left))))["left over"]

    assert finding.verdict is Verdict.WARN
    assert "`shop_quarantine_old`" in finding.detail
    assert "2861 MB" in finding.detail


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"home": Target(server=a_server(free_bytes=None), databases=(a_database(),))}, "disk"),
        ({"home": Target(server=a_server(system_id="another"), databases=(a_database(),))}, "origin"),
        ({"home": Target(server=a_server(), databases=())}, "database"),
        ({"home": Target(server=a_server(), databases=(a_database(owner="other"),))}, "owner"),
        ({"application": None}, "application"),
        ({"entry": an_entry(provenance=Provenance.ADOPTED)}, "backup"),
    ],
)
def test_what_a_signer_should_know_warns(changes: dict[str, Any], check: str) -> None:
    scene = a_scene(**changes)

    assert stops(scene) == []
    assert found(scene)[check].verdict is Verdict.WARN


def on_spare(**changes: Any) -> Scene:
    spare = Target(server=a_server("spare", address="spare-host:5432"), databases=())
    return a_scene(spare=spare, suspect=True, elsewhere="Server `primary` is suspect.", **changes)


def test_a_spare_server_is_named_and_its_login_warned_of() -> None:
    scene = on_spare()

    assert stops(scene) == []
    assert scene.target.server.name == "spare"
    assert "login" in found(scene)


def test_a_spare_server_that_nothing_is_checked_on_is_said_to_end_unchecked() -> None:
    checked = on_spare()
    application = checked.application
    assert application is not None
    service = application.service.model_copy(update={"health_url": None, "database_dsn": "env:APPLICATION_DSN"})
    connected = on_spare(application=application.model_copy(update={"service": service}))
    service = service.model_copy(update={"database_dsn": None})
    unchecked = on_spare(application=application.model_copy(update={"service": service}))

    assert "check" not in found(checked)
    assert "check" not in found(connected)
    assert found(unchecked)["check"].verdict is Verdict.WARN
    assert stops(unchecked) == []


def test_without_the_key_there_is_nothing_to_repoint() -> None:
    assert stops(on_spare(config_value=None)) == ["repoint"]


def test_another_port_is_warned_of() -> None:
    spare = Target(server=a_server("spare", address="spare-host:5433"), databases=())

    assert "port" not in found(on_spare())
    assert found(on_spare().model_copy(update={"spare": spare}))["port"].verdict is Verdict.WARN


def test_gitops_stays_suspended_after_repointing() -> None:
    gitops = GitOps(tool="argocd", kind="Application", namespace="argocd", name="shop", suspended=False)
    workload = WorkloadFacts(ref=API, uid="u", replicas=3, ready=3, gitops=gitops)
    application = a_scene().application
    assert application is not None

    scene = on_spare(application=application.model_copy(update={"workloads": (workload,)}))

    assert "stay suspended" in found(scene)["GitOps"].detail


@pytest.mark.parametrize(
    ("address", "like", "value"),
    [
        ("spare:5432", "primary", "spare"),
        ("spare:5433", "primary:5432", "spare:5433"),
        ("/run/postgresql:5432", "primary", "/run/postgresql"),
        ("spare", "primary", "spare"),
    ],
)
def test_a_host_is_written_as_the_config_map_writes_it(address: str, like: str, value: str) -> None:
    assert host_value(address, like) == value
