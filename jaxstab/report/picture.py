"""Matplotlib's SVG as a part of a page: ink in the page's own colour, a palette that knows the dark, ids its own."""

from __future__ import annotations

import colorsys
import html
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from jaxstab.report import figures

INK = "#1d2730"
COLOURED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
STYLE: Mapping[Any, Any] = MappingProxyType({**dict.fromkeys(COLOURED, INK), "svg.fonttype": "none"})
"""Settings of matplotlib: text and axes are drawn in `INK`, and text stays text."""
SILENT = MappingProxyType(dict.fromkeys(("Creator", "Date", "Format", "Type")))
"""Metadata that would only make files differ."""
UNSEEN = r"<title>.*?</title>|<metadata>.*?</metadata>|<style\b.*?</style>|<!--.*?-->"
NOTES = r'<g id="notes">.*?</g>'
TIDIED = (
    (r'(?<=<g) id="[^"]*"', ""),  # nothing points to a group; clip paths and markers keep theirs
    (r' ?font-family: [^;"]*;?| transform="rotate\(-0 [^"]*"', ""),  # the page's own font
    (r"\n", " "),
)
RECOLOURED = (
    (f"{INK}|{figures.THEORY}|#000000", "currentColor"),
    ("#ffffff", "var(--paper)"),
    (r"#([0-9a-f]{6})\b", r"var(--x\1, #\1)"),
)
"""Pattern -> what a tag has in its place."""
WEIGHTS = (0.2126, 0.7152, 0.0722)
"""Of red, green and blue in the luminance."""
DARK = "#14191e"
"""The page's paper in the dark (page.html)."""


def inline(svg: str) -> tuple[str, float]:
    """(the `<svg>` element for a page, its natural width in points); its title becomes its label, its notes go.

    Ink, theory and black take the page's colour, white its paper's; other colours become variables that `dark_twins`
    sets. A figure with a mesh of pixels keeps all of them (the page leaves it on white paper): a line over the mesh
    must stay as dark as it was chosen.
    """
    head = re.search(r'<svg\b[^>]*?viewBox="0 0 ([\d.]+) ([\d.]+)"[^>]*>', svg)
    if head is None:
        raise ValueError("not an SVG of matplotlib's.")
    body = svg[head.end() :]
    title = re.search(r"<title>(.*?)</title>", body, re.S)
    body = re.sub(f"{UNSEEN}|{NOTES}", "", body, flags=re.S)
    body = re.sub(
        r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), body
    )  # hundredths of a point
    changes = TIDIED if "<image" in body else TIDIED + RECOLOURED
    body = re.sub(r"<[^>]+>", lambda tag: _changed(tag[0], changes), body)
    label = html.escape(html.unescape(title[1]).strip()) if title else ""
    return f'<svg viewBox="0 0 {head[1]} {head[2]}" role="img" aria-label="{label}">{body}', float(head[1])


def _changed(tag: str, changes: Sequence[tuple[str, str]]) -> str:
    for pattern, new in changes:
        tag = re.sub(pattern, new, tag)
    return tag


def dark_twins(page: str) -> str:
    """CSS that gives every colour variable of a page's figures the lightness to be read on dark paper."""
    names = sorted(set(re.findall(r"var\(--x([0-9a-f]{6})", page)))
    return "".join(f"--x{name}: {lightened(f'#{name}')}; " for name in names)


def lightened(colour: str, contrast: float = 4.5) -> str:
    """`#rrggbb` of the same hue, light enough for a contrast with `DARK`."""
    hue, light, saturation = colorsys.rgb_to_hls(*_rgb(colour))
    while _contrast(colour, DARK) < contrast:
        light += 0.01
        colour = "#" + "".join(f"{round(255 * x):02x}" for x in colorsys.hls_to_rgb(hue, light, saturation))
    return colour


def _rgb(colour: str) -> list[float]:
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def _contrast(one: str, other: str) -> float:
    """Contrast ratio of WCAG 2.2, from relative luminances in sRGB."""
    dark, light = sorted(float(np.dot(WEIGHTS, _linear(np.array(_rgb(c))))) for c in (one, other))
    return (light + 0.05) / (dark + 0.05)


def _linear(srgb: np.ndarray) -> np.ndarray:
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
