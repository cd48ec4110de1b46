"""Plain sentences: modals that wait or tell, messages for one person or for all."""

from __future__ import annotations

from bot.slack.views.blocks import Message, View, cut_escaped, escape, message, modal, section


def loading_modal(title: str) -> View:
    """Opened at once, since a trigger lives three seconds; filled when the answer is there."""
    return modal(title, [section("Reading the present state. This window fills by itself.")])


def text_modal(title: str, text: str) -> View:
    return modal(title, [section(escape(text))])


def sentence(text: str) -> Message:
    """One sentence of the product; names in it keep their backticks, nothing in it becomes a mention."""
    clean = cut_escaped(escape(text), 3000)
    return message(clean, [section(clean)], more="Cut here.")
