"""Play with it: which activation, initialization, gain, bias and depth let a signal and its gradient through?

Every setting of the panel was measured: `seeds` networks of the given width and one input each, their layers drawn in
law; the chart shows the root mean square of each layer's activations, and of the gradient of a random linear read-out
of the last layer with respect to them. Dashes are mean-field theory (infinite width), and on the plane of
(sigma_w, sigma_b) the line where a gradient neither grows nor shrinks, chi = 1 (Poole et al. 2016; Schoenholz et
al. 2017).

Layers are square, so that LeCun's and Xavier's normal weights are the same law, of standard deviation
gain / sqrt(width), and Kaiming's is sqrt(2) times that; sigma_w is gain or sqrt(2) gain. The activation is a number of
the program, and so one program serves all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Array

import jaxstab
from jaxstab import random
from jaxstab.nets.conditioned import gaussian_layer, haar_layer
from jaxstab.report import figures
from jaxstab.report.claims import Claim
from jaxstab.report.record import Record
from jaxstab.report.words import percent
from jaxstab.scaling import rms
from jaxstab.theory.activations import resolve

if TYPE_CHECKING:
    import altair
    from matplotlib.figure import Figure

ACTIVATIONS = ("tanh", "sigmoid", "relu", "gelu", "selu", "linear")
LAWS = {
    "LeCun or Xavier normal": ("lecun_normal", 1.0),
    "Kaiming normal": ("lecun_normal", np.sqrt(2.0)),
    "orthogonal": ("orthogonal", 1.0),
}
"""name -> (initialization, sigma_w at gain 1)."""
DEPTHS = (10, 20, 40)
SIGMA_B = (0.0, 0.05, 0.2, 0.5)
SIGNALS = {"signal": "log10_forward_rms", "gradient": "log10_backward_rms"}
TITLES = {"signal": "signal, on its way forward", "gradient": "gradient, on its way back"}
CHOSEN = (
    "datum.activation == the_activation && datum.law == the_initialization && datum.depth == the_depth"
    " && datum.sigma_b == the_sigma_b && abs(datum.gain - the_gain) < 1e-6"
)
"""A filter: the setting that the reader has chosen."""


@dataclasses.dataclass(frozen=True)
class Config:
    """`gains` values from 0.5 to 2."""

    seeds: int = 16
    gains: int = 16
    width: int = 128


SCALES = {"smoke": Config(seeds=4, gains=4, width=32), "default": Config(), "full": Config(256, 31, 512)}


@jaxstab.family(dims={"signal": ("layer",), "gradient": ("cut", "layer")})
def stack(
    key: Array, *, activation: float, gain: float, sigma_b: float, is_orthogonal: bool, width: int
) -> dict[str, Array]:
    """log10 rms by layer of the signal [layer], and of the gradient of a stack cut at each of DEPTHS [cut, layer]."""
    layers_key, input_key, readout_key = random.split(key, 3)
    choices = [resolve(name) for name in ACTIVATIONS]
    matrix = haar_layer if is_orthogonal else partial(gaussian_layer, units=width)
    std = gain if is_orthogonal else gain / np.sqrt(width)

    def layer(h: Array, nudged: tuple[Array, Array]) -> tuple[Array, Array]:
        number, nudge = nudged
        weight_key, bias_key = random.split(random.fold_in(layers_key, number))
        z = matrix(weight_key, h, std) + sigma_b * random.normal(bias_key, (1, width))
        h = jax.lax.switch(jnp.int32(activation), choices, z) + nudge
        return h, h

    def states(nudges: Array) -> Array:
        first = random.normal(input_key, (1, width))
        return jax.lax.scan(layer, first, (jnp.arange(len(nudges)), nudges))[1]

    seen, pull = jax.vjp(states, jnp.zeros((DEPTHS[-1], 1, width)))
    readout = random.normal(readout_key, (1, width))
    cuts = jnp.stack([jnp.zeros_like(seen).at[depth - 1].set(readout) for depth in DEPTHS])
    (gradients,) = jax.vmap(pull)(cuts)
    log_rms = lambda x: jnp.log10(jax.vmap(rms)(x))  # noqa: E731
    return {"signal": log_rms(seen), "gradient": jax.vmap(log_rms)(gradients)}


def run(config: Config) -> Record:
    """Every setting, measured and predicted, and the critical line of each activation that has one."""
    gains = np.linspace(0.5, 2.0, config.gains).round(3)
    laws = [measure(config, gains * factor, init) for init, factor in LAWS.values()]
    data = xr.concat([one.assign_coords(gain=gains) for one in laws], "law").assign_coords(law=list(LAWS))
    data["gradient"] = data.gradient.where(data.layer <= data.depth)
    line = np.linspace(0.0, 0.6, 13)
    critical = [[critical_sigma_w(name, b) for b in line] for name in ACTIVATIONS]
    return Record(data.assign(critical=(("activation", "line"), np.array(critical))).assign_coords(line=line))


def measure(config: Config, sigma_w: np.ndarray, init: str) -> xr.Dataset:
    """`signal` and `gradient` (seeds, theory) at every activation, gain, sigma_b and depth of one initialization."""
    plane = {"gain": sigma_w, "sigma_b": np.array(SIGMA_B), "width": config.width}
    numbers = np.arange(len(ACTIVATIONS), dtype=float)
    networks = jaxstab.grid(activation=numbers, **plane, is_orthogonal=init == "orthogonal")
    measured = jaxstab.sweep(stack, networks, config.seeds)[list(SIGNALS)].rename(cut="depth")
    names = {"activation": list(ACTIVATIONS), "depth": list(DEPTHS)}
    theory = jaxstab.predict(jaxstab.grid(**names, **plane, init=init, batch=1))
    theory = theory[list(SIGNALS.values())].rename({v: f"{k}_theory" for k, v in SIGNALS.items()})
    one = measured.assign_coords(**names, layer=theory.layer.values)
    return xr.merge([x.reset_coords(drop=True) for x in (one, theory)])


def critical_sigma_w(activation: str, sigma_b: float) -> float:
    """sigma_w at the edge of chaos, NaN where there is none."""
    try:
        return jaxstab.critical_initialization(activation, sigma_b)[0]
    except jaxstab.UsageError:
        return float("nan")


def plot(record: Record) -> dict[str, Figure]:
    """The gradient at the first layer of the deepest stack against sigma_w, for every activation without biases."""
    import matplotlib.pyplot as plt

    data = record.data.sel(depth=DEPTHS[-1], layer=1, law="LeCun or Xavier normal", sigma_b=0.0)
    figure, panels = plt.subplots(2, 3, figsize=(9, 4.6), sharex=True, sharey=True)
    for panel, name in zip(panels.flat, ACTIVATIONS, strict=True):
        one = data.sel(activation=name)
        figures.band(panel, one.gradient, x="gain", label="median and 95 % of seeds")
        figures.theory(panel, one.gain, one.gradient_theory, label="infinite width")
        panel.set_title(name)
    panels[0, 0].legend()
    figure.supxlabel("sigma_w", fontsize=9.5)
    figure.supylabel(f"log10 gradient at the first of {DEPTHS[-1]} layers", fontsize=9.5)
    figure.set_label(
        f"Six panels, one for each activation: logarithm of the gradient at the first of {DEPTHS[-1]} layers against"
        " sigma_w, measured and predicted. Each rises; where it passes zero the initialization is critical."
    )
    return {"gradient": figure}


def chart(record: Record) -> altair.VConcatChart | altair.ConcatChart:
    """Signal and gradient by layer, and the place in the phase diagram, for a setting that the reader chooses."""
    import altair as alt

    def chosen(label: str, value: Any, **choices: Any) -> altair.Parameter:
        binding = alt.binding_select if "options" in choices else alt.binding_range
        return alt.param(
            name=f"the_{label.split()[0]}", value=value, bind=binding(name=f"{label} ", **choices)
        )

    gains, seeds = record.data.gain.values.tolist(), record.data.sizes["seed"]
    told = [
        f"line: median, band: 95 % of {seeds} networks",
        "dashes: theory; over (sigma_w, sigma_b): chi = 1",
    ]
    parameters = [
        chosen("activation", "tanh", options=list(ACTIVATIONS)),
        chosen("initialization", next(iter(LAWS)), options=list(LAWS)),
        chosen("gain", 1.5, min=gains[0], max=gains[-1], step=round(gains[1] - gains[0], 3)),
        chosen("sigma_b (biases)", SIGMA_B[0], options=list(SIGMA_B)),
        chosen("depth", DEPTHS[-1], options=list(DEPTHS)),
    ]
    table = alt.NamedData("settings", format=alt.CsvDataFormat(type="csv"))  # one copy for every panel
    panels = [curves(table, name, title) for name, title in TITLES.items()]
    return (
        alt.concat(
            *panels, plane(table, record), columns=3, spacing={"row": 75, "column": 65}, bounds="flush"
        )
        .resolve_scale(color="independent")
        .add_params(*parameters)
        .properties(
            title=alt.Title(told, orient="bottom", fontSize=12, fontWeight="normal"),
            description="Signal and gradient by layer, measured and predicted, and the place in the phase diagram.",
            datasets={"settings": settings(record).to_csv(index=False)},
        )
    )


def curves(table: altair.Data, name: str, title: str) -> altair.LayerChart | altair.FacetChart:
    """log10 rms by layer: median and band over seeds, and theory dashed."""
    import altair as alt

    ends = {"median": name, **{end: f"{name}_{end}" for end in ("low", "high", "theory")}}
    base = (
        alt.Chart(table)
        .transform_filter(CHOSEN)
        .transform_calculate(
            layer="split(datum.layers, ' ')", **{k: f"split(datum.{v}, ' ')" for k, v in ends.items()}
        )
        .transform_flatten(["layer", *ends])
        .transform_calculate(**{k: f"toNumber(datum.{k})" for k in ("layer", *ends)})
        .encode(x=alt.X("layer:Q", title="layer", scale=alt.Scale(nice=False)))
    )
    y = partial(alt.Y, title="log10 rms", scale=alt.Scale(domain={"unionWith": [-0.5, 0.5]}))
    band = base.mark_area(opacity=0.3, color="var(--blue)").encode(y("low:Q"), alt.Y2("high:Q"))
    line = base.mark_line(color="var(--blue)").encode(y("median:Q"))
    theory = base.mark_line(stroke="currentColor", strokeDash=[5, 3]).encode(y("theory:Q"))
    return alt.layer(band, line, theory).properties(width=265, height=220, title=title)


def plane(table: altair.Data, record: Record) -> altair.LayerChart | altair.FacetChart:
    """Every setting of this activation, initialization and depth in the plane; the colour tells the gradient."""
    import altair as alt

    line = record.data.critical.to_dataframe().reset_index().dropna().round(3)
    here = "datum.activation == the_activation"
    x = alt.X("sigma_w:Q", title="sigma_w", scale=alt.Scale(domain=[0.4, 3], clamp=True))
    y = alt.Y("sigma_b:Q", title="sigma_b", scale=alt.Scale(domain=[-0.03, 0.6]))
    colour = alt.Color(
        "growth:Q",
        title="log10 gradient at layer 1",
        scale=alt.Scale(domain=[-3, 0, 3], range=["#3f83d1", "#8d99a3", "#e0563f"], clamp=True),
        legend=alt.Legend(orient="bottom"),
    )
    alike = f"{here} && datum.law == the_initialization && datum.depth == the_depth"
    points = alt.Chart(table).transform_filter(alike).mark_circle(size=60, opacity=1).encode(x, y, colour)
    one = alt.Chart(table).transform_filter(CHOSEN)
    ring = one.mark_point(size=220, stroke="currentColor", strokeWidth=2).encode(x, y)
    critical = (
        alt.Chart(line.rename(columns={"critical": "sigma_w", "line": "sigma_b"}))
        .transform_filter(f"{here} && datum.sigma_w < 3")
        .mark_line(
            stroke="currentColor",
            strokeDash=[5, 3],
            point=alt.OverlayMarkDef(shape="cross", color="currentColor"),
        )
        .encode(x, y, order="sigma_b:Q")
    )
    return alt.layer(points, critical, ring).properties(
        width=265, height=180, title="this network among all others"
    )


def settings(record: Record) -> pd.DataFrame:
    """A row for each setting; what depends on the layer is a text of numbers, one a layer shown."""
    data = record.data.drop_vars(["critical", "line"])
    columns = {}
    for name in SIGNALS:
        low, median, high = (q.drop_vars("quantile") for q in figures.quantiles(data[name]))
        ends = {"": median, "_low": low, "_high": high, "_theory": data[f"{name}_theory"]}
        columns |= {
            f"{name}{end}": values.broadcast_like(data.gradient_theory) for end, values in ends.items()
        }
    rows = []
    for depth in DEPTHS:
        layers = np.unique(np.linspace(1, depth, 20).round().astype(int))
        one = xr.Dataset(columns).sel(depth=depth, layer=layers)
        stacked = one.stack(row=["law", "activation", "gain", "sigma_b"]).transpose("row", "layer")
        texts = {name: [spell(row) for row in stacked[name].values] for name in columns}
        frame = pd.DataFrame(texts).assign(layers=" ".join(map(str, layers)), depth=depth)
        names = {name: stacked[name].values for name in ("law", "activation", "gain", "sigma_b")}
        rows.append(frame.assign(**names, growth=stacked["gradient"].values[:, 0].round(2)))
    frame = pd.concat(rows)
    return frame.assign(sigma_w=(frame.gain * frame.law.map({k: v[1] for k, v in LAWS.items()})).round(3))


def spell(numbers: np.ndarray) -> str:
    """Numbers to three digits, as one text; nothing where there is none (theory ends where width and depth end it)."""
    return " ".join(f"{x:.3g}" if np.isfinite(x) else "" for x in numbers.round(3))


def claims(record: Record) -> Iterator[Claim]:
    """None: this is for looking."""
    yield from ()


def findings(record: Record) -> str:
    """How few settings let a gradient through, and how far theory is from the measured medians."""
    first = record.data.sel(depth=DEPTHS[-1], layer=1)
    measured = figures.quantiles(first.gradient)[1]
    kept = float((abs(measured) < 1).mean())
    off = float(abs(measured - first.gradient_theory).median())
    known = int(np.isfinite(first.gradient_theory).sum())
    which = "them" if known == measured.size else f"the {known:,} that theory is known for"
    return (
        f"Of these {measured.size:,} settings {percent(kept)} bring a gradient through {DEPTHS[-1]} layers changed by"
        f" less than a factor of 10. At half of {which} the median network is within a factor of {10**off:.3g} of"
        " theory, which is for infinite width."
    )
