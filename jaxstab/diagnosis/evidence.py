"""What a model was seen to do: its loss and gradient run for every seed, every call and every operation on record."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from jaxstab.diagnosis.subject import Subject, checked, is_array
from jaxstab.errors import UsageError
from jaxstab.formats import format_of
from jaxstab.observation.flow import Flow, Iteration, Origin
from jaxstab.observation.seen import Seen
from jaxstab.observation.sites import Site
from jaxstab.observation.statistics import SIMULATED
from jaxstab.observation.stepwise import Stepwise
from jaxstab.observation.transform import see, trace
from jaxstab.observation.whatif import rehearse

ROUNDED = "rounded"
"""What the programs that serve every format call its dtype."""
STATISTICS = ("rms", "absmax", "unit_spread", "sample_spread", "dead_units")


@dataclasses.dataclass(frozen=True)
class Rehearsals:
    """One format's run of every seed: `seen.values` have the seed as first axis, `outputs` and `exact` too."""

    dtype: str
    seen: Seen
    exact: list[np.ndarray]
    outputs: list[np.ndarray]

    @cached_property
    def index(self) -> dict[tuple[int, ...], int]:
        """Position of an operation's output -> its site."""
        return {(*s.position, int(s.output or 0)): i for i, s in enumerate(self.seen.sites)}

    def values(self, i: int, field: str) -> np.ndarray:
        """A field of site i: (seed, iterations...)."""
        return self.seen.values[i][..., FIELD[field]]


FIELD = {name: k for k, name in enumerate(SIMULATED)}


@dataclasses.dataclass(frozen=True)
class Evidence:
    """All that findings are made of. `parameters` are names of the leaves of the gradient, in their order.

    `names` are those of `arguments`, of which the parameters come first.
    """

    subject: Subject
    calls: Seen
    rehearsals: dict[str, Rehearsals]
    flow: Flow
    parameters: tuple[str, ...]
    names: tuple[str, ...]
    arguments: list[np.ndarray]
    """Of the first seed, in the order of the program's."""
    gradients: list[np.ndarray]
    """(seed, *shape) of each parameter."""
    revived: set[str]
    """Parameters with a gradient as soon as those that begin at zero have left it."""

    @property
    def seeds(self) -> int:
        return len(self.gradients[0])

    @property
    def any_run(self) -> Rehearsals:
        """Any format's rehearsal: all hold the float32 run."""
        return next(iter(self.rehearsals.values()))

    def sources(self, site: Site, iteration: Iteration) -> list[list[Origin]]:
        """Origins of the inputs of an operation, input by input."""
        return self.flow.inputs(site.position, iteration)


def gather(
    subject: Subject, loss: Callable[[Any], Any] | None, seeds: int, dtypes: Sequence[str]
) -> Evidence:
    """Run everything: every seed forward and backward, once as it is and once beside every format."""
    params, rest = subject.draw(0)
    keys = [jax.random.fold_in(jax.random.key(1), seed) for seed in range(seeds)]
    leaves, structure = jax.tree.flatten(subject.inputs)
    arrays = [x for x in leaves if is_array(x)]

    def output_of(params: Any, rest: Any, key: jax.Array, arrays: list[Any]) -> Any:
        values = iter(arrays)
        filled = [next(values) if is_array(x) else x for x in leaves]
        return subject.call(params, rest, key, jax.tree.unflatten(structure, filled))

    shape = checked(subject, lambda: jax.eval_shape(output_of, params, rest, keys[0], arrays))
    readout = readout_weights(shape, subject.name) if loss is None else []

    def step(params: Any, rest: Any, key: jax.Array, arrays: list[Any], readout: list[Any]) -> Any:
        def loss_of(params: Any) -> Any:
            output = output_of(params, rest, key, arrays)
            with jax.named_scope("loss"):
                return loss(output) if loss is not None else read(output, readout)

        return jax.value_and_grad(loss_of)(params)

    require_scalar(loss, shape, subject.name)
    closed, _, rebuild = checked(subject, lambda: trace(step, (params, rest, keys[0], arrays, readout), {}))
    calls: list[Seen] = []
    runs: list[list[Any]] = [[] for _ in dtypes]
    gradients, first = [], []
    seeing, rehearsing = Stepwise(), Stepwise()

    def run(params: Any, rest: Any, key: jax.Array) -> tuple[list[Any], Any, Seen]:
        flat = [x for x in jax.tree.leaves((params, rest, key, arrays, readout)) if is_array(x)]
        outputs, one = see(closed, flat, STATISTICS, runner=seeing)
        return flat, rebuild(outputs)[1], one

    for seed in tqdm.tqdm(range(seeds), subject.name, unit=" seeds", disable=None, leave=False, delay=2):
        params, rest = subject.draw(seed) if subject.is_drawn else (params, rest)
        flat, gradient, one = run(params, rest, keys[seed])
        first = first or [_numbers(x) for x in flat]
        calls.append(jax.device_get(one))
        gradients.append([np.asarray(g) for g in jax.tree.leaves(gradient)])
        for known, dtype in zip(runs, dtypes, strict=True):
            known.append(rehearse(closed, flat, format_of(dtype), ROUNDED, rehearsing))
    names = _names(params)
    inputs = tuple(
        f"input {name}" for name, x in zip(_names(subject.inputs), leaves, strict=True) if is_array(x)
    )
    every = (*names, *_names(rest, is_array), "the seed's key", *inputs, *(["the read-out"] * len(readout)))
    stacked = [np.stack(leaf) for leaf in zip(*gradients, strict=True)]
    silent = {n for n, g in zip(names, stacked, strict=True) if not np.any(g)}
    revived = _revived(lambda p: run(p, rest, keys[0])[1], names, params, silent) if silent else set()
    named = [
        Rehearsals(d, _named(_stack([r[2] for r in run]), d), _arrays(run, 0), _arrays(run, 1))
        for d, run in zip(dtypes, runs, strict=True)
    ]
    return Evidence(
        subject,
        _stack(calls),
        {r.dtype: r for r in named},
        Flow(closed),
        names,
        every,
        first,
        stacked,
        revived,
    )


