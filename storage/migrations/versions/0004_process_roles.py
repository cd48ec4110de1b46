"""A stored click is never changed, signs once, and goes only when nothing rests on it; a plan file needs its signers.

What each process may do is in `storage.roles`; every migration is followed by it.
"""

from alembic import op

revision = "0004"
down_revision = "0003"

STATEMENTS: tuple[str, ...] = (
    "CREATE UNIQUE INDEX signature_inbox_key ON signature (inbox_key) WHERE inbox_key <> ''",
    """
    CREATE FUNCTION keep_inbox() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = public, pg_temp AS $$
    BEGIN
        IF TG_OP = 'UPDATE' THEN
            IF (NEW.key, NEW.kind, NEW.payload, NEW.received_at)
                IS DISTINCT FROM (OLD.key, OLD.kind, OLD.payload, OLD.received_at) THEN
                RAISE EXCEPTION 'inbox is append-only: only finished_at is set later'
                    USING ERRCODE = 'insufficient_privilege';
            END IF;
            RETURN NEW;
        END IF;
        IF EXISTS (SELECT FROM signature WHERE inbox_key = OLD.key AND inbox_key <> '') THEN
            RAISE EXCEPTION 'a signature rests on the click %', OLD.key USING ERRCODE = 'insufficient_privilege';
        END IF;
        RETURN OLD;
    END $$
    """,
    # Whoever writes this table could put himself on the roster. So a version is taken only from signers, whose rows the
    # worker cannot write, or from a login that could become the owner anyway (a demo, an administrator by hand).
    """
    CREATE FUNCTION vouched_for() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = public, pg_temp AS $$
    BEGIN
        IF pg_has_role(session_user, 'drbot_owner', 'MEMBER') OR NOT EXISTS (SELECT FROM plan_version) THEN
            RETURN NEW;
        END IF;
        IF encode(sha256(convert_to(NEW.document, 'UTF8')), 'hex') = NEW.sha256 AND (
            SELECT count(DISTINCT s.person) FROM plan p JOIN signature s ON s.plan_id = p.id AND s.digest = p.digest
            WHERE p.id = NEW.plan_id AND p.action = 'plan.activate' AND s.act = 'approve' AND s.person <> p.requester
                AND p.document #>> '{steps,0,sha256}' = NEW.sha256
        ) >= 2 THEN
            RETURN NEW;
        END IF;
        RAISE EXCEPTION 'nobody has signed for this version of the plan file' USING ERRCODE = 'insufficient_privilege';
    END $$
    """,
    "CREATE TRIGGER vouched_for BEFORE INSERT ON plan_version FOR EACH ROW EXECUTE FUNCTION vouched_for()",
    "CREATE TRIGGER kept BEFORE UPDATE OR DELETE ON inbox FOR EACH ROW EXECUTE FUNCTION keep_inbox()",
    "CREATE TRIGGER append_only BEFORE TRUNCATE ON inbox FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise RuntimeError("The record is never taken down; restore the bot's database instead.")
