"""Signatures by key, break-glass, orders to a run, versions of the plan file."""

from alembic import op

revision = "0002"
down_revision = "0001"

STATEMENTS = (
    "ALTER TABLE incident ADD COLUMN slack_suspect_since TIMESTAMP WITH TIME ZONE",
    "ALTER TABLE plan ADD COLUMN policy VARCHAR NOT NULL DEFAULT ''",
    "ALTER TABLE plan ADD COLUMN break_glass BOOLEAN NOT NULL DEFAULT false",
    "ALTER TABLE plan ADD COLUMN overrules VARCHAR NOT NULL DEFAULT ''",
    "ALTER TABLE signature ADD COLUMN proof VARCHAR NOT NULL DEFAULT ''",
    "ALTER TABLE signature ADD COLUMN inbox_key VARCHAR NOT NULL DEFAULT ''",
    """ALTER TABLE run ADD COLUMN "order" VARCHAR NOT NULL DEFAULT ''""",
    """
    CREATE TABLE account (
        account VARCHAR NOT NULL,
        problem VARCHAR NOT NULL,
        groups JSONB NOT NULL DEFAULT '[]',
        seen_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT clock_timestamp(),
        PRIMARY KEY (account)
    )
    """,
    "CREATE INDEX incident_open ON incident (channel, number) WHERE closed_at IS NULL",
    "CREATE INDEX inbox_unfinished ON inbox (received_at) WHERE finished_at IS NULL",
    "CREATE INDEX outbox_request ON outbox (((payload ->> 'request')::bigint))",
    """
    CREATE TABLE plan_version (
        seq BIGINT GENERATED ALWAYS AS IDENTITY,
        sha256 VARCHAR NOT NULL,
        document TEXT NOT NULL,
        plan_id VARCHAR NOT NULL,
        activated_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
        PRIMARY KEY (seq)
    )
    """,
    """
    CREATE TRIGGER plan_version_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON plan_version
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise RuntimeError("The record is never taken down; restore the bot's database instead.")
