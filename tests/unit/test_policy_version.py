"""What of a plan file voids signatures when it changes."""

from __future__ import annotations

import hashlib
from datetime import timedelta

from actions.contract import canonical
from bot.services.policy import Policy
from tests.fixtures.office import shipped_plan


def test_an_upgrade_that_adds_a_key_voids_nothing_and_its_use_does() -> None:
    plan = shipped_plan()
    version = Policy(plan).version
    then = plan.approval.model_dump(mode="json")
    for key in ("seen_within", "unwitnessed"):  # which an earlier version did not know
        del then[key]
    assert version.rules == hashlib.sha256(canonical(then).encode()).hexdigest()
    for change in ({"seen_within": timedelta(minutes=5)}, {"unwitnessed": True}):
        changed = plan.model_copy(update={"approval": plan.approval.model_copy(update=change)})
        assert Policy(changed).version.rules != version.rules
