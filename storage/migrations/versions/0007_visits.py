"""How often each person of the roster has asked lately, over all processes."""

from alembic import op

revision = "0007"
down_revision = "0006"

STATEMENTS = (
    """
    CREATE TABLE visit (
        person VARCHAR NOT NULL,
        at TIMESTAMP WITH TIME ZONE[] NOT NULL,
        refused BOOLEAN NOT NULL,
        PRIMARY KEY (person)
    )
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise RuntimeError("The record is never taken down; restore the bot's database instead.")
