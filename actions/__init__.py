"""The world side: what the bot can do to databases, clusters and object stores, usable without Slack."""
