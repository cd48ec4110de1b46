"""The timeline of an incident and the chains of its evidence as Markdown, JSON and one HTML page, with their proofs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from bot.services.cards import CustodyLine, EvidenceItem, IncidentCard, TimelineLine
from bot.services.record.export import VERIFY, Proven, json_lines


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


def markdown(
    card: IncidentCard, lines: Sequence[TimelineLine], proven: Proven, evidence: Sequence[EvidenceItem]
) -> str:
    """A document with the facts, a table of the timeline, one for each item of evidence, and the proofs."""
    head = [f"# Incident {card.number}: {_cell(card.title)}", ""]
    head += [f"- **{name}:** {_cell(value)}" for name, value in facts(card)]
    rows = ["", "| No. | Occurred | Recorded | Who | What |", "|---|---|---|---|---|"]
    for line in lines:
        what = f"{_cell(line.text)} ([message]({line.permalink}))" if line.permalink else _cell(line.text)
        what += "".join(f"<br>Amended by {_cell(text)}" for text in line.amendments)
        occurred, recorded = _moment(line.occurred_at), _moment(line.recorded_at)
        rows.append(f"| {line.seq} | {occurred} | {recorded} | {_cell(line.actor)} | {what} |")
    proof = [
        "",
        "## Proof",
        "",
        verification(proven),
        "",
        "```",
        *json_lines(proven, incident=card.number).splitlines(),
    ]
    return "\n".join([*head, *rows, *_custody(evidence), *proof, "```", ""])


def _custody(evidence: Sequence[EvidenceItem]) -> list[str]:
    lines = ["", "## Chain of custody"] if evidence else []
    for item in evidence:
        lines += ["", f"### {item.label}: {_cell(item.title)}", ""]
        lines += [f"- **{name}:** {_cell(value)}" for name, value in facts_of(item)]
        lines += [
            "",
            "| No. | Occurred | Recorded | Who | What | SHA-256 | Place in the log |",
            "|---|---|---|---|---|---|---|",
        ]
        for line in item.events:
            place = "not sealed" if line.position is None else str(line.position)
            when = f"{_moment(line.occurred_at)} | {_moment(line.recorded_at)}"
            cells = f"{_cell(line.actor)} | {_cell(deed(line))} | {_cell(line.sha256)}"
            lines.append(f"| {line.seq} | {when} | {cells} | {place} |")
    return lines


def facts_of(item: EvidenceItem) -> list[tuple[str, str]]:
    """What an item is, who has it and where."""
    found = [
        ("Class", item.classification),
        ("Source", item.source),
        ("Method", item.method),
        ("Held by", item.holder),
        ("Where", item.location),
        ("SHA-256", item.sha256),
    ]
    return [(name, value) for name, value in found if value]


def deed(line: CustodyLine) -> str:
    """`handed to Sam Sato: for the laboratory (safe in room 12)`."""
    what = f"{line.action} to {line.holder}" if line.action == "handed" else line.action
    where = f" ({line.location})" if line.location else ""
    return f"{what}{f': {line.reason}' if line.reason else ''}{where}"


def json_text(
    card: IncidentCard, lines: Sequence[TimelineLine], proven: Proven, evidence: Sequence[EvidenceItem]
) -> str:
    """The same, for programs."""
    document = {
        "incident": card.model_dump(mode="json"),
        "achieved_rto_s": card.achieved_rto.total_seconds() if card.achieved_rto is not None else None,
        "timeline": [line.model_dump(mode="json") for line in lines],
        "evidence": [item.model_dump(mode="json") for item in evidence],
        "proof": [json.loads(line) for line in json_lines(proven, incident=card.number).splitlines()],
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def html_page(
    card: IncidentCard, lines: Sequence[TimelineLine], proven: Proven, evidence: Sequence[EvidenceItem]
) -> str:
    """One file without scripts or outside references. All text is escaped."""
    from jinja2 import Environment  # slow, and only this page needs it

    template = Environment(autoescape=True).from_string(_PAGE)
    return template.render(
        card=card,
        facts=facts(card),
        lines=lines,
        evidence=evidence,
        facts_of=facts_of,
        deed=deed,
        moment=_moment,
        verification=verification(proven),
        proof=json_lines(proven, incident=card.number),
    )


def verification(proven: Proven) -> str:
    """What the proofs rest on, and how a reader checks them without the bot."""
    how = (
        "Save the lines below as EXPORT.jsonl and run "
        f"{VERIFY}, with a copy of a witness's checkpoints and the record's public key."
    )
    checkpoint = proven.checkpoint
    if checkpoint is None:
        return "No entry was sealed when this was exported, so nothing in it is proven."
    return (
        f"Checkpoint {checkpoint.number} of {_moment(checkpoint.at)} covers {checkpoint.size} entries; its root is "
        f"{checkpoint.root.hex()}. {len(proven.paths)} of {len(proven.entries)} entries of this incident are proven "
        f"against it. {how}"
    )


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
text-align: left; vertical-align: top } th { background: #f3f3f3 } .t { white-space: nowrap } td:last-child, .h {
overflow-wrap: anywhere } .a { border-left: 3px solid #c60; padding-left: .5rem } pre { background: #f3f3f3; font-size:
11px; overflow: auto; max-height: 20rem; padding: .6rem; white-space: pre-wrap; overflow-wrap: anywhere }
</style></head><body>
<h1>Incident {{ card.number }}: {{ card.title }}</h1>
<dl>{% for name, value in facts %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
<h2>Timeline</h2>
<table><thead><tr><th>No.</th><th>Occurred</th><th>Recorded</th><th>Who</th><th>What</th></tr></thead><tbody>
{% for line in lines %}<tr><td>{{ line.seq }}</td><td class="t">{{ moment(line.occurred_at) }}</td>
<td class="t">{{ moment(line.recorded_at) }}</td><td>{{ line.actor }}</td><td>{{ line.text }}
{% if line.permalink %}<a href="{{ line.permalink }}" rel="noreferrer">message</a>{% endif %}
{% for text in line.amendments %}<div class="a">Amended by {{ text }}</div>{% endfor %}</td></tr>
{% endfor %}</tbody></table>
{% if evidence %}<h2>Chain of custody</h2>{% endif %}
{% for item in evidence %}<h3>{{ item.label }}: {{ item.title }}</h3>
<dl>{% for name, value in facts_of(item) %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
<table><thead><tr><th>No.</th><th>Occurred</th><th>Recorded</th><th>Who</th><th>What</th><th>SHA-256</th>
<th>Place in the log</th></tr></thead><tbody>
{% for line in item.events %}<tr><td>{{ line.seq }}</td><td class="t">{{ moment(line.occurred_at) }}</td>
<td class="t">{{ moment(line.recorded_at) }}</td><td>{{ line.actor }}</td><td>{{ deed(line) }}</td>
<td class="h">{{ line.sha256 }}</td><td>{{ "not sealed" if line.position is none else line.position }}</td></tr>
{% endfor %}</tbody></table>{% endfor %}
<h2>How to verify</h2>
<p>{{ verification }}</p>
<pre>{{ proof }}</pre></body></html>
"""
