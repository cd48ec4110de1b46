"""What every decision on a plan looks for among millions of rows: suspicions of Slack, denials, the request."""

from alembic import op

revision = "0006"
down_revision = "0005"

STATEMENTS = (
    "CREATE INDEX timeline_entry_suspicion ON timeline_entry (incident_id) WHERE kind = 'suspect_slack'",
    "CREATE INDEX signature_denied ON signature (at) WHERE act = 'deny'",
    "CREATE INDEX request_plan ON request (plan_id) WHERE plan_id <> ''",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise RuntimeError("The record is never taken down; restore the bot's database instead.")
