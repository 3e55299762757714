"""What every family of trials keeps to: `python -m experiments.benchmarks.contract [--only NAME ...]`.

A lane's fate and numbers do not depend on what else is asked for (each output alone, and ten fixed pairs), nor on the
tile, beyond rounding; hyperparameters are traced, so that all of their values are one compilation. The families are
the two built-in ones, those of the experiments, and one as a user would write it. 1 if any check fails.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
import xarray as xr

import jaxstab

COMPILED = "/jax/core/compile/backend_compile_duration"
ROUNDING = 2e-4
"""Of the largest magnitude of an output: programs that write other outputs round elsewhere."""


class Subject(NamedTuple):
    """A family (module:name) at a small size, with one traced parameter's values, if it has any."""

    family: str
    settings: dict[str, Any]
    traced: dict[str, list[float]]
    rounding: tuple[str, ...]  # outputs that are themselves differences by rounding, other in every program


def of(
    family: str,
    traced: str = "",
    values: Sequence[float] = (),
    rounding: tuple[str, ...] = (),
    **settings: Any,
) -> Subject:
    """A subject; a family of the experiments by module:name alone."""
    path = family if family.startswith("jaxstab.") else f"experiments.{family}"
    return Subject(path, settings, {traced: list(values)} if traced else {}, rounding)


PROPAGATION, TRAINING = "jaxstab.trials.propagation:propagation", "jaxstab.trials.training:training"
SUBJECTS = {
    "propagation": of(PROPAGATION, "gain", [1, 2], depth=6, width=8, batch=3),
    "overflow": of(PROPAGATION, "gain", [0.1, 1], depth=60, width=64, batch=2, activation="linear", init="normal"),
    "one_entry": of(PROPAGATION, "sigma_b", [0, 1], depth=5, width=1, batch=1, activation="linear"),
    "training": of(TRAINING, "learning_rate", [0.1, 1e4], hidden=8, epochs=1, batch_size=256),
    "gain_table": of("gain_table:sampled_gain", activation="tanh", samples=1000),
    "regularized_backprop": of(
        "regularized_backprop:gradients", "decay", [0, 0.1], ("difference_W1", "difference_W2"),
        activation="tanh", dtype="float32",
    ),
    "polynomial": of("polynomial:regression", "learning_rate", [0.01, 100], powers=4, epochs=3),
    "symmetry": of(
        "symmetry:equal_units", "dropout", [0, 0.5], ("change_by_permutation",), units=4, dtype="float32", epochs=1
    ),
    "printed_matrix": of("initialization:printed_matrix"),
    "unequal_layer": of("initialization:unequal_layer", n_in=16, n_out=32, mode="fan_in", distribution="normal"),
    "mlp": of("mlp:classifier", dataset="digits", way="scratch", epochs=1),
    "weight_decay": of("weight_decay:regression", "decay", [0, 3], epochs=3),
    "precision": of("precision:edges", dtype="float16"),
    "sigmoid_gradient": of("sigmoid_gradient:curve", activation="sigmoid"),
    "vanishing": of("vanishing:classifier", "learning_rate", [0.1, 1e30], layers=2, activation="relu", epochs=1),
    "dropped_layer": of("dropout:layer", "p", [0, 0.5]),
    "dropout": of("dropout:classifier", dataset="digits", epochs=1, passes=2, rates={"two": (0.1, 0.2)}),
    "transformer": of("transformer:shares", "sigma", [0, 2], context=16, head=8),
    "explorer": of("explorer:stack", "gain", [1, 1e30], activation=0.0, sigma_b=0.1, is_orthogonal=False, width=4),
    "subject": of("benchmarks.subject:regression", "learning_rate", [0.1, 1e30], steps=5),
    "users": of("benchmarks.contract:walk", "size", [1, 1e38], steps=6),
}  # fmt: skip  # a family a line


