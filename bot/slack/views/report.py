"""Answers of queries, and the timeline."""

from __future__ import annotations

from actions.contract import Report
from actions.steps.phrases import counted
from bot.ports import TimelinePage
from bot.slack.views.blocks import (
    Block,
    Message,
    context,
    cut,
    escape,
    fenced,
    header,
    message,
    minute,
    moment,
    printable,
    section,
    words,
)
from bot.slack.views.plan import finding

CELL = 64
"""Widest cell of a table: a SHA-256 is compared whole. The full value is on the command line."""

ROWS = 60
LINES = 25
FINDINGS = 20


def report_message(report: Report) -> Message:
    """Title, lines, one table in fixed width, findings."""
    blocks: list[Block] = [header(report.title)]
    blocks += [section(escape(line)) for line in report.lines[:LINES]]
    blocks += _rest(len(report.lines) - LINES, "line")
    if report.rows:
        blocks += _table(report)
    blocks += [finding(item) for item in report.findings[:FINDINGS]]
    blocks += _rest(len(report.findings) - FINDINGS, "finding")
    first = report.lines[0] if report.lines else f"{len(report.rows)} rows"
    return message(
        escape(f"{report.title}: {first}"), blocks, more="Cut here. The rest is on the command line: `drbot`."
    )


def _rest(count: int, noun: str) -> list[Block]:
    """That there are more, and where."""
    return [context(f"{counted(count, f'more {noun}')} on the command line: `drbot`.")] if count > 0 else []


def _table(report: Report) -> list[Block]:
    lines = [[_cell(cell) for cell in row] for row in report.rows[:ROWS]]
    columns = [_cell(name) for name in report.columns]
    table = [columns, *lines] if columns else lines
    count = max(len(row) for row in table)
    widths = [max((len(row[index]) for row in table if index < len(row)), default=0) for index in range(count)]
    drawn = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in table]
    blocks = [fenced("\n".join(drawn))]
    return [*blocks, *_rest(len(report.rows) - ROWS, "row")]


def _cell(text: str) -> str:
    return cut(" ".join(printable(text).split()), CELL)


def timeline_message(page: TimelinePage) -> Message:
    """One page of the record. Who and when is the product's, what was said stands alone."""
    title = f"Timeline of incident {page.number}"
    blocks: list[Block] = [header(title), words(page.incident)]
    for line in page.lines[:23]:
        recorded = ""
        if abs((line.recorded_at - line.occurred_at).total_seconds()) > 60:
            recorded = f", recorded {moment(line.recorded_at)}"
        link = f" <{escape(line.permalink)}|message>" if _safe(line.permalink) and line.permalink else ""
        who = f"No. {line.seq} *{moment(line.occurred_at)}* {escape(line.actor)} ({escape(line.kind)}){recorded}{link}"
        blocks.append(context(who))
        blocks.append(words(cut(line.text, 450)))
        blocks += [words(cut(f"Amended by {text}", 450)) for text in line.amendments[-3:]]
    if not page.lines:
        blocks.append(section("Nothing is recorded yet."))
    if page.pages > 1:
        following = f" Next: `/dr-incident timeline --page {page.page + 1}`." if page.page < page.pages else ""
        blocks.append(context(f"Page {page.page} of {page.pages}.{following} All of it: `/dr-incident timeline html`."))
    newest = f", newest {minute(page.lines[-1].occurred_at)}" if page.lines else ""
    text = f"{title}, page {page.page} of {page.pages}{newest}"
    return message(text, blocks, more="Cut here. All of it: `/dr-incident timeline html`.")


def _safe(link: str | None) -> bool:
    return link is not None and link.startswith(("https://", "http://")) and not set(link) & set("|<> \n")
