"""When a run started is the database's word, and so is when a version of the plan file came into force: whether a run
may go on is judged by the two."""

from alembic import op

revision = "0009"
down_revision = "0008"

STATEMENTS: tuple[str, ...] = (
    # Nobody's search path but its own: whoever updates a run could otherwise bring a clock along. The moment is taken
    # once; what a login writes into `started_at` is passed over. Runs from before have it by the same clock.
    """
    CREATE FUNCTION keep_run() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
        IF TG_OP = 'UPDATE' AND NEW.state <> OLD.state
            AND (NEW.state = 'awaiting' OR OLD.state NOT IN ('awaiting', 'running', 'paused', 'asking')) THEN
            RAISE EXCEPTION 'run % is %, and never % again', OLD.id, OLD.state, NEW.state
                USING ERRCODE = 'insufficient_privilege';
        END IF;
        NEW.started_at := coalesce(
            OLD.started_at,
            CASE WHEN NEW.state NOT IN ('awaiting', 'denied', 'expired', 'void') THEN clock_timestamp() END
        );
        RETURN NEW;
    END $$
    """,
    "CREATE TRIGGER kept BEFORE INSERT OR UPDATE ON run FOR EACH ROW EXECUTE FUNCTION keep_run()",
    # Signatures for a version put it in force once: an earlier version comes back only with signatures of its own.
    """
    CREATE FUNCTION date_version() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
        IF NEW.plan_id <> '' AND EXISTS (SELECT FROM public.plan_version WHERE plan_id = NEW.plan_id) THEN
            RAISE EXCEPTION 'plan % has put its version of the plan file in force already', NEW.plan_id
                USING ERRCODE = 'insufficient_privilege';
        END IF;
        NEW.activated_at := clock_timestamp();
        RETURN NEW;
    END $$
    """,
    "CREATE TRIGGER dated BEFORE INSERT ON plan_version FOR EACH ROW EXECUTE FUNCTION date_version()",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise RuntimeError("The record is never taken down; restore the bot's database instead.")
