"""What every layer keeps to: `python -m experiments.benchmarks.layers [--only NAME ...]`.

Each kind of the register in its variants, x sampler x dtype, through `jaxstab.sweep`: its numbers are those of a
network written out in float64 on the same draws (`layers_by_hand`), forward and backward; what is not finite is
flagged, and nothing else; homogeneous where the layer says so, and only there; differentiable; the same whatever the
tile and however a store was resumed; one compilation for all numbers. 1 if any check fails.
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
import xarray as xr

import jaxstab
from experiments.benchmarks import layers_by_hand as by_hand
from experiments.benchmarks.contract import ROUNDING, Check, count_compilations, differences
from jaxstab.errors import UsageError
from jaxstab.formats import COMPUTED
from jaxstab.nets.layers import layer as layers
from jaxstab.nets.layers import register
from jaxstab.nets.layers.layer import Numbers
from jaxstab.nets.weights import SAMPLERS
from jaxstab.trials.propagation import FLAGS, OUTPUTS, propagation
from jaxstab.trials.stack import HParams, Spec

SIZES: dict[str, Any] = {"depth": 3, "width": 16, "batch": 4, "activation": "relu", "init": "lecun_normal"}
TOKENS = {"batch": 2, "tokens": 3}
IMAGES = {"batch": 1, "side": 3}  # nine rows, fewer than the units
NUMBERS: dict[str, Any] = {
    "sigma_b": 0.2, "branch_scale": 0.5, "skip_scale": 0.8, "qk_scale": 0.3, "forget_bias": 0.7
}  # fmt: skip
GAINS, HUGE = (0.8, 1.3), (1e5, 1e15)
"""Within every format; and beyond the halves' or everybody's, yet not within one layer of two matrices."""
SEEDS = 3
ROUNDINGS = 24
"""Errors of so many roundings are let through three layers and back; more where rows drawn in law are nearly one."""
TRIALS = 8
"""How often the network written out is rounded, to see how far that moves it."""
FORWARD = [
    name for name, row in OUTPUTS.items() if row.dims and "backward" not in name and "gradient" not in name
]
DROPOUT = 0.25


class Case(NamedTuple):
    """A stack in one sampler and dtype."""

    name: str
    spec: Spec
    numbers: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """As `jaxstab.propagate` takes them, but for gains."""
        return {field: getattr(self.spec, field) for field in propagation.spec_types} | self.numbers


def variants(kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(words, settings) of each way in which the register makes a kind."""
    sublayers = (
        ["attention"]
        if kind in register.ATTENDING
        else register.SUBLAYERS
        if kind in register.ORDERS
        else ["ffn"]
    )
    for sublayer in sublayers:
        if sublayer == "attention":
            said = {} if kind in register.ATTENDING else {"sublayers": sublayer}
            yield from ((f"{kind}, attention of {h}", TOKENS | {"heads": h} | said) for h in (1, 2))
        elif sublayer == "alternate":
            yield f"{kind}, in turn", TOKENS | {"depth": 2, "sublayers": sublayer}
        else:
            yield kind, IMAGES if kind == "convolution" else {}
    if kind == "residual":
        yield "residual, two matrices", {"branch_matrices": 2}
    if kind == "convolution":
        yield "convolution, circular", IMAGES | {"padding": "circular", "kernel": 2}
    sizes = TOKENS if kind in register.ATTENDING else IMAGES if kind == "convolution" else {}
    yield f"{kind}, dropout", {"dropout": DROPOUT} | sizes


def cases() -> Iterator[Case]:
    """Every kind x variant x sampler x dtype that is not refused."""
    for kind, sampler, dtype in itertools.product(register.KINDS, SAMPLERS, COMPUTED):
        for words, settings in variants(kind):
            rate: dict[str, Any] = {"dropout": (settings["dropout"],)} if "dropout" in settings else {}
            numbers: dict[str, Any] = NUMBERS | rate
            settings = {k: v for k, v in settings.items() if k != "dropout"}
            given: dict[str, Any] = SIZES | settings | {"kind": kind, "sampler": sampler, "dtype": dtype}
            try:
                spec = Spec(**given)
                HParams(**numbers).validate(spec)
            except UsageError:
                continue
            yield Case(f"{words}, {sampler}, {dtype}", spec, numbers)


