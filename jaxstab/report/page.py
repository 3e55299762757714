"""The report: one self-contained HTML page. What was found, with figures and numbers; then what others printed."""

from __future__ import annotations

import collections
import html
import json
import math
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxstab.report import picture
from jaxstab.report.claims import PREDICTIONS, VERDICTS, Claim
from jaxstab.report.record import Entry, replace_file

TEMPLATE = Path(__file__).with_name("page.html")
EMBED = """
const ink = "currentColor", axis = {labelColor: ink, titleColor: ink, domainColor: ink, tickColor: ink, gridColor: ink,
  gridOpacity: .13, labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal"};
const config = {font: "system-ui, sans-serif", background: "transparent", view: {stroke: null}, axis,
  title: {color: ink, anchor: "start", fontSize: 13},
  legend: {labelColor: ink, titleColor: ink, titleFontWeight: "normal"}};
for (const chart of document.querySelectorAll(".chart")) {
  const spec = JSON.parse(chart.querySelector("script").textContent);
  if (spec.columns) spec.columns = Math.max(1, Math.min(spec.columns, Math.floor(chart.clientWidth / 335)));
  vegaEmbed(chart.querySelector("div"), spec, {actions: false, renderer: "svg", config}).catch(console.error);
}
"""
"""Draws every chart of the page, in its colours, in as many columns of panels as there is room for."""


def write_report(entries: Sequence[Entry], path: Path, about: Mapping[str, Any]) -> None:
    """Write the page; it needs no other file and no network. Experiments with a chart to play with come first."""
    entries = sorted(entries, key=lambda entry: entry.chart is None)
    claims = [c for e in entries for c in e.claims]
    published = [c for c in claims if c.published is not None]
    found = "".join(_section(e) for e in entries)
    page = string.Template(TEMPLATE.read_text()).substitute(
        contents="".join(
            f'<li><a href="#{_text(e.name)}">{_text(e.name.replace("_", " "))}</a>' for e in entries
        ),
        summary=_text(_summary(entries, claims)),
        experiments=found,
        twins=f":root {{ {picture.dark_twins(found)}}}",
        counts=_text(_count((c.verdict for c in published), VERDICTS) or "none"),
        scoreboard=_table(published, "published numbers", names=True) if published else "",
        environment=_text(
            f"{', '.join(f'{k} {v}' for k, v in about['versions'].items())}; Python {about['python']};"
            f" {', '.join(about['devices'])}; {about['platform']}"
        ),
        script=_script() if any(e.chart for e in entries) else "",
    )
    replace_file(path, lambda temporary: temporary.write_text(page))


def _text(value: Any) -> str:
    return html.escape(str(value))


