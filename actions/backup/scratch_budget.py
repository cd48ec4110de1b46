"""Room for scratch instances, and a port: claimed before the first byte is fetched, refused when there is none.

One that was promoted is a server of its own, which nobody discards: it keeps its port and its disk, and no part of the
budget."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Sequence
from pathlib import Path

from actions.backup.scratch_place import Claim, ScratchPlace
from actions.errors import UserError
from actions.local_ports import port_is_free
from actions.site import ScratchBudget

RESERVE = 512 << 20  # bytes of the disk that stay free


def claim(directory: Path, place: ScratchPlace, wanted: Claim, budget: ScratchBudget, reserve: int = RESERVE) -> None:
    """Write the claim. Blocking. Raises UserError when the budget or the disk has no room, or no port is left."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".claims").open("a") as alone:
        fcntl.flock(alone, fcntl.LOCK_EX)  # two restores must not count on the same room
        places = [each for each in ScratchPlace.all(directory) if each.folder.name != wanted.id]
        others = [found for each in places if not each.promoted and (found := each.claim())]
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
        _check_disk(directory, wanted.wanted_bytes, reserve)
        place.write_claim(wanted.model_copy(update={"port": _port(budget, places)}))


def check_machine(directory: Path, wanted: int, budget: ScratchBudget, reserve: int = RESERVE) -> None:
    """Raise UserError where `claim` of one more with so many bytes would find no room on the disk, or no port. Claims
    nothing. Blocking."""
    _check_disk(directory, wanted, reserve)
    _port(budget, ScratchPlace.all(directory))


def _check_disk(directory: Path, wanted: int, reserve: int) -> None:
    there = next(folder for folder in (directory, *directory.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free < wanted + reserve:
        raise UserError(
            f"The disk of `{directory}` has {_shown(free)} free; the restore needs {_shown(wanted + reserve)}. Free "
            "space there, then try again."
        )


def _port(budget: ScratchBudget, others: Sequence[ScratchPlace]) -> int:
    if budget.ports is None:
        return 0
    first, last = budget.ports
    reserved = {found.port for each in others for found in (each.claim(), each.opened()) if found is not None}
    for port in range(first, last + 1):
        if port not in reserved and port_is_free(port):
            return port
    raise UserError(
        f"Every port from {first} to {last} (`backups.scratch.ports` of the plan file) is taken on this machine, by "
        "scratch instances or other programs. Discard one, or name a wider range."
    )


def _shown(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MiB"