def sweep(case: Case, factor: float = 1.0, **keywords: Any) -> xr.Dataset:
    """A case's networks: gain x seed; `factor` multiplies every number."""
    numbers = {name: value if name == "dropout" else factor * value for name, value in case.numbers.items()}
    gains = [factor * gain for gain in (*GAINS, *HUGE)]
    space = jaxstab.grid(**case.settings | numbers, gain=gains)
    return jaxstab.sweep(propagation, space, keywords.pop("seeds", SEEDS), progress=False, **keywords)


def unlike_by_hand(case: Case, whole: xr.Dataset, factor: float = 1.0) -> list[str]:
    """Variables that are not `factor` times those of the network written out.

    Of homogeneous layers the logarithms at gains as well that no format holds. What is further off than most layers'
    rounding takes it (a ReLU near zero, a norm of what is nearly one number) is held against what rounding makes
    of the network written out.
    """
    found = set[str]()
    is_homogeneous = layers.is_homogeneous(case.spec.layers[0])
    for gain, seed in itertools.product((*GAINS, *HUGE) if is_homogeneous else GAINS, range(SEEDS)):
        network = written_out(case, gain, seed)
        wanted = by_hand.statistics(*network)
        one, apart = whole.sel(gain=gain, seed=seed), wanted.pop("apart")
        for name, value in wanted.items():
            if gain in GAINS or name.startswith("log10"):
                error = (one[name].values - factor * value) / size(name, wanted)
                is_right = np.abs(error) <= rounding(case.spec.dtype, name) / least(name, apart)
                is_right |= np.isnan(one[name].values) & np.isnan(value)
                if not is_right.all():
                    is_right |= np.abs(one[name].values - factor * value) <= moved(network, name, value)
                found |= set() if is_right.all() else {name}
    return sorted(found)


def written_out(case: Case, gain: float, seed: int) -> tuple[Spec, Numbers, int]:
    """One network of a case, as `layers_by_hand` takes it."""
    numbers = jax.tree.map(np.float32, {n: v for n, v in case.numbers.items() if n in Numbers._fields})
    return case.spec, Numbers(gain=np.float32(gain), **numbers), seed


def least(name: str, apart: np.ndarray) -> Any:
    """How nearly one the rows are that a variable comes of: of the layers up to its own, or of all on the way back."""
    return np.minimum.accumulate(apart) if name in FORWARD else apart.min()


def unlike_in_other_tiles(case: Case, whole: xr.Dataset, other: xr.Dataset) -> list[str]:
    """Variables that other tiles change by more than rounding, which grows as rows drawn in law near each other."""
    # XLA rounds to a half where a fusion ends, which the tile decides
    eps = max(ROUNDING, float(jnp.finfo(case.spec.dtype).eps))
    whole, other = (data.sel(gain=list(GAINS)) for data in (whole, other))
    names = [name for name in differences(whole, other, eps) if not is_near(name, whole, other, eps)]
    if case.spec.sampler == "dense":
        return names
    found = set[str]()
    for gain, seed in itertools.product(GAINS, range(SEEDS)):
        apart = by_hand.statistics(*written_out(case, gain, seed))["apart"]
        one, two = (data.sel(gain=gain, seed=seed).squeeze() for data in (whole, other))
        sizes = {str(key): value.values for key, value in one.items()}
        for name in names:
            error = np.abs(one[name].values - two[name].values) / size(name, sizes)
            found |= {name} if (error > eps / least(name, apart)).any() else set()
    return sorted(found)