def _names(tree: Any, keep: Callable[[Any], bool] = lambda _: True) -> tuple[str, ...]:
    """Paths of the leaves."""
    leaves = jax.tree.leaves_with_path(tree)
    return tuple(jax.tree_util.keystr(p, simple=True, separator="/") for p, x in leaves if keep(x))


def _numbers(x: Any) -> np.ndarray:
    return np.zeros(0) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else np.asarray(x)


def _arrays(run: list[Any], which: int) -> list[np.ndarray]:
    return [np.stack(leaf) for leaf in zip(*[one[which] for one in run], strict=True)]


def _stack(runs: list[Seen]) -> Seen:
    """One `Seen` with the seed as first axis."""
    values = tuple(np.stack(one) for one in zip(*[r.values for r in runs], strict=True))
    return Seen(values, runs[0].sites, runs[0].statistics)


def _named(seen: Seen, dtype: str) -> Seen:
    """With the format's name as dtype of what is rounded."""
    sites = (dataclasses.replace(s, dtype=dtype) if s.dtype == ROUNDED else s for s in seen.sites)
    return dataclasses.replace(seen, sites=tuple(sites))


def readout_weights(shape: Any, name: str) -> list[jax.Array]:
    """Gaussian weights of a linear read-out, so that it has the variance of one entry of the output."""
    floats = [x for x in jax.tree.leaves(shape) if jnp.issubdtype(x.dtype, jnp.inexact)]
    if not floats:
        raise UsageError(f"{name} returns no arrays of floats: there is nothing to differentiate.")
    total = sum(x.size for x in floats)
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=x.shape) / np.sqrt(total), jnp.float32) for x in floats]


def read(output: Any, readout: list[Any]) -> Any:
    """The linear read-out of an output."""
    floats = [x for x in jax.tree.leaves(output) if jnp.issubdtype(jnp.asarray(x).dtype, jnp.inexact)]
    return sum(jnp.sum(jnp.real(x).astype(jnp.float32) * r) for x, r in zip(floats, readout, strict=True))


def require_scalar(loss: Any, shape: Any, name: str) -> None:
    """UsageError unless the loss makes one number of an output."""
    if loss is None:
        return
    try:
        found = jax.eval_shape(loss, shape)
    except Exception as error:
        first = next((line for line in str(error).splitlines() if line), "no reason given")
        raise UsageError(
            f"loss does not run on the output of {name}: {type(error).__name__}: {first}"
        ) from error
    if getattr(found, "shape", None) != () or not jnp.issubdtype(found.dtype, jnp.floating):
        raise UsageError(
            f"loss must return one number, not {getattr(found, 'shape', found)!r}, of {name}'s output."
        )


def _revived(
    gradient_at: Callable[[Any], Any], names: tuple[str, ...], params: Any, silent: set[str]
) -> set[str]:
    """Silent parameters that get a gradient once those have moved that begin at zero and get one now."""
    rng = np.random.default_rng(1)
    leaves, structure = jax.tree.flatten(params)
    begins = {n for n, p in zip(names, leaves, strict=True) if not np.any(np.asarray(p))}
    still = silent
    while True:
        leaves = [
            jnp.asarray(0.1 * rng.normal(size=p.shape), p.dtype) if n in begins - still else p
            for n, p in zip(names, leaves, strict=True)
        ]
        gradient = jax.tree.leaves(gradient_at(jax.tree.unflatten(structure, leaves)))
        found = {n for n, g in zip(names, gradient, strict=True) if n in still and not np.any(np.asarray(g))}
        if found == still:
            return silent - still
        begins, still = begins & still, found
