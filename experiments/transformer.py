"""Where should the norm of a transformer stand, and why do its tokens become alike?

Before the branch (pre-LN) the signal grows by the branch's variance in every sublayer, and the gradient with respect
to sublayer l is 1/Q_l: small at the last, and at the first the same at any depth. Behind the sum (post-LN) the signal
keeps its size; the gradient is that of the last sublayer everywhere for ReLU, and larger towards the input for GELU.
Xiong et al. 2020 (arXiv:2002.04745).

Attention at initialization is nearly an average over tokens. Alone it makes them one in two layers (Dong et al. 2021,
arXiv:2103.03404); beside a skip of the same size it halves their distance in every layer; branches of L^-1/2 leave a
cosine of (e - 1)/(e + T - 1) behind L layers (Noci et al. 2022, arXiv:2206.03126). How far attention is from an average
is the entropy of its shares, ln T - sigma^2/2 for logits of standard deviation sigma, well below sqrt(2 ln T).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

import jaxstab
from jaxstab.report import figures, words
from jaxstab.report.claims import Claim, make_claim
from jaxstab.report.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NORMS = {"pre_ln": "pre-LN", "post_ln": "post-LN"}
ACTIVATIONS = ("relu", "gelu")
STACKS = ("alone", "skip, branch x 1", "skip, branch x L^-1/2")
SIGMAS = np.linspace(0.0, 4.0, 17)
QUERIES = 64
claim = partial(make_claim, "transformer")


@dataclasses.dataclass(frozen=True)
class Config:
    """`depth` feed-forward sublayers of `width`; `layers` of attention to `tokens`; shares of so many keys."""

    seeds: int = 32
    depth: int = 48
    width: int = 512
    layers: int = 24
    tokens: int = 64
    tokens_width: int = 256
    context: tuple[int, ...] = (64, 1024)


SCALES = {
    "smoke": Config(seeds=8, depth=8, width=128, layers=4, context=(256,)),
    "default": Config(),
    "full": Config(seeds=512, width=1024, tokens_width=1024, context=(64, 1024, 8192)),
}


@jaxstab.family
def shares(key: jax.Array, *, context: int, head: int = 128, sigma: float = 1.0) -> dict[str, jax.Array]:
    """Of the shares of `context` keys, by logits sigma q.k/sqrt(head), their entropy [nat]; mean over queries."""
    query, known = (
        jax.random.normal(k, (count, head))
        for k, count in zip(jax.random.split(key), (QUERIES, context), strict=True)
    )
    logits = sigma / math.sqrt(head) * jnp.matmul(query, known.T, precision="highest")
    entropy = jnp.sum(jax.scipy.special.entr(jax.nn.softmax(logits, axis=-1)), axis=-1)
    return {"entropy": jnp.mean(entropy)}


def run(config: Config) -> Record:
    """Stacks of feed-forward sublayers, stacks of attention, and single attentions, beside theory."""
    return Record(xr.merge([_norms(config), _tokens(config), _shares(config)]))


def _norms(config: Config) -> xr.Dataset:
    """log10 of the mean squares of signal and gradient by sublayer; branches keep the variance of what they are of."""
    space = jaxstab.grid(
        kind=list(NORMS), depth=config.depth, width=config.width, batch=2, init="lecun_normal"
    )
    gains = [jaxstab.gain(phi) ** 0.5 for phi in ACTIVATIONS]  # of each of two matrices
    space = space * jaxstab.zipped(activation=list(ACTIVATIONS), gain=gains)
    names = {"log10_forward_rms": "signal", "log10_backward_rms": "gradient"}
    measured = jaxstab.sweep(jaxstab.propagation, space, config.seeds, keep=list(names))
    parts = 2 * _beside_theory(measured, jaxstab.predict(space), names)
    parts = parts.rename(configuration="activation", layer="sublayer")
    return parts.assign_coords(kind=list(NORMS), activation=list(ACTIVATIONS))


def _beside_theory(measured: xr.Dataset, told: xr.Dataset, names: dict[str, str]) -> xr.Dataset:
    """Variables by new names, theory's with `_theory` behind; of the coordinates layers and seeds are kept."""
    parts = {new: measured[name] for name, new in names.items()}
    parts |= {f"{new}_theory": told[name] for name, new in names.items()}
    data = xr.Dataset(parts)
    return data.drop_vars(set(data.coords) - {"layer", "seed"})


