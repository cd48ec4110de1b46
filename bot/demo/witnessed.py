"""The record of a running demo, checked as an auditor would: its database against the witness, with the public key."""

from __future__ import annotations

from bot.demo.running import RunningDemo
from bot.plan_file import load
from bot.verify import checkpoints, database
from bot.verify.findings import Verdict
from bot.verify.sources import checkpoints as lines_of


def verify(demo: RunningDemo) -> Verdict:
    """Blocking: some seconds for a long record. Raises NoCheckpointsError when the witness is not there."""
    plan = load(demo.directory / "dr-plan.yml")
    verdict = Verdict()
    witnesses = () if plan.record is None else plan.record.witnesses
    files = [place.file for place in witnesses if place.file is not None]
    keys = [checkpoints.public_key(key) for key in (() if plan.record is None else plan.record.public_keys)]
    witnessed = checkpoints.read((line for file in files for line in lines_of(file)), keys, verdict)
    database.verify(demo.memory_dsn, witnessed, verdict)
    return verdict
