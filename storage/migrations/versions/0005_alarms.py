"""Alarms about backups, and whose turn it is to look.

Only how things stand now is kept here; that an alarm was raised or has ended is told on the timeline, which is sealed.
"""

from alembic import op

revision = "0005"
down_revision = "0004"

STATEMENTS = (
    """
    CREATE TABLE alarm (
        key VARCHAR NOT NULL,
        text TEXT NOT NULL,
        wants_base BOOLEAN NOT NULL,
        raised_at TIMESTAMP WITH TIME ZONE NOT NULL,
        cleared_at TIMESTAMP WITH TIME ZONE,
        seen_at TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (key)
    )
    """,
    """
    CREATE TABLE turn (
        name VARCHAR NOT NULL,
        taken_at TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (name)
    )
    """,
    "CREATE INDEX timeline_entry_drill ON timeline_entry (seq) WHERE kind = 'drill'",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise RuntimeError("The record is never taken down; restore the bot's database instead.")