def _tokens(config: Config) -> xr.Dataset:
    """Mean cosine of two tokens of an input, by layer, from independent ones; logits begin with sigma = 0.5."""
    shared = {
        "tokens": config.tokens, "width": config.tokens_width, "batch": 1, "init": "lecun_normal", "qk_scale": 0.5,
    }  # fmt: skip
    skip = {"kind": "residual_attention", "depth": config.layers, **shared}
    found = []
    for space in (
        jaxstab.grid(kind="attention", depth=4, **shared),
        jaxstab.grid(branch_scale=1.0, **skip),
        jaxstab.grid(branch_scale=config.layers**-0.5, **skip),
    ):
        measured = jaxstab.sweep(jaxstab.propagation, space, config.seeds, keep=["correlation"])
        found.append(_beside_theory(measured, jaxstab.predict(space), {"correlation": "cosine"}))
    return xr.concat(found, "stack", join="outer").assign_coords(stack=list(STACKS))


def _shares(config: Config) -> xr.Dataset:
    """Entropy of shares by the logits' sigma."""
    space = jaxstab.grid(context=list(config.context), sigma=SIGMAS)
    data = jaxstab.sweep(shares, space, config.seeds)[["entropy"]]
    told = jaxstab.theory.attention_entropy(np.array(config.context)[:, None], SIGMAS)
    return data.assign(entropy_theory=(("context", "sigma"), told))


def plot(record: Record) -> dict[str, Figure]:
    """Medians and 95 % of networks; dashed: theory, as far as it goes."""
    return {"norms": _plot_norms(record.data), "tokens": _plot_tokens(record.data)}


def _plot_norms(data: xr.Dataset) -> Figure:
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9.5, 3.8))
    for panel, name in zip(panels, ("signal", "gradient"), strict=True):
        for i, (kind, phi) in enumerate((kind, phi) for kind in NORMS for phi in ACTIVATIONS):
            one = data.sel(kind=kind, activation=phi)
            label = f"{NORMS[kind]}, {words.called(phi)}"
            figures.band(panel, 10 ** one[name], x="sublayer", color=f"C{i}", label=label)
            figures.theory(panel, one.sublayer, 10 ** one[f"{name}_theory"])
        panel.set(xlabel="sublayer l", ylabel=f"mean square of the {name}", yscale="log")
    first, gradient, signal, kept = (
        words.power(words.middle(data[name].sel(kind=kind, activation="relu").isel(sublayer=i)))
        for name, kind, i in (
            ("gradient", "pre_ln", 0),
            ("gradient", "pre_ln", -1),
            ("signal", "pre_ln", -1),
            ("signal", "post_ln", -1),
        )
    )
    panels[0].set_title(f"Signal: behind pre-LN ReLU it becomes {signal}")
    panels[1].set_title(f"Gradient: pre-LN ReLU's last sublayer gets {gradient}")
    panels[0].legend()
    figures.note(figure, figures.of_seeds(data.sizes["seed"], "networks"), "dashes: theory")
    figures.describe(
        figure,
        f"Mean squares over {data.sizes['sublayer']} sublayers on logarithmic axes, pre-LN and post-LN, ReLU"
        f" and GELU. With ReLU the signal becomes {signal} behind pre-LN and {kept} behind post-LN; the"
        f" gradient behind pre-LN goes from {first} at the first sublayer to {gradient} at the last.",
    )
    return figure