def moved(network: tuple[Spec, Numbers, int], name: str, value: np.ndarray) -> np.ndarray:
    """Twice as far as a variable moves at most where the network written out is rounded, in `TRIALS` trials."""
    eps = float(jnp.finfo("float32" if name.startswith("log10") else network[0].dtype).eps)
    trials = [by_hand.statistics(*network, eps, trial)[name] for trial in range(TRIALS)]
    return 2 * np.max(np.abs(np.stack(trials) - value), axis=0)


def rounding(dtype: str, name: str) -> float:
    """What the dtype's rounding may make of a variable; logarithms and shares are float32 at best."""
    is_single = name.startswith("log10") or (name.endswith("_fraction") and dtype == "float64")
    return ROUNDINGS * float(jnp.finfo("float32" if is_single else dtype).eps)


def size(name: str, of: dict[str, np.ndarray]) -> np.ndarray:
    """What an error is relative to: the variable itself, the signal's rms, or 1 for shares and small logarithms."""
    if name.startswith("log10"):
        return np.maximum(np.abs(of[name]), 1.0)
    if name in ("correlation", "zero_fraction", "saturated_fraction"):
        return np.ones_like(of[name])
    return of["forward_rms"] if name in ("forward_mean", "forward_entry") else np.abs(of[name])


def is_near(name: str, one: xr.Dataset, other: xr.Dataset, eps: float) -> bool:
    """Whether a variable is the same but for rounding of what it is taken from: a mean of 0, a logarithm of 1."""
    values = {str(key): value.values for key, value in one.items()}
    largest = np.max(size(name, values), initial=0.0) if name in (*FORWARD, "log10_backward_rms") else 0.0
    return bool(np.all(np.abs(values[name] - other[name].values) <= eps * largest))


def unflagged(data: xr.Dataset) -> list[str]:
    """Variables that are not finite in a lane where no flag says so, and flags of lanes where all is finite."""
    flag = {way: data[f"first_bad_layer_{way}"] for way in ("forward", "backward")}
    lost = {way: data[f"first_lost_layer_{way}"] for way in ("forward", "backward")}
    found = []
    for name, row in OUTPUTS.items():
        if not row.is_measured or not row.dims or name not in data:
            continue
        forward = (flag["forward"] > 0) & (data.layer >= flag["forward"])
        told = forward if name in FORWARD else (flag["forward"] > 0) | (flag["backward"] > 0)
        if name == "weight_gradient_rms":  # where a norm overflowed and gave zeros: a lost layer, times inf
            told = told | (lost["forward"] > 0)
        if name.startswith("log10"):  # of what is all zero: -inf
            told = told | (lost["forward"] > 0) | (lost["backward"] > 0)
        is_nan: Any = np.isnan(data[name])
        always = is_nan.all(
            [dim for dim in is_nan.dims if dim != "layer"]
        )  # of a layer that has no such thing
        is_undefined = is_nan & bool(row.undefined) & (always if name != "correlation" else True)
        found += [] if (np.isfinite(data[name]) | told | is_undefined).all() else [name]
    for way, name in (("forward", "forward_rms"), ("backward", "backward_rms")):
        is_finite: Any = np.isfinite(data[name])
        is_bad = ~is_finite.all("layer")
        found += [] if (is_bad == (flag[way] > 0)).all() else [f"first_bad_layer_{way}"]
    return found + (
        [] if ((data.status == FLAGS.index("nonfinite")) == (flag["forward"] > 0)).all() else ["status"]
    )


