"""Plain sentences: modals that wait or tell, messages for one person or for all."""

from __future__ import annotations

from bot.slack.views.blocks import Message, View, cut_escaped, escape, message, modal, section, words


def loading_modal(title: str) -> View:
    """Opened at once, since a trigger lives three seconds; filled when the answer is there."""
    return modal(title, [section("Reading the present state. This window fills by itself.")])


def text_modal(title: str, text: str) -> View:
    return modal(title, [section(escape(text))])


def sentence(text: str, said: str = "") -> Message:
    """One sentence of the product; names in it keep their backticks, nothing in it becomes a mention. What a person
    said stands alone below it, shown as it is: it must not pass for a word of the product."""
    clean = cut_escaped(escape(text), 3000)
    blocks = [section(clean), *([words(said)] if said.strip() else [])]
    return message(clean, blocks, more="Cut here.")
