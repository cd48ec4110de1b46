"""What a job ended with is what its worker raises again, as far as the worker has a class for it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from actions.adapters.programs import ProgramError
from actions.adapters.scratch_server import TooLowError
from actions.backup.crypto import NotARecipientError
from actions.backup.jobs import kind_of
from actions.backup.patience import AwayError
from actions.backup.physical_tools import EndsEarlyError
from actions.errors import (
    DrError,
    PermanentError,
    RefusedError,
    TemporaryError,
    UnknownOutcomeError,
    UserError,
    VerificationError,
)
from actions.ports import JobPhase, JobState
from actions.steps.heavy import failure
from actions.steps.restore_test import RemoveScratch


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (TemporaryError("x", retry_after=timedelta(0)), TemporaryError),
        (AwayError("x"), TemporaryError),
        (UserError("x"), UserError),
        (RefusedError("x", code="unknown_name"), UserError),
        (NotARecipientError("x"), UserError),
        (EndsEarlyError("x"), UserError),
        (VerificationError("x"), VerificationError),
        (TooLowError({}), VerificationError),
        (UnknownOutcomeError("x"), UnknownOutcomeError),
        (ProgramError("pg_dump", code=1, stderr="x"), PermanentError),
        (PermanentError("x"), PermanentError),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, DrError) else "",
)
def test_it_is_raised_again_as_what_it_is(error: DrError, raised: type[DrError]) -> None:
    state = JobState(phase=JobPhase.FAILED, error=str(error), error_kind=kind_of(error))
    assert type(failure(RemoveScratch(scratch="s1", mark="m"), state)) is raised
