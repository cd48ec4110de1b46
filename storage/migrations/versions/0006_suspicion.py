"""Suspicions of Slack are looked for in all incidents before every decision, among millions of other entries."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.execute("CREATE INDEX timeline_entry_suspicion ON timeline_entry (incident_id) WHERE kind = 'suspect_slack'")


def downgrade() -> None:
    raise RuntimeError("The record is never taken down; restore the bot's database instead.")