def _plot_tokens(data: xr.Dataset) -> Figure:
    import matplotlib.pyplot as plt

    figure, (cosines, entropies) = plt.subplots(1, 2, figsize=(9.5, 3.8))
    for i, stack in enumerate(STACKS):
        one = data.sel(stack=stack)
        known = one.isel(layer=slice(0, int(one.cosine.notnull().all("seed").sum())))
        figures.band(cosines, known.cosine, color=f"C{i}", label=stack)
        figures.theory(cosines, known.layer, known.cosine_theory)
    cosines.set(title="Attention makes tokens alike", xlabel="layer", ylabel="cosine of two tokens")
    cosines.legend(loc="center right")
    for i, context in enumerate(data.context.values):
        one = data.sel(context=context)
        figures.band(entropies, one.entropy, x="sigma", color=f"C{i}", label=f"{context} keys")
        figures.theory(entropies, one.sigma, one.entropy_theory)
    entropies.set(
        title="Large logits choose among tokens, small ones average",
        xlabel="standard deviation of the logits",
        ylabel="entropy of a query's shares [nat]",
        ylim=(0, None),
    )
    entropies.legend()
    figures.note(figure, figures.of_seeds(data.sizes["seed"], "networks"), "dashes: theory")
    last = data.isel(context=-1).entropy
    alike = [
        f"“{stack}” {words.median(data.cosine.sel(stack=stack).dropna('layer', how='all').isel(layer=-1))}"
        for stack in STACKS
    ]
    figures.describe(
        figure,
        f"Left: the cosine of two tokens over layers of attention, in the end {'; '.join(alike)}. Right: the"
        f" entropy of the shares of {int(last.context)} keys against the logits' standard deviation, falling"
        f" from {words.median(last.isel(sigma=0))} to {words.median(last.isel(sigma=-1))} nat.",
    )
    return figure


def findings(record: Record) -> str:
    """The first sublayer's gradient over the last's behind either norm; how alike tokens become in each stack."""
    data = record.data
    told = [
        f"{words.power(words.middle(one.isel(sublayer=0) - one.isel(sublayer=-1)))} times ({NORMS[kind]},"
        f" {words.called(phi)})"
        for kind, phi in itertools.product(NORMS, ACTIVATIONS)
        for one in [data.gradient.sel(kind=kind, activation=phi)]
    ]
    alike = []
    for stack in STACKS:
        one = data.cosine.sel(stack=stack).dropna("layer", how="all")
        alike.append(f"{words.median(one.isel(layer=-1))} behind {one.sizes['layer']} layers ({stack})")
    return (
        f"At initialization the first of {data.sizes['sublayer']} feed-forward sublayers gets"
        f" {words.listed(told)} the gradient's mean square of the last. Attention averages tokens that begin"
        f" independent: the cosine of two becomes {words.listed(alike)}; medians of {data.sizes['seed']}"
        " networks."
    )


def claims(record: Record) -> Iterator[Claim]:
    """Nobody published a draw: what is measured, beside theory where it holds."""
    data = record.data
    first, last = map(int, data.sublayer.values[[0, -1]])
    places = [
        ("pre_ln", "signal", last),
        ("pre_ln", "gradient", last),
        *((k, "gradient", first) for k in NORMS),
    ]
    for phi, (kind, name, sublayer) in itertools.product(ACTIVATIONS, places):
        at = data.sel(kind=kind, activation=phi, sublayer=sublayer)
        stack = f"{NORMS[kind]}, {words.called(phi)}, {last} sublayers"
        what = f"{stack}: log10 mean square of the {name}, sublayer {sublayer}"
        yield claim(what, at[name], theory=round(float(at[f"{name}_theory"]), 12), source="arXiv:2002.04745")
    for stack in STACKS:
        one = data.sel(stack=stack)
        told = np.flatnonzero(np.isfinite(one.cosine_theory))  # until logits have grown with the signal
        at = one.isel(layer=0 if stack == "alone" else told[-1])
        what = f"attention, {stack}: cosine of two tokens behind layer {int(at.layer)}"
        yield claim(what, at.cosine, theory=float(at.cosine_theory), source="arXiv:2103.03404, 2206.03126")
    for context in data.context.values:
        at = data.sel(context=context, sigma=1.0)
        what = f"attention to {context} keys, logits N(0, 1): entropy of the shares [nat]"
        yield claim(
            what, at.entropy, theory=float(at.entropy_theory), source="jaxstab.theory.attention_entropy"
        )
