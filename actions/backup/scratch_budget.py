"""Room for scratch instances: claimed before the first byte is fetched, refused when there is none."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path

from actions.backup.scratch_place import Claim, ScratchPlace
from actions.errors import UserError
from actions.site import ScratchBudget

RESERVE = 512 << 20  # bytes of the disk that stay free


def claim(directory: Path, place: ScratchPlace, wanted: Claim, budget: ScratchBudget, reserve: int = RESERVE) -> None:
    """Write the claim. Blocking. Raises UserError when the budget or the disk has no room for it."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".claims").open("a") as alone:
        fcntl.flock(alone, fcntl.LOCK_EX)  # two restores must not count on the same room
        others = [found for each in ScratchPlace.all(directory) if (found := each.claim()) and found.id != wanted.id]
        names = ", ".join(f"`{each.id}`" for each in others) or "none"
        if len(others) >= budget.instances:
            raise UserError(
                f"There are {len(others)} scratch instances ({names}), and the plan file allows {budget.instances}. "
                "Discard one, or raise `backups.scratch.instances`."
            )
        taken = sum(each.wanted_bytes for each in others)
        if taken + wanted.wanted_bytes > budget.disk:
            raise UserError(
                f"The restore needs {_shown(wanted.wanted_bytes)}, and the scratch instances there are ({names}) have "
                f"{_shown(taken)} of the {_shown(budget.disk)} that the plan file allows. Discard one, or raise "
                "`backups.scratch.disk`."
            )
        free = shutil.disk_usage(directory).free
        if free < wanted.wanted_bytes + reserve:
            raise UserError(
                f"The disk of `{directory}` has {_shown(free)} free; the restore needs "
                f"{_shown(wanted.wanted_bytes + reserve)}. Free space there, then try again."
            )
        place.write_claim(wanted)


def _shown(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MiB"
