"""What is told of a prover, and which secrets are looked at."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from actions.contract import Verdict
from bot.plan_file import DrPlan, ProvenBy, load
from bot.plan_file.values import Part, SecretRef
from bot.prover import OWN, SECRETS, prover_findings
from storage.tables import ProcessRow
from tests.fakes.secrets import MemorySecrets

PLAN = load(Path(__file__).parents[2] / "dr-plan.yml")


def apart() -> DrPlan:
    changed = PLAN.backups.model_copy(update={"prover": ProvenBy.APART, "proof_signing_key": "env:PROOF_KEY"})
    return DrPlan.model_construct(**{**dict(PLAN), "backups": changed})


def test_every_secret_of_the_plan_file_is_somebodys() -> None:
    found = {
        name
        for part in Part.__subclasses__()
        for name, field in part.model_fields.items()
        if str(get_args(SecretRef)[1]) in f"{field.annotation} {field.metadata}"
    }
    assert found == {*SECRETS, *OWN, "value"}  # the last one is of a repository of pgBackRest, which both read


async def test_without_a_prover_restore_tests_wait_and_the_doctor_says_so() -> None:
    found = await prover_findings(apart(), (), MemorySecrets({}))
    assert [(item.check, item.verdict) for item in found] == [
        ("process prover", Verdict.STOP),
        ("keys of the prover", Verdict.OK),
    ]
    assert "Start `drbot run --role prover`" in found[0].hint


async def test_a_prover_that_nobody_needs_and_one_that_has_not_looked_yet_are_told() -> None:
    row = ProcessRow(id="host-1-abc", roles="prover", notes={})
    [idle] = await prover_findings(PLAN, (row,), MemorySecrets({}))
    assert (idle.verdict, idle.check) == (Verdict.WARN, "process prover")
    found = await prover_findings(apart(), (row,), MemorySecrets({}))
    assert ("prover on host", Verdict.WARN) in {(item.check, item.verdict) for item in found}
