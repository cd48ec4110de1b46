"""The people side: Slack, command line, schedules, use cases."""
