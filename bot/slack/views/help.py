"""Help, generated from the table of the router."""

from __future__ import annotations

from bot.router import SLASHES, Entry, Router
from bot.slack.views.blocks import Block, Message, context, escape, header, message, section


def help_message(router: Router, topic: str | None = None) -> Message:
    """All nouns, or one noun with usage and examples."""
    entries = router.entries(topic.casefold()) if topic else ()
    if entries:
        return _noun(entries)
    blocks: list[Block] = [header("What the bot can do")]
    for noun in router.nouns():
        lines = [f"`/{call(entry)}` {escape(entry.summary)}" for entry in router.entries(noun)]
        blocks.append(section("\n".join(lines)))
    blocks.append(context("`/dr help NOUN` shows arguments and examples. Every command works as `/dr NOUN VERB` too."))
    nouns = ", ".join(router.nouns())
    return message(f"What the bot can do: {nouns}. `/dr help NOUN` shows more.", blocks, more="Cut here.")


def call(entry: Entry) -> str:
    """How a command is typed: under its own slash command where it has one."""
    slash = f"dr-{entry.noun}"
    return " ".join((slash, *entry.words[1:])) if slash in SLASHES else " ".join(("dr", *entry.words))


def _noun(entries: tuple[Entry, ...]) -> Message:
    blocks: list[Block] = [header(f"/{call(entries[0]).split(maxsplit=1)[0]} {entries[0].noun}".strip())]
    for entry in entries:
        usage = f" {escape(entry.usage)}" if entry.usage else ""
        blocks.append(section(f"`/{call(entry)}{usage}`\n{escape(entry.summary)}\nExample: `/{escape(entry.example)}`"))
    summary = "; ".join(f"/{call(entry)}: {entry.summary}" for entry in entries)
    return message(escape(summary), blocks, more="Cut here.")
