"""Deleting one after the other, where a store may not let some of them go."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from actions.errors import PermanentError, UserError
from actions.ports import Progress, ProgressReport
from actions.steps.phrases import counted


async def removed(left: Sequence[str], remove: Callable[[str], Awaitable[None]], noun: str, progress: Progress) -> None:
    """Delete them all; one that the store does not let go holds up no other. Raises PermanentError naming those."""
    refused: dict[str, str] = {}
    for number, name in enumerate(left, start=1):
        try:
            await remove(name)
        except (UserError, PermanentError) as error:
            refused[name] = str(error)
        progress(ProgressReport(done=number, total=len(left), unit="steps", phase="delete"))
    if refused:
        first = next(iter(refused))
        raise PermanentError(
            f"{len(refused)} of {counted(len(left), noun)} could not be deleted, the first of them `{first}`: "
            f"{refused[first]} What an Object Lock holds goes at the first expiry after its end."
        )
