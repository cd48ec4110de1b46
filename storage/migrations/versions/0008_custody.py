"""The chain of custody of evidence: one row an event, a leaf of the log like every other row of the record."""

from alembic import op

revision = "0008"
down_revision = "0007"

STATEMENTS = (
    """
    CREATE TABLE custody_event (
        id BIGINT GENERATED ALWAYS AS IDENTITY,
        item BIGINT NOT NULL,
        seq INTEGER NOT NULL,
        incident_id VARCHAR NOT NULL,
        action VARCHAR NOT NULL,
        actor VARCHAR NOT NULL,
        holder VARCHAR NOT NULL,
        occurred_at TIMESTAMP WITH TIME ZONE NOT NULL,
        recorded_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
        reason TEXT NOT NULL,
        location TEXT NOT NULL,
        sha256 VARCHAR NOT NULL,
        data JSONB DEFAULT '{}' NOT NULL,
        source_key VARCHAR,
        PRIMARY KEY (id),
        UNIQUE (item, seq),
        UNIQUE (source_key),
        FOREIGN KEY (incident_id) REFERENCES incident (id),
        CHECK ((seq = 1) = (action = 'collected'))
    )
    """,
    "CREATE INDEX ix_custody_event_incident_id ON custody_event (incident_id)",
    "CREATE TRIGGER leaf AFTER INSERT ON custody_event FOR EACH ROW EXECUTE FUNCTION write_leaf('id')",
    """
    CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON custody_event
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise RuntimeError("The record is never taken down; restore the bot's database instead.")