def _prose(text: str) -> str:
    """Escaped text, what stands in `backticks` as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", _text(text))


def _number(x: float | None) -> str:
    if x is None or math.isnan(x):
        return "–"
    return f"{x + 0.0:.4g}".replace("inf", "∞").replace("-", "−")


def _count(words: Iterable[str], order: Sequence[str]) -> str:
    found = collections.Counter(words)
    return ", ".join(f"{found[word]} {word}" for word in order if found[word])


def _summary(entries: Sequence[Entry], claims: Sequence[Claim]) -> str:
    held = [c.prediction for c in claims if c.prediction]
    predictions = f", {len(held)} of them beside theory ({_count(held, PREDICTIONS)})" if held else ""
    printed = sum(c.published is not None for c in claims)
    kinds = f"{len(entries)} experiment{'s' * (len(entries) != 1)}"
    return f"{kinds}, {len(claims)} numbers{predictions}, {printed} beside a published number."


def _table(claims: Sequence[Claim], caption: str, names: bool = False) -> str:
    """Rows of claims; the column of published numbers only where one was, that of experiments where asked for."""
    printed = any(c.published is not None for c in claims)
    heads = (
        ["experiment"] * names + ["quantity", "measured"] + ["published"] * printed + ["theory", "verdict"]
    )
    head = "".join(f"<th scope=col{' class=n' if h in ('measured', 'theory') else ''}>{h}" for h in heads)
    rows = "".join(_row(c, names, printed) for c in claims)
    return (
        f'<div class=scroll tabindex=0 role=region aria-label="{_text(caption)}"><table>'
        f"<caption>{_text(caption)}</caption><thead><tr>{head}</thead><tbody>{rows}</tbody></table></div>"
    )


def _row(c: Claim, names: bool, printed: bool) -> str:
    named = (
        f'<td><a href="#{_text(c.experiment)}">{_text(c.experiment.replace("_", " "))}</a>' if names else ""
    )
    source = f"<small>{_text(c.source)}</small>" if c.published is not None else ""
    seeds = f"{c.seeds} seeds" if c.seeds > 1 else ""
    lost = f", {c.diverged} diverged" if c.diverged else ""
    spread = f"{_number(c.low)} … {_number(c.high)}<br>" if c.seeds > 1 else ""
    shown = f"<td data-is=published>{_number(c.published)}{_strip(c)}" if printed else ""
    fared = f"<small>{c.prediction}</small>" if c.published is not None and c.prediction else ""
    note = f"<small>{_text(c.note)}</small>" if c.note else ""
    return (
        f"<tr>{named}<td>{_text(c.quantity)}{source}"
        f"<td class=n data-is=measured>{_number(c.median)}<small>{spread}{seeds}{lost}</small>{shown}"
        f"<td class=n data-is=theory>{_number(c.theory)}{fared}"
        f'<td data-is=verdict><span class="word {c.word.replace(" ", "-")}">{c.word}</span>{note}'
    )


def _strip(claim: Claim) -> str:
    """Where the published number falls among the seeds, as a mark on a strip from 0 to 100."""
    if claim.percentile is None or claim.seeds < 2 or claim.verdict == "not comparable":
        return ""
    x = 2 + 0.96 * claim.percentile
    return (
        '<svg viewBox="0 0 100 14" class=strip aria-hidden=true><rect x="2" y="5" width="96" height="4" rx="2"/>'
        f'<rect class=core x="4.4" y="5" width="91.2" height="4"/><circle cx="{x:.1f}" cy="7" r="3.6"/></svg>'
        f"<small>percentile {claim.percentile:.1f}</small>"
    )


def _section(entry: Entry) -> str:
    """Question, answer, what must be said aloud, chart, figures, numbers, and how it was done."""
    name, question = _text(entry.name), _prose(entry.question)
    answer = f"<p class=answer>{_prose(entry.answer)}</p>" if entry.answer else ""
    notes = "".join(f"<p class=note>{_prose(note)}</p>" for note in entry.notes)
    numbers = ""
    if entry.claims:
        open_ = " open" if len(entry.claims) <= 10 else ""
        table = _table(entry.claims, f"numbers of {entry.name.replace('_', ' ')}")
        numbers = f"<details{open_}><summary>Numbers ({len(entry.claims)})</summary>{table}</details>"
    paragraphs = "".join(f"<p>{_prose(p)}</p>" for p in entry.text.split("\n\n") if p.strip())
    about = f"<details><summary>How it was done</summary>{paragraphs}</details>" if paragraphs else ""
    return (
        f'<article id="{name}" aria-labelledby="{name}-question"><h3 id="{name}-question">{question}</h3>'
        f"<small>{name.replace('_', ' ')}, {entry.seconds:.0f} s</small>{answer}{notes}{_chart(entry)}"
        f"{''.join(_figure(path) for path in entry.figures)}{numbers}{about}</article>"
    )


def _figure(path: Path) -> str:
    svg, width = picture.inline(path.with_suffix(".svg").read_text())
    paper = " paper" if "<image" in svg else ""
    return f'<div class="figure{paper}" style="--width: {width:.0f}px">{svg}</div>'


def _chart(entry: Entry) -> str:
    if entry.chart is None:
        return ""
    spec = json.dumps(entry.chart, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
    without = "<noscript>To choose here, JavaScript is needed; all else on this page does without.</noscript>"
    return f'<div class=chart>{without}<div></div><script type="application/json">{spec}</script></div>'


def _script() -> str:
    """Vega, Vega-Lite and its embedding, whole, and what draws the charts."""
    import vl_convert

    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")
    return f"<script>{bundle}</script><script>{EMBED}</script>"
