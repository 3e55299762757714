"""`diagnose`: what is wrong with a model, by layer and source line, and what to change."""

from __future__ import annotations

import dataclasses
import html
import json
import math
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

import numpy as np
import xarray as xr

from jaxstab.diagnosis import draws, layers, nonfinite, precision, scales, trends
from jaxstab.diagnosis.evidence import Evidence, gather
from jaxstab.diagnosis.findings import Finding, in_order, number
from jaxstab.diagnosis.subject import subject_of
from jaxstab.errors import UnstableError, UsageError
from jaxstab.formats import format_of, name_of_format
from jaxstab.observation.marks import BACKWARD, FORWARD


@dataclasses.dataclass(frozen=True, eq=False)
class Diagnosis:
    """What was found in a model. It prints as a text; in a notebook as one with a table.

    `findings` are ordered by gravity; `calls` holds rms, absmax, ... of every module call over (seed, site,
    iterations), forward and backward; `operations` the fields of `what_if` of every operation over (dtype, seed,
    site, iterations).
    """

    name: str
    findings: tuple[Finding, ...]
    calls: xr.Dataset
    operations: xr.Dataset
    seeds: int
    dtypes: tuple[str, ...]

    @property
    def is_grave(self) -> bool:
        """Whether anything grave was found."""
        return any(f.gravity == "grave" for f in self.findings)

    def headroom_bits(self, dtype: str) -> float:
        """Bits between the largest magnitude that any operation stores in the format, in any seed, and its end."""
        name = self._dtype(dtype)
        stored = self.operations.sel(dtype=name)
        stored = stored.isel(site=np.flatnonzero((stored["stored_dtype"] == name).values))
        return float(stored["headroom"].min()) if stored.sizes["site"] else math.inf

    def require(self, dtype: str = "float32", headroom_bits: float = 0.0) -> None:
        """Return if nothing grave was found in the run or in `dtype`, and `headroom_bits` are left; else raise.

        jaxstab's `UnstableError`, an AssertionError, with the finding: for a test of your own.
        """
        found = [f for f in self.findings if f.gravity == "grave" and f.dtype in ("", name_of_format(dtype))]
        if found:
            raise UnstableError(str(found[0]))
        if name_of_format(dtype) == "float32":
            return
        left = self.headroom_bits(dtype)
        if left < headroom_bits:
            name = self._dtype(dtype)
            at = self.operations.sel(dtype=name).where(self.operations.stored_dtype.sel(dtype=name) == name)
            low = at["headroom"].min([d for d in at["headroom"].dims if d != "site"])
            site = self.operations.isel(site=int(low.argmin("site")))
            raise UnstableError(
                f"{number(left)} bits of headroom in {name} at {site.path.item()} ({site.kind.item()},"
                f" {site.direction.item()}, {site.source.item()}); {headroom_bits:g} were required."
            )

    def _dtype(self, dtype: str) -> str:
        name = name_of_format(dtype)
        if name not in self.dtypes:
            raise UsageError(
                f"dtype {dtype!r} was not diagnosed. Choices: {', '.join(self.dtypes) or 'none'}."
            )
        return name

    def to_json(self) -> str:
        """The findings and what was run, as one JSON object."""
        return json.dumps({
            "model": self.name, "seeds": self.seeds, "dtypes": list(self.dtypes), "grave": self.is_grave,
            "findings": [f.to_dict() for f in self.findings],
        })  # fmt: skip

    def __str__(self) -> str:
        counts = {g: sum(f.gravity == g for f in self.findings) for g in ("grave", "warning", "note")}
        seeds = f"{self.seeds} seed{'s' if self.seeds > 1 else ''}"
        said = ", ".join(f"{n} {g}{'s' if n > 1 and g != 'grave' else ''}" for g, n in counts.items() if n)
        head = f"{self.name}, {seeds}, {', '.join(('float32', *self.dtypes))}: {said or 'nothing found'}"
        return "\n".join([head, *map(str, self.findings)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(str(x))}</td>" for x in (
                f.gravity, f.kind + (f" [{f.dtype}]" if f.dtype else ""), f.path, f.source, f.evidence, f.remedy,
            )) + "</tr>"
            for f in self.findings
        )  # fmt: skip
        head = "".join(f"<th>{x}</th>" for x in ("gravity", "kind", "path", "source", "evidence", "remedy"))
        title = html.escape(str(self).splitlines()[0])
        return f"<p>{title}</p><table><tr>{head}</tr>{rows}</table>" if rows else f"<p>{title}</p>"

    def plot(self, ax: Any = None) -> Any:
        """Every call forward and backward, in the order of the program: a matplotlib Axes.

        rms (median over seeds, band from the 5th to the 95th percentile), largest magnitude (dotted), and the largest
        number of each format that was asked for where that is near; iterations of a scan one by one.
        """
        import matplotlib.pyplot as plt

        if ax is None:
            _, ax = plt.subplots(figsize=(7, 4), layout="constrained")
        for direction, label in ((FORWARD, "signal"), (BACKWARD, "gradient")):
            levels, most = (_levels(self.calls, direction, what) for what in ("rms", "absmax"))
            if levels.size:
                places = np.arange(levels.shape[1])
                with warnings.catch_warnings():  # a call that gives zeros alone has no place on the axis
                    warnings.filterwarnings("ignore", "All-NaN")
                    low, middle, high = np.nanquantile(levels, [0.05, 0.5, 0.95], axis=0)
                    largest = np.nanmax(most, axis=0)
                (line,) = ax.plot(places, middle, marker=".", label=f"{label}, rms")
                ax.fill_between(places, low, high, color=line.get_color(), alpha=0.25, lw=0)
                ax.plot(places, largest, ":", color=line.get_color(), label=f"{label}, largest")
        band = f"call, in order of the forward pass (band: 5 to 95 % of {self.seeds} seeds)"
        ax.set(yscale="log", xlabel=band, ylabel="magnitude", title=str(self).splitlines()[0])
        for dtype in self.dtypes:
            end = format_of(dtype).largest
            if end < 100 * ax.get_ylim()[1]:
                ax.axhline(end, color="0.5", linestyle="--", label=f"{dtype} ends")
        ax.legend()
        return ax


