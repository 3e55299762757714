"""The report: one self-contained HTML page with the scoreboard and every figure."""

from __future__ import annotations

import base64
import html
import math
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxstab.report.claims import Claim
from jaxstab.report.record import Entry, replace_file

TEMPLATE = Path(__file__).with_name("page.html")


def write_report(entries: Sequence[Entry], path: Path, about: Mapping[str, Any]) -> None:
    """Write the page; it needs no other file and no network."""
    claims = [c for e in entries for c in e.claims]
    verdicts = {v: sum(c.verdict == v for c in claims) for v in dict.fromkeys(c.verdict for c in claims)}
    page = string.Template(TEMPLATE.read_text()).substitute(
        contents="".join(f'<a href="#{e.name}">{_text(e.name)}</a>' for e in entries),
        summary=_text(", ".join(f"{n} {v}" for v, n in verdicts.items()) or "no claims"),
        scoreboard=_scoreboard(claims),
        experiments="".join(_section(e) for e in entries),
        environment=_text(
            f"{', '.join(f'{k} {v}' for k, v in about['versions'].items())}; Python {about['python']};"
            f" {', '.join(about['devices'])}; {about['platform']}"
        ),
    )
    replace_file(path, lambda temporary: temporary.write_text(page))


def _text(value: Any) -> str:
    return html.escape(str(value))


def _number(x: float | None) -> str:
    if x is None:
        return "–"
    return "∞" if math.isinf(x) else f"{x:.4g}"


def _scoreboard(claims: Sequence[Claim]) -> str:
    rows = []
    for c in claims:
        note = f"<small>{_text(c.note)}</small>" if c.note else ""
        lost = f"<small>{c.diverged} diverged</small>" if c.diverged else ""
        rows.append(
            f'<tr><td><a href="#{c.experiment}">{_text(c.experiment)}</a></td>'
            f"<td>{_text(c.quantity)}<small>{_text(c.source)}</small></td><td class=n>{_number(c.published)}</td>"
            f"<td class=n>{_number(c.median)}<small>{_number(c.low)} … {_number(c.high)}</small></td>"
            f"<td class=n>{_number(c.theory)}</td><td>{_strip(c)}</td><td class=n>{c.seeds}{lost}</td>"
            f'<td><span class="verdict {c.verdict.replace(" ", "-")}">{c.verdict}</span>{note}</td></tr>'
        )
    return "".join(rows)


def _strip(claim: Claim) -> str:
    """Where the published number falls among the seeds, as a mark on a strip from 0 to 100."""
    if claim.percentile is None:
        return "–"
    x = 2 + 0.96 * claim.percentile
    return (
        '<svg viewBox="0 0 100 14" class=strip><rect x="2" y="5" width="96" height="4" rx="2"/>'
        f'<rect class=core x="4.4" y="5" width="91.2" height="4"/><circle cx="{x:.1f}" cy="7" r="3.6"/></svg>'
        f"<small>{claim.percentile:.1f}</small>"
    )


def _section(entry: Entry) -> str:
    figures = "".join(
        f'<img alt="{_text(entry.question)}" src="data:image/png;base64,'
        f'{base64.b64encode(figure.read_bytes()).decode()}">'
        for figure in entry.figures
    )
    notes = "".join(f"<p class=note>{_text(note)}</p>" for note in entry.notes)
    paragraphs = "".join(f"<p>{_text(p)}</p>" for p in entry.text.split("\n\n") if p.strip())
    return (
        f'<section id="{entry.name}"><h2>{_text(entry.name)}<small>{entry.seconds:.0f} s</small></h2>'
        f"<p class=question>{_text(entry.question)}</p>{notes}{figures}<details><summary>about</summary>"
        f"{paragraphs}</details></section>"
    )
