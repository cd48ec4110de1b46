"""The timeline of an incident as Markdown, JSON and one self-contained HTML page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from jinja2 import Environment

from bot.services.cards import IncidentCard, TimelineLine


def facts(card: IncidentCard) -> list[tuple[str, str]]:
    """The head of every export."""
    lines = [
        ("Severity", card.severity),
        ("Commander", card.commander),
        ("Impact since", _moment(card.impact_started_at)),
        ("Declared", _moment(card.declared_at)),
        ("Recovered", _moment(card.recovered_at)),
        ("Closed", _moment(card.closed_at)),
        ("RTO", str(card.rto)),
        ("Achieved RTO", _span(card.achieved_rto)),
    ]
    return [(name, value) for name, value in lines if value]


def markdown(card: IncidentCard, lines: Sequence[TimelineLine]) -> str:
    """A document with the facts and a table of the timeline."""
    head = [f"# Incident {card.number}: {_cell(card.title)}", ""]
    head += [f"- **{name}:** {_cell(value)}" for name, value in facts(card)]
    rows = ["", "| No. | Occurred | Recorded | Who | What |", "|---|---|---|---|---|"]
    for line in lines:
        what = f"{_cell(line.text)} ([message]({line.permalink}))" if line.permalink else _cell(line.text)
        occurred, recorded = _moment(line.occurred_at), _moment(line.recorded_at)
        rows.append(f"| {line.seq} | {occurred} | {recorded} | {_cell(line.actor)} | {what} |")
    return "\n".join([*head, *rows, ""])


def json_text(card: IncidentCard, lines: Sequence[TimelineLine]) -> str:
    """The same, for programs."""
    document = {
        "incident": card.model_dump(mode="json"),
        "achieved_rto_s": card.achieved_rto.total_seconds() if card.achieved_rto is not None else None,
        "timeline": [line.model_dump(mode="json") for line in lines],
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def html_page(card: IncidentCard, lines: Sequence[TimelineLine]) -> str:
    """One file without scripts or outside references. All text is escaped."""
    template = Environment(autoescape=True).from_string(_PAGE)
    return template.render(card=card, facts=facts(card), lines=lines, moment=_moment)


def _moment(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _span(span: timedelta | None) -> str:
    return "" if span is None else str(timedelta(seconds=round(span.total_seconds())))


def _cell(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Incident {{ card.number }}: {{ card.title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1a1a1a }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.5rem } dt { font-weight: 600 } dd { margin: 0 }
table { border-collapse: collapse; width: 100% } th, td { border-bottom: 1px solid #ccc; padding: .35rem .6rem;
text-align: left; vertical-align: top } th { background: #f3f3f3 } .t { white-space: nowrap } td:last-child {
overflow-wrap: anywhere }
</style></head><body>
<h1>Incident {{ card.number }}: {{ card.title }}</h1>
<dl>{% for name, value in facts %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
<h2>Timeline</h2>
<table><thead><tr><th>No.</th><th>Occurred</th><th>Recorded</th><th>Who</th><th>What</th></tr></thead><tbody>
{% for line in lines %}<tr><td>{{ line.seq }}</td><td class="t">{{ moment(line.occurred_at) }}</td>
<td class="t">{{ moment(line.recorded_at) }}</td><td>{{ line.actor }}</td><td>{{ line.text }}
{% if line.permalink %}<a href="{{ line.permalink }}" rel="noreferrer">message</a>{% endif %}</td></tr>
{% endfor %}</tbody></table></body></html>
"""