@jaxstab.family(dims={"path": ("step",)})
def walk(key: jax.Array, *, steps: int, size: float = 1.0) -> dict[str, jax.Array]:
    """A random walk, as a user would write a family: no status of its own, one output that never fails."""
    path = jnp.cumsum(size * jax.random.normal(key, (steps,)))
    return {"path": path, "last": path[-1] * 10, "sign": jnp.sign(path[0]), "count": jnp.int32(steps)}


class Check(NamedTuple):
    """One line of the table."""

    subject: str
    what: str
    passed: bool
    said: str


def load(name: str) -> Any:
    """The family of a subject."""
    module, attribute = SUBJECTS[name].family.split(":")
    return getattr(importlib.import_module(module), attribute)


def sweep(
    name: str, keep: Sequence[str] | None = None, tile: int | None = None, factor: float = 1.0
) -> xr.Dataset:
    """A subject's small sweep, three seeds; `factor` multiplies its traced parameter."""
    subject = SUBJECTS[name]
    traced = {key: [factor * value for value in values] for key, values in subject.traced.items()}
    return jaxstab.sweep(
        load(name), jaxstab.grid(**subject.settings, **traced), 3, keep=keep, tile=tile, progress=False
    )


def subsets(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Each output alone, and ten pairs of them that are the same in every run."""
    pairs = list(itertools.combinations(names, 2))
    chosen = np.random.default_rng(0).permutation(len(pairs))[:10]
    return [*((name,) for name in names), *(pairs[i] for i in sorted(chosen))]


def differences(whole: xr.Dataset, part: xr.Dataset, rounding: float = ROUNDING) -> list[str]:
    """Variables of `part` that are not those of `whole`: status exactly, the rest to `rounding`."""
    found = [] if part.status.identical(whole.status) else ["status"]
    for name in part.data_vars:
        a, b = (np.asarray(data[name].values, np.float64) for data in (whole, part))
        finite = a[np.isfinite(a)]
        close = np.isclose(
            a, b, rtol=rounding, atol=rounding * np.abs(finite).max(initial=0.0), equal_nan=True
        )
        found += [] if name == "status" or close.all() else [str(name)]
    return found


def count_compilations(run: Any) -> int:
    """How many programs XLA compiles while `run()` runs."""
    counted: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        listen := lambda event, *_, **__: counted.append(event)
    )
    try:
        run()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return counted.count(COMPILED)


def check(name: str, most: int | None = None) -> Iterator[Check]:
    """All checks of one subject; of its subsets of outputs `most`, if given, spread evenly."""
    whole = sweep(name)
    outputs = sorted(str(v) for v in whole.data_vars if v != "status")
    chosen, rounding = subsets(outputs), set(SUBJECTS[name].rounding)
    if most is not None:
        chosen = [chosen[i] for i in np.unique(np.linspace(0, len(chosen) - 1, most).astype(int))]
    for keep in chosen:
        wrong = [one for one in differences(whole, sweep(name, keep)) if one not in rounding]
        yield Check(name, f"only {' and '.join(keep)}", not wrong, ", ".join(wrong))
    wrong = [one for one in differences(whole, sweep(name, tile=1)) if one not in rounding]
    yield Check(name, "one lane a tile", not wrong, ", ".join(wrong))
    if SUBJECTS[name].traced:
        again = count_compilations(lambda: sweep(name, factor=0.5))
        yield Check(
            name,
            "other hyperparameters compile nothing",
            again == 0 and whole.attrs["programs"] == 1,
            str(again),
        )


def main(only: tuple[str, ...] = ()) -> int:
    """Print every check; 1 if one fails.

    Args:
        only: subjects to check; all of them by default.
    """
    failed = total = 0
    for name in only or SUBJECTS:
        for one in check(name):
            failed, total = failed + (not one.passed), total + 1
            if not one.passed:
                print(f"{one.subject}: {one.what}: {one.said}", flush=True)
        print(f"{name}: {total} checks so far, {failed} failed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
