"""The first schema, as SQL, so that a later change of the models cannot change what this revision did."""

from alembic import op

revision = "0001"
down_revision = None

APPEND_ONLY = ("timeline_entry", "signature", "refusal", "journal")

TABLES = (
    """
    CREATE TABLE card_message (
        kind VARCHAR NOT NULL,
        ref VARCHAR NOT NULL,
        channel VARCHAR NOT NULL,
        ts VARCHAR NOT NULL,
        PRIMARY KEY (kind, ref, channel)
    )
    """,
    """
    CREATE TABLE inbox (
        key VARCHAR NOT NULL,
        kind VARCHAR NOT NULL,
        payload JSONB DEFAULT '{}' NOT NULL,
        received_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
        finished_at TIMESTAMP WITH TIME ZONE,
        PRIMARY KEY (key)
    )
    """,
    """
    CREATE TABLE incident (
        id VARCHAR NOT NULL,
        number INTEGER GENERATED ALWAYS AS IDENTITY,
        title VARCHAR NOT NULL,
        severity VARCHAR NOT NULL,
        scenario VARCHAR NOT NULL,
        commander VARCHAR NOT NULL,
        channel VARCHAR NOT NULL,
        impact_started_at TIMESTAMP WITH TIME ZONE NOT NULL,
        declared_at TIMESTAMP WITH TIME ZONE NOT NULL,
        closed_at TIMESTAMP WITH TIME ZONE,
        recovered_at TIMESTAMP WITH TIME ZONE,
        rto_s INTEGER NOT NULL,
        PRIMARY KEY (id),
        UNIQUE (number)
    )
    """,
    """
    CREATE INDEX ix_incident_channel ON incident (channel)
    """,
    """
    CREATE TABLE outbox (
        id BIGINT GENERATED ALWAYS AS IDENTITY,
        kind VARCHAR NOT NULL,
        channel VARCHAR NOT NULL,
        ref VARCHAR NOT NULL,
        payload JSONB DEFAULT '{}' NOT NULL,
        state VARCHAR NOT NULL,
        attempts INTEGER NOT NULL,
        error VARCHAR NOT NULL,
        due_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
        sent_at TIMESTAMP WITH TIME ZONE,
        PRIMARY KEY (id)
    )
    """,
    """
    CREATE INDEX outbox_due ON outbox (state, due_at)
    """,
    """
    CREATE TABLE process (
        id VARCHAR NOT NULL,
        roles VARCHAR NOT NULL,
        notes JSONB DEFAULT '{}' NOT NULL,
        seen_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
        PRIMARY KEY (id)
    )
    """,
    """
    CREATE TABLE refusal (
        id BIGINT GENERATED ALWAYS AS IDENTITY,
        plan_id VARCHAR,
        account VARCHAR NOT NULL,
        person VARCHAR NOT NULL,
        code VARCHAR NOT NULL,
        text VARCHAR NOT NULL,
        at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
        PRIMARY KEY (id)
    )
    """,
    """
    CREATE INDEX ix_refusal_plan_id ON refusal (plan_id)
    """,
    """
    CREATE TABLE request (
        id BIGINT GENERATED ALWAYS AS IDENTITY,
        kind VARCHAR NOT NULL,
        name VARCHAR NOT NULL,
        params JSONB DEFAULT '{}' NOT NULL,
        person VARCHAR NOT NULL,
        slack_user VARCHAR NOT NULL,
        channel VARCHAR NOT NULL,
        reply JSONB DEFAULT '{}' NOT NULL,
        reason VARCHAR NOT NULL,
        typed VARCHAR NOT NULL,
        incident_id VARCHAR,
        state VARCHAR NOT NULL,
        error VARCHAR NOT NULL,
        plan_id VARCHAR NOT NULL,
        source_key VARCHAR,
        created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
        PRIMARY KEY (id),
        UNIQUE (source_key)
    )
    """,
    """
    CREATE INDEX ix_request_state ON request (state)
    """,
    """
    CREATE TABLE plan (
        id VARCHAR NOT NULL,
        action VARCHAR NOT NULL,
        document JSONB DEFAULT '{}' NOT NULL,
        digest VARCHAR NOT NULL,
        risk VARCHAR NOT NULL,
        plan_schema INTEGER NOT NULL,
        requester VARCHAR NOT NULL,
        reason VARCHAR NOT NULL,
        incident_id VARCHAR,
        channel VARCHAR NOT NULL,
        token VARCHAR NOT NULL,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL,
        expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (id),
        FOREIGN KEY(incident_id) REFERENCES incident (id),
        UNIQUE (token)
    )
    """,
    """
    CREATE INDEX ix_plan_incident_id ON plan (incident_id)
    """,
    """
    CREATE TABLE timeline_entry (
        seq BIGINT GENERATED ALWAYS AS IDENTITY,
        incident_id VARCHAR,
        kind VARCHAR NOT NULL,
        actor VARCHAR NOT NULL,
        occurred_at TIMESTAMP WITH TIME ZONE NOT NULL,
        recorded_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
        text TEXT NOT NULL,
        data JSONB DEFAULT '{}' NOT NULL,
        permalink VARCHAR,
        source_key VARCHAR,
        PRIMARY KEY (seq),
        FOREIGN KEY(incident_id) REFERENCES incident (id),
        UNIQUE (source_key)
    )
    """,
    """
    CREATE INDEX ix_timeline_entry_incident_id ON timeline_entry (incident_id)
    """,
    """
    CREATE TABLE run (
        id VARCHAR NOT NULL,
        state VARCHAR NOT NULL,
        plan_schema INTEGER NOT NULL,
        owner VARCHAR NOT NULL,
        epoch INTEGER NOT NULL,
        lease_until TIMESTAMP WITH TIME ZONE,
        progress JSONB DEFAULT '{}' NOT NULL,
        message VARCHAR NOT NULL,
        approved_at TIMESTAMP WITH TIME ZONE,
        started_at TIMESTAMP WITH TIME ZONE,
        ended_at TIMESTAMP WITH TIME ZONE,
        PRIMARY KEY (id),
        FOREIGN KEY(id) REFERENCES plan (id)
    )
    """,
    """
    CREATE INDEX ix_run_state ON run (state)
    """,
    """
    CREATE TABLE signature (
        id BIGINT GENERATED ALWAYS AS IDENTITY,
        plan_id VARCHAR NOT NULL,
        person VARCHAR NOT NULL,
        act VARCHAR NOT NULL,
        digest VARCHAR NOT NULL,
        reason VARCHAR NOT NULL,
        typed VARCHAR NOT NULL,
        source VARCHAR NOT NULL,
        account VARCHAR NOT NULL,
        at TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (id),
        FOREIGN KEY(plan_id) REFERENCES plan (id)
    )
    """,
    """
    CREATE INDEX ix_signature_plan_id ON signature (plan_id)
    """,
    """
    CREATE TABLE journal (
        seq BIGINT GENERATED ALWAYS AS IDENTITY,
        run_id VARCHAR NOT NULL,
        epoch INTEGER NOT NULL,
        step INTEGER NOT NULL,
        state VARCHAR NOT NULL,
        detail TEXT NOT NULL,
        at TIMESTAMP WITH TIME ZONE NOT NULL,
        elapsed_ms INTEGER NOT NULL,
        PRIMARY KEY (seq),
        FOREIGN KEY(run_id) REFERENCES run (id)
    )
    """,
    """
    CREATE INDEX ix_journal_run_id ON journal (run_id)
    """,
    """
    CREATE TABLE run_lock (
        id BIGINT GENERATED ALWAYS AS IDENTITY,
        key VARCHAR NOT NULL,
        run_id VARCHAR NOT NULL,
        slots INT4RANGE NOT NULL,
        PRIMARY KEY (id),
        CONSTRAINT run_lock_conflict EXCLUDE USING gist (key WITH =, slots WITH &&),
        FOREIGN KEY(run_id) REFERENCES run (id)
    )
    """,
    """
    CREATE INDEX ix_run_lock_run_id ON run_lock (run_id)
    """,
)

REFUSE_CHANGE = """
    CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION '% is append-only: record an amendment instead', TG_TABLE_NAME
            USING ERRCODE = 'insufficient_privilege';
    END $$
    """


def upgrade() -> None:
    op.execute("CREATE EXTENSION IF NOT EXISTS btree_gist")  # an exclusion constraint on text and range together
    for statement in TABLES:
        op.execute(statement)
    op.execute(REFUSE_CHANGE)
    for table in APPEND_ONLY:
        op.execute(
            f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )


def downgrade() -> None:
    raise RuntimeError("The record is never taken down; restore the bot's database instead.")
