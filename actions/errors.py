"""Errors, told apart by who must act.

DrError
├── UserError             the person who asked: shown word for word, names the next thing to do; on record by its `code`
│   └── RefusedError          what was asked for may not be, or is nothing we know; told to others too
├── TemporaryError        nobody: the same call may succeed after `retry_after`
└── PermanentError        an operator: trying again without a change fails again
    ├── VerificationError     the world was read and is not what was promised
    ├── PreconditionError     the world moved since the plan was signed; the difference is in `violations`
    └── UnknownOutcomeError   it cannot be told whether the effect happened; people decide
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta


class DrError(Exception):
    """Base of every error this product raises on purpose."""


NOT_POSSIBLE = "not_possible"
"""Code of a request that is mistyped, or comes at a time when it cannot be done."""

UNKNOWN_NAME = "unknown_name"
"""Code of a request for something that the plan file does not know: looked up, and never passed on."""


class UserError(DrError):
    """The person who asked can put this right; the text is shown to them word for word."""

    code = NOT_POSSIBLE
    """The reason code under which it is recorded that somebody was turned down."""


class RefusedError(UserError):
    """A request that is refused, not just mistyped."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class TemporaryError(DrError):
    """The same call may succeed later."""

    def __init__(self, message: str, *, retry_after: timedelta = timedelta(seconds=5)) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class PermanentError(DrError):
    """Trying again without a change fails again."""


class VerificationError(PermanentError):
    """The world was read and is not what was promised."""


class PreconditionError(PermanentError):
    """The world moved since the plan was signed."""

    def __init__(self, violations: Sequence[str]) -> None:
        super().__init__("; ".join(violations))
        self.violations = tuple(violations)


class UnknownOutcomeError(PermanentError):
    """It cannot be told whether the effect happened."""


def adding(error: DrError, more: str) -> DrError:
    """The same kind of error that says more."""
    text = f"{error} {more}"
    if isinstance(error, TemporaryError):
        return TemporaryError(text, retry_after=error.retry_after)
    return UserError(text) if isinstance(error, UserError) else PermanentError(text)