def _levels(calls: xr.Dataset, direction: str, statistic: str) -> np.ndarray:
    """A statistic (seed, calls and iterations in order of the forward pass) of the innermost calls; NaN if not > 0."""
    sites = np.flatnonzero((calls["direction"] == direction).values)
    paths = [str(p) for p in calls["path"].values]
    sites = [i for i in sites if not any(p.startswith(paths[i] + "/") for p in paths)]
    if direction == BACKWARD:
        order = {p: k for k, p in reversed(list(enumerate(p for p in paths)))}
        sites.sort(key=lambda i: order[paths[i]])
    if not sites:
        return np.zeros((0, 0))
    columns = [calls[statistic].isel(site=i).values.reshape(calls.sizes["seed"], -1) for i in sites]
    kept = [c[:, ~np.all(np.isnan(c), axis=0)] for c in columns]
    levels = np.concatenate(kept, axis=1)
    return np.where(levels > 0, levels, np.nan)


def diagnose(
    model: Any,
    *inputs: Any,
    loss: Callable[[Any], Any] | None = None,
    variables: Any = None,
    rngs: Any = None,
    seeds: int = 8,
    dtypes: Sequence[Any] = ("bfloat16", "float16"),
    ignore: Collection[str] = (),
    apply_kwargs: Mapping[str, Any] | None = None,
) -> Diagnosis:
    """Run a model forward and backward and say what is wrong with it: which layer, which line, what to change.

    `model` is a linen module, drawn here for each of `seeds` or with its `variables`; an NNX or Equinox module; or a
    function whose first input holds the parameters. `inputs` are what it is called with: the first axis is taken to
    be the batch. `loss(output)` is one number; without it the gradient is that of a random linear read-out. `rngs` are
    names and keys ({"dropout": key}), folded with each seed. `apply_kwargs` go to the call (train=True, mutable,
    method). What `what_if` says of `dtypes` is part of it. `ignore` lists paths of parameters that are frozen on
    purpose.

        print(jaxstab.diagnose(model, x, loss=lambda y: ((y - t) ** 2).mean()))

    Seeds draw parameters where they are drawn here, else the rngs; where there is nothing to draw, one is run.
    UsageError for input that cannot be meant, before anything is compiled.
    """
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise UsageError(f"seeds={seeds!r}: a number of at least 1 is wanted.")
    if isinstance(dtypes, str):
        dtypes = (dtypes,)
    names = tuple(name_of_format(d) for d in dtypes)
    if isinstance(ignore, str):
        raise UsageError(f"ignore={ignore!r}: a list of paths is wanted.")
    subject = subject_of(model, inputs, variables, rngs, apply_kwargs)
    evidence = gather(subject, loss, seeds if subject.is_random else 1, names or ("float32",))
    unknown = [p for p in ignore if not any(layers.is_under(n, p) for n in evidence.parameters)]
    if unknown:
        raise UsageError(
            f"ignore: no parameter under {unknown[0]!r}. Choices: {', '.join(evidence.parameters)}."
        )
    return Diagnosis(
        subject.name, findings_of(evidence, ignore), evidence.calls.to_dataset(axes=("seed",)), _operations(evidence),
        evidence.seeds, names,
    )  # fmt: skip


def findings_of(evidence: Evidence, ignore: Collection[str] = ()) -> tuple[Finding, ...]:
    """All findings of what was seen, the gravest first."""
    with np.errstate(invalid="ignore", over="ignore"):
        found = [
            *nonfinite.not_finite(evidence), *nonfinite.swallowed(evidence),
            *layers.cut_off(evidence, ignore), *scales.scales(evidence),
            *trends.trends(evidence), *layers.alike(evidence), *precision.lost_in_format(evidence),
            *nonfinite.hidden(evidence), *draws.random(evidence),
        ]  # fmt: skip
    return in_order(found)


def _operations(evidence: Evidence) -> xr.Dataset:
    """Every format's table, along the dimension dtype; `stored_dtype` says which values are rounded."""
    tables = []
    for name, run in evidence.rehearsals.items():
        table = run.seen.to_dataset(axes=("seed",))
        with np.errstate(divide="ignore"):
            table["headroom"] = np.log2(format_of(name).largest / table["absmax"])
        table["headroom"].attrs = {"long_name": "largest number over largest magnitude", "units": "bit"}
        table["stored_dtype"] = (
            "site",
            table["dtype"].values,
            {"long_name": "dtype it is stored in", "units": "1"},
        )
        tables.append(table.drop_vars("dtype"))
    along = xr.Variable("dtype", list(evidence.rehearsals))
    return cast(xr.Dataset, xr.concat(tables, dim=along, join="outer", coords="minimal", compat="override"))
