"""What figures share: one style, bands over seeds that forget no diverged lane, and theory's dashes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from jaxstab.engine import summary
from jaxstab.errors import UsageError, require_choice

STYLE = Path(__file__).with_name("jaxstab.mplstyle")
# but for theory's, these and the style's own cycle stand out from white and from #15191e by 3:1 at least, and are told
# apart without red and green
MEASURED = "#4a99d9"
THEORY = "#222222"
"""Dark, to be seen on a measured line that it lies upon; a dark page draws it in its own ink (`picture.inline`)."""
PUBLISHED = "#d6131c"
RANGE = {"color": "#37a85e", "alpha": 0.15, "linewidth": 0}
"""A range that is wanted, shaded."""


@contextlib.contextmanager
def style() -> Iterator[None]:
    """jaxstab's style, drawn without a screen."""
    import matplotlib  # here: what draws nothing starts sooner

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    with plt.style.context(STYLE):
        yield


def require_picture(path: Path) -> None:
    """UsageError for a file that no picture can be written to; its folder is made."""
    from matplotlib.backend_bases import FigureCanvasBase

    require_choice(
        path.suffix[1:].lower(), FigureCanvasBase.get_supported_filetypes(), "format of --plot's file:"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--plot {path}: cannot be written ({error}).") from None


def save(figure: Any, path: Path) -> None:
    """Write the picture that --plot asked for, and let go of the figure; its folder is made."""
    import matplotlib.pyplot as plt

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"--plot {path}: cannot be written ({error}).") from None
    finally:
        plt.close(figure)


def quantiles(values: xr.DataArray, level: float = 0.95, dim: str = "seed") -> tuple[Any, Any, Any]:
    """(low, median, high) over seeds by `summary.quantiles`, which forgets no diverged lane."""
    low, median, high = summary.quantiles(values, ((1 - level) / 2, 0.5, (1 + level) / 2), dim)
    return low, median, high


def band(axes: Any, values: xr.DataArray, x: str = "layer", level: float = 0.95, **line: Any) -> None:
    """The median over seeds against `x`, and the central `level` as a band; gaps where it is not finite."""
    low, median, high = (q.where(np.isfinite(q)) for q in quantiles(values, level))
    (drawn,) = axes.plot(values[x], median, **line)
    axes.fill_between(values[x], low, high.fillna(median), color=drawn.get_color(), alpha=0.2, linewidth=0)


def theory(axes: Any, x: Any, y: Any, **line: Any) -> None:
    """A prediction: dashed and dark, over the measurement; where it is nowhere known, without a name in the legend."""
    if not np.isfinite(y).any():
        line.pop("label", None)
    axes.plot(x, y, **{"color": THEORY, "linestyle": (0, (4, 2)), "linewidth": 1.1, **line})


def describe(figure: Any, text: str) -> None:
    """Say what the figure shows, for whoever cannot see it: matplotlib's own label, which a page gives as `alt`."""
    figure.set_label(text)


def note(figure: Any, *parts: str) -> None:
    """What bands and dashes are, in the lower right corner; a legend without lines, for which the layout makes room."""
    figure.legend(handles=[], title="; ".join(parts), loc="outside lower right", title_fontsize=7.5)


def of_seeds(count: int, what: str = "seeds") -> str:
    """What `band` draws."""
    return f"line: median, band: 95 % of {count:,} {what}"


def label_lines(axes: Any, fontsize: float = 8) -> None:
    """Each labelled line's name where it ends or leaves the panel, in its colour, in place of a legend.

    Names keep a line's height apart. For limits that are set already.
    """
    named = [line for line in axes.get_lines() if not line.get_label().startswith("_")]
    placed = [[*place, line] for line in named if (place := _end_of(axes, line)) is not None]
    placed.sort(key=lambda one: one[1])
    height = 1.25 * fontsize / 72 / (axes.get_position().height * axes.figure.get_figheight())
    lowest = height / 2
    for x, y, line in placed:
        y = max(y, lowest)
        lowest = y + height
        place = {"xy": (x, y), "xytext": (4, 0), "xycoords": "axes fraction", "textcoords": "offset points"}
        axes.annotate(line.get_label(), **place, color=line.get_color(), fontsize=fontsize, va="center")


def _end_of(axes: Any, line: Any) -> tuple[float, float] | None:
    """Where a line ends or leaves the panel, in fractions of it; None where it never is inside."""
    to_fraction = axes.transData + axes.transAxes.inverted()
    points = to_fraction.transform(np.column_stack([np.asarray(v, float) for v in line.get_data()]))
    points = points[np.isfinite(points).all(axis=1)]
    inside = np.flatnonzero((points >= -1e-6).all(axis=1) & (points <= 1 + 1e-6).all(axis=1))
    if not inside.size:
        return None
    last = points[inside[-1]]
    if inside[-1] + 1 < len(points):
        ahead = points[inside[-1] + 1] - last
        edge = 1.0 if ahead[1] > 0 else 0.0
        share = (edge - last[1]) / ahead[1] if ahead[1] else 0.0
        last = last + min(max(share, 0.0), 1.0) * ahead
    return float(last[0]), float(min(last[1], 0.96))


def plain_ticks(axis: Any, ticks: Any) -> None:
    """These numbers as they are written, and no others: for a logarithmic axis that spans a decade or two."""
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_ticks([], minor=True)


def histogram(axes: Any, sample: Any, bins: int = 60, **patch: Any) -> None:
    """Density of a sample's finite values."""
    finite = np.asarray(sample, float)
    finite = finite[np.isfinite(finite)]
    axes.hist(finite, bins=bins, density=True, **{"color": MEASURED, "alpha": 0.45, "linewidth": 0, **patch})


def diverged(values: xr.DataArray, dim: str = "seed") -> str:
    """`` or a remark on how many seeds diverged, for a title."""
    numbers = values.transpose(dim, ...).values.reshape(values.sizes[dim], -1)
    count = int(summary.is_diverged(numbers).any(axis=1).sum())
    return f" ({count} of {values.sizes[dim]} seeds diverged)" if count else ""
