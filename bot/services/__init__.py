"""Use cases: incidents, plans, signatures, runs, timeline. They know neither Slack nor vendor SDKs."""
