"""What the person reads when the demo is ready: where to look and what to type."""

from __future__ import annotations

from bot.demo.pages import PAGES
from bot.demo.people import DANIEL, GUS, OLIVIA, SELMA
from bot.demo.running import ENVIRONMENT, RunningDemo


def ready_text(demo: RunningDemo, *, seconds: float) -> str:
    """The address first, then the story in five lines."""
    page = demo.health_url.removesuffix("/healthz")
    return f"""
Ready after {seconds:.0f} s.

  Slack         {demo.slack_url}      act as {OLIVIA.name}, {DANIEL.name}, {SELMA.name} or {GUS.name}
  Application   {page}/

  1. In a second terminal:                 .venv/bin/drbot demo damage
  2. In Slack, #incidents, as Olivia:      /dr-incident open Users cannot sign in --scenario database_corruption
  3. As Olivia, who signs by asking:       /dr-restore superprismora --target superprismora --reason "users scrambled"
  4. As Daniel:                            press Approve, type superprismora and a reason
  5. Watch the message; at the end:        /dr-incident timeline

Pages (who would be called outside Slack) come into {demo.directory}/{PAGES}.
The bot's log is {demo.directory}/bot.log. For the command line: source {demo.directory}/{ENVIRONMENT}
The local Slack listens on all interfaces, which it cannot be told not to; its tokens are random and die with the demo.
Ctrl-C ends the demo and removes everything it made.
"""
