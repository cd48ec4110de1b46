"""The log of leaves, its checkpoints and witnesses.

Every row of the record becomes a leaf by a trigger, in the transaction that writes it: no writer can forget it, and
none needs a right on `leaf`. The hash is over `0x00` and the text of the row as jsonb, with times in UTC. A later
revision that adds a column to a table of the record raises `form` in `write_leaf`, and `bot.verify.database` learns
which columns a leaf of an older form does not have.
"""

from alembic import op

revision = "0003"
down_revision = "0002"

LEAVES = {
    "timeline_entry": "seq",
    "signature": "id",
    "refusal": "id",
    "journal": "seq",
    "plan_version": "seq",
    "log_epoch": "epoch",
}
"""Tables of the record and the number of their rows."""

APPEND_ONLY = ("leaf", "sealed_leaf", "subtree", "checkpoint", "consumed_plan", "log_epoch")

TABLES = (
    """
    CREATE TABLE leaf (
        id BIGINT GENERATED ALWAYS AS IDENTITY,
        kind VARCHAR NOT NULL,
        ref BIGINT NOT NULL,
        form INTEGER NOT NULL,
        hash BYTEA NOT NULL,
        at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
        PRIMARY KEY (id),
        UNIQUE (kind, ref)
    )
    """,
    """
    CREATE TABLE unsealed_leaf (
        leaf_id BIGINT NOT NULL,
        PRIMARY KEY (leaf_id)
    )
    """,
    """
    CREATE TABLE sealed_leaf (
        position BIGINT NOT NULL,
        leaf_id BIGINT NOT NULL,
        PRIMARY KEY (position),
        UNIQUE (leaf_id)
    )
    """,
    """
    CREATE TABLE subtree (
        number BIGINT NOT NULL,
        hash BYTEA NOT NULL,
        PRIMARY KEY (number)
    )
    """,
    """
    CREATE TABLE checkpoint (
        number BIGINT NOT NULL,
        epoch BIGINT NOT NULL,
        base BIGINT NOT NULL,
        size BIGINT NOT NULL,
        root BYTEA NOT NULL,
        at TIMESTAMP WITH TIME ZONE NOT NULL,
        body TEXT NOT NULL,
        signature BYTEA NOT NULL,
        PRIMARY KEY (number)
    )
    """,
    """
    CREATE TABLE consumed_plan (
        plan_id VARCHAR NOT NULL,
        digest VARCHAR NOT NULL,
        number BIGINT NOT NULL,
        PRIMARY KEY (plan_id)
    )
    """,
    """
    CREATE TABLE log_epoch (
        epoch BIGINT NOT NULL,
        base BIGINT NOT NULL,
        number BIGINT NOT NULL,
        person VARCHAR NOT NULL,
        reason VARCHAR NOT NULL,
        started_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
        PRIMARY KEY (epoch)
    )
    """,
)

# SECURITY DEFINER: whoever writes a row of the record has no right to write leaves otherwise.
WRITE_LEAF = """
    CREATE FUNCTION write_leaf() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = public, pg_temp SET TimeZone = 'UTC' AS $$
    DECLARE
        content jsonb := to_jsonb(NEW);
        leaf_text text := jsonb_build_object('kind', TG_TABLE_NAME, 'row', content)::text;
        made bigint;
    BEGIN
        INSERT INTO leaf (kind, ref, form, hash)
        VALUES (
            TG_TABLE_NAME,
            (content ->> TG_ARGV[0])::bigint,
            1,
            sha256('\\x00'::bytea || convert_to(leaf_text, 'UTF8'))
        )
        RETURNING id INTO made;
        INSERT INTO unsealed_leaf VALUES (made);
        RETURN NULL;
    END $$
    """

# Rows from before this revision, in the order of their numbers.
EARLIER_LEAVES = """
    WITH made AS (
        INSERT INTO leaf (kind, ref, form, hash)
        SELECT '{table}', content.{key}, 1,
            sha256(
                '\\x00'::bytea
                || convert_to(jsonb_build_object('kind', '{table}', 'row', to_jsonb(content))::text, 'UTF8')
            )
        FROM {table} content ORDER BY content.{key}
        RETURNING id
    )
    INSERT INTO unsealed_leaf SELECT id FROM made
    """


def upgrade() -> None:
    for statement in TABLES:
        op.execute(statement)
    op.execute("INSERT INTO log_epoch (epoch, base, number, person, reason) VALUES (0, 0, 0, '', 'the first')")
    op.execute(WRITE_LEAF)
    op.execute("SET LOCAL TimeZone = 'UTC'")
    for table, key in LEAVES.items():
        op.execute(EARLIER_LEAVES.format(table=table, key=key))
        op.execute(f"CREATE TRIGGER leaf AFTER INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION write_leaf('{key}')")
    for table in APPEND_ONLY:
        op.execute(
            f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )


def downgrade() -> None:
    raise RuntimeError("The record is never taken down; restore the bot's database instead.")