def is_as_homogeneous_as_it_says(case: Case) -> bool:
    """8 times the layer of an eighth of state and bias is the layer of the whole, where it says so and only there."""
    layer, numbers = case.spec.layers[0], Numbers(**case.numbers)
    x = jax.random.normal(jax.random.key(5), case.spec.shape)
    params = layer.draw(jax.random.key(1), numbers)

    def after(state: Any, exponent: int) -> np.ndarray:
        given = jax.tree.map(lambda a: a / 2.0**exponent, state)
        return np.asarray(
            layers.end(layer, layer(layers.in_dtype(params, jnp.float32, exponent), given, numbers))
        )

    begun = layers.start(layer, x)
    is_same = np.allclose(8 * after(begun, 3), after(begun, 0), rtol=1e-4, atol=1e-5)
    return is_same == layers.is_homogeneous(layer)


def error_of_gradient(case: Case) -> float:
    """Relative error of JAX's derivative along a direction against central differences, float64, of tanh."""
    layer = dataclasses.replace(case.spec, activation="tanh").layers[0]
    numbers = Numbers(**case.numbers)
    with jax.enable_x64(True):
        x, direction = (jax.random.normal(jax.random.key(k), case.spec.shape, jnp.float64) for k in (5, 2))
        params = layers.in_dtype(layer.draw(jax.random.key(1), numbers), jnp.float64)

        def loss(x: Any) -> Any:
            state = layer(params, layers.start(layer, x), numbers)
            return jnp.sum(jnp.sin(layers.end(layer, state) + layers.signal(state)))

        slope, step = jnp.vdot(jax.grad(loss)(x), direction), 1e-5
        differences = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
        return float(abs(slope - differences) / abs(differences))


def resumed(case: Case) -> xr.Dataset:
    """The sweep, one lane a tile, in a store that was begun with fewer seeds and then lost a chunk."""
    with tempfile.TemporaryDirectory() as folder:
        sweep(case, tile=1, store=folder, seeds=SEEDS - 1)
        sorted(Path(folder).glob("*.npz"))[0].unlink()
        return sweep(case, tile=1, store=folder).load()


def check(case: Case, is_quick: bool = False) -> Iterator[Check]:
    """All checks of one case, or those that compile one program and no more."""
    whole = sweep(case)
    wrong = unlike_by_hand(case, whole)
    yield Check(case.name, "as written out by hand", not wrong, ", ".join(wrong))
    wrong = unflagged(whole)
    yield Check(case.name, "not finite is flagged", not wrong, ", ".join(wrong))
    again = count_compilations(lambda: sweep(case, factor=0.5))
    is_one = again == 0 and whole.attrs["programs"] == 1
    yield Check(case.name, "other numbers compile nothing", is_one, str(again))
    if case.spec.dtype == "float32":
        yield Check(case.name, "homogeneous or not", is_as_homogeneous_as_it_says(case), "")
        if case.spec.sampler == "dense":  # drawn in law, the way back is drawn as well
            error = error_of_gradient(case)
            yield Check(case.name, "central differences", error < 1e-6, f"{error:.1e}")
    if not is_quick:
        tiles = sweep(case, tile=1)
        wrong = unlike_in_other_tiles(case, whole, tiles)
        yield Check(case.name, "one lane a tile", not wrong, ", ".join(wrong))
        yield Check(
            case.name, "a store resumed", resumed(case).drop_attrs().identical(tiles.drop_attrs()), ""
        )


def main(only: tuple[str, ...] = (), quick: bool = False) -> int:
    """Print what fails, and a line for each case; 1 if a check fails.

    Args:
        only: words; cases whose name holds one of them are checked, by default all.
        quick: leave out tiles and stores, which compile another program.
    """
    chosen = [case for case in cases() if not only or any(word in case.name for word in only)]
    if not chosen:
        raise UsageError(
            f"only={only}: no case has such a word. Choices: {', '.join(case.name for case in cases())}."
        )
    failed = 0
    for case in chosen:
        found = list(check(case, is_quick=quick))
        bad = [f"{one.what}: {one.said}" for one in found if not one.passed]
        failed += len(bad)
        print(f"{case.name}: {len(found)} checks" + "".join(f"\n  FAILED {said}" for said in bad), flush=True)
    print(f"{len(chosen)} cases, {failed} checks failed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
