"""What people choose at the demo's command line; it knows nothing, so that the command line starts fast."""

from __future__ import annotations

from enum import StrEnum


class Damage(StrEnum):
    """What goes wrong in production."""

    CORRUPT = "corrupt"
    DROP_TABLE = "drop-table"
    DELETE_ROWS = "delete-rows"


class Size(StrEnum):
    """Of the data set."""

    TINY = "tiny"
    SMALL = "small"
    LARGE = "large"
    HUGE = "huge"
