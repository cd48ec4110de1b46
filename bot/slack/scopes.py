"""What the app's token must be allowed, and what the bot does without each part of it."""

from __future__ import annotations
