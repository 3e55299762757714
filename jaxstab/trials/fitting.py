"""A whole training run as one scan over epochs, for any task and any optax transformation.

Nothing here knows of images or of layers. Build `update` inside the trial from traced numbers, and every
hyperparameter is a lane of one program. A run that diverges is frozen, and says at which step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxstab import random
from jaxstab.compiler import one_kernel
from jaxstab.errors import UsageError, require_choice
from jaxstab.reductions import norm, total

ORDERS = ("per_seed", "shared")
FEW = 256
"""Up to so many examples are shuffled by one sort of packed integers."""


class Task(NamedTuple):
    """What is fitted: parameters, model, loss and examples, all as pure functions and arrays.

    init: key -> params, any pytree.
    apply: (params, inputs, key) -> outputs of a batch; the key is for dropout and its like.
    loss: (outputs, targets) -> the loss of each example, [batch]; its mean is what is minimized.
    data: (inputs, targets), pytrees of arrays [example, ...].
    penalty: params -> a number added to the mean loss (and to no loss that is reported); or None.
    measure: (outputs, targets) -> {name: value of each example, [batch]}, averaged as the loss is; or None.
    """

    init: Callable[[Any], Any]
    apply: Callable[[Any, Any, Any], Any]
    loss: Callable[[Any, Any], Any]
    data: tuple[Any, Any]
    penalty: Callable[[Any], Any] | None = None
    measure: Callable[[Any, Any], Mapping[str, Any]] | None = None


@runtime_checkable
class Update(Protocol):
    """An optax transformation, or anything with its two functions."""

    @property
    def init(self) -> Callable[..., Any]:
        """params -> memory of the transformation."""
        ...

    @property
    def update(self) -> Callable[..., Any]:
        """(gradient, memory, params) -> (what to add to the params, memory)."""
        ...


class Fit(NamedTuple):
    """What a run leaves.

    params: after the last step, or as the first bad step found them (`hide` what is made of those). start:
        before the first step.
    start_loss: mean loss of the first batch, before any update.
    seen: [epoch, ...] of `train_loss` and the task's measures (running means over the epoch's batches, each
        taken before its update, as the chapter draws them), `gradient_norm` (mean over the epoch's steps, of
        the loss with its penalty), and what the probe returned after each epoch. From the epoch of the first
        bad step on, the floating ones are NaN.
    first_bad_step: the first step, from 1 on, whose loss or updated parameters were not finite; 0 for none.
    """

    params: Any
    start: Any
    start_loss: Float[Array, ""]
    seen: dict[str, Array]
    first_bad_step: Int[Array, ""]

    def hide(self, values: Any) -> Any:
        """`values` of the final parameters (a pytree), with NaN for every float if the run was frozen."""
        return _nan_where_bad(values, self.first_bad_step)


class State(NamedTuple):
    """What one step hands to the next."""

    params: Any
    memory: Any
    step: Int[Array, ""]
    first_bad_step: Int[Array, ""]


class Batch(NamedTuple):
    """Numbers of a batch's examples, and which of them count (None: all). A short last batch is padded."""

    examples: Int[Array, ...]
    counts: Bool[Array, ...] | None


def fit(
    key: Array,
    task: Task,
    update: Update,
    *,
    epochs: int,
    batch_size: int,
    order: str = "per_seed",
    probe: Callable[[Any, Any], Mapping[str, Any]] | None = None,
) -> Fit:
    """Train on shuffled batches of `batch_size` examples, the last of an epoch as short as it comes out.

    `order` "per_seed" draws each epoch's order from the key; "shared" is one sequence of orders for all keys.
    `probe(params, key)` is what is observed after each epoch, with a key of its own for each.

    Errors: UsageError, while tracing, for sizes below 1, an unknown order, data of unequal lengths, a loss
    that is not one number an example, and a probe that takes a name which is taken.
    """
    n = _require(task, epochs, batch_size)
    require_choice(order, ORDERS, "order")
    init_key, order_key, noise_key, probe_key = random.split(key, 4)
    if order == "shared":
        order_key = jax.random.key(0, impl="threefry2x32")
    start = task.init(init_key)
    zero = jnp.int32(0)

    def step(state: State, batch: Batch) -> tuple[State, dict[str, Array]]:
        return _step(task, update, state, batch, noise_key)

    def epoch(state: State, number: Array) -> tuple[State, tuple[Array, dict[str, Array]]]:
        batches = make_batches(random.fold_in(order_key, number), n, batch_size)
        state, seen = jax.lax.scan(step, state, batches)
        first_loss, seen = seen["train_loss"][0], _average(seen, batches.counts)
        observed = {} if probe is None else dict(probe(state.params, random.fold_in(probe_key, number)))
        if set(observed) & set(seen):
            raise UsageError(
                f"probe: {sorted(set(observed) & set(seen))} are fit's own or the task's measures."
            )
        return state, (first_loss, _nan_where_bad(seen | observed, state.first_bad_step))

    begin = State(start, update.init(start), zero, zero)
    state, (first_losses, seen) = jax.lax.scan(epoch, begin, jnp.arange(epochs))
    return Fit(state.params, start, first_losses[0], seen, state.first_bad_step)


def shuffle(key: Array, n: int) -> Int[Array, " n"]:
    """0..n-1 in a random order."""
    if n > FEW:
        return jax.random.permutation(key, n)
    # random high bits, the number itself in the low ones: to sort these is to shuffle those
    low_bits = (1 << (n - 1).bit_length()) - 1
    high = random.bits(key, (n,)) & jnp.uint32(0xFFFFFFFF - low_bits)
    return (_sort(high | jnp.arange(n, dtype=jnp.uint32)) & low_bits).astype(jnp.int32)


@jax.custom_batching.custom_vmap
def _sort(words: UInt32[Array, " n"]) -> UInt32[Array, " n"]:
    return jnp.sort(words)


@_sort.def_vmap
def _sort_batch(size: int, is_batched: list[bool], words: UInt32[Array, "lanes n"]) -> tuple[Array, bool]:
    return one_kernel(_bitonic)(words.T).T, True


def _bitonic(words: UInt32[Array, "n lanes"]) -> UInt32[Array, "n lanes"]:
    """Bitonic network (Batcher 1968), the lanes in the last axis: a step is one minimum and one maximum of vectors."""
    n, size = words.shape
    length = 1 << (n - 1).bit_length()
    x = jnp.pad(words, ((0, length - n), (0, 0)), constant_values=np.uint32(0xFFFFFFFF))
    for block in (2**i for i in range(1, length.bit_length())):
        low, high = x.reshape(-1, 2, block // 2, size).swapaxes(0, 1)
        high = high[:, ::-1]
        x = jnp.stack([jnp.minimum(low, high), jnp.maximum(low, high)[:, ::-1]], axis=1)
        for half in (block >> i for i in range(2, block.bit_length())):
            low, high = x.reshape(-1, 2, half, size).swapaxes(0, 1)
            x = jnp.stack([jnp.minimum(low, high), jnp.maximum(low, high)], axis=1)
    return x.reshape(length, size)[:n]


def make_batches(key: Array, n: int, batch_size: int) -> Batch:
    """An epoch's batches, [step, batch]; a short last one is filled with its own last example."""
    batch_size = min(batch_size, n)
    places = jnp.arange(-(-n // batch_size) * batch_size).reshape(-1, batch_size)
    examples = shuffle(key, n)[jnp.minimum(places, n - 1)]
    return Batch(examples, None if n % batch_size == 0 else places < n)


def matrices(params: Any) -> Any:
    """True for each parameter that is a matrix or more, as decay and penalties want it: no bias."""
    return jax.tree.map(lambda x: jnp.ndim(x) > 1, params)


def norm_of_matrices(params: Any) -> Float[Array, ""]:
    """Euclidean norm of all weights together, biases left out."""
    return norm([x for x in jax.tree.leaves(params) if jnp.ndim(x) > 1])


def _step(
    task: Task, update: Update, state: State, batch: Batch, noise_key: Array
) -> tuple[State, dict[str, Array]]:
    """One update, or none if it or the loss is not finite, or one before was not."""
    inputs, targets = jax.tree.map(lambda x: x.at[batch.examples].get(mode="promise_in_bounds"), task.data)
    key = random.fold_in(noise_key, state.step)

    def objective(params: Any) -> tuple[Array, tuple[Array, dict[str, Array]]]:
        outputs = task.apply(params, inputs, key)
        losses = task.loss(outputs, targets)
        if losses.shape != batch.examples.shape:
            raise UsageError(
                f"loss returned {losses.shape}: one number an example, {batch.examples.shape}, is wanted."
            )
        measured = {} if task.measure is None else dict(task.measure(outputs, targets))
        loss = _mean(losses, batch.counts)
        penalty = 0.0 if task.penalty is None else task.penalty(params)
        return loss + penalty, (loss, {name: _mean(value, batch.counts) for name, value in measured.items()})

    (_, (loss, measured)), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
    change, memory = update.update(gradient, state.memory, state.params)
    params = optax.apply_updates(state.params, change)
    # 0 times what is not finite is NaN, and a sum is twice as fast as to ask every number
    finite = 0 * loss + sum(total(0 * x) for x in jax.tree.leaves(params)) == 0
    moves = finite & (state.first_bad_step == 0)
    params, memory = jax.tree.map(
        lambda new, old: jnp.where(moves, new, old), (params, memory), (state.params, state.memory)
    )
    first_bad_step = jnp.where((state.first_bad_step == 0) & ~finite, state.step + 1, state.first_bad_step)
    seen = {"train_loss": loss, "gradient_norm": norm(gradient), **measured}
    return State(params, memory, state.step + 1, first_bad_step), seen


def _mean(values: Array, counts: Array | None) -> Array:
    """Mean over the batch of what counts. What pads is a copy of what counts, and as finite as that."""
    if counts is None:
        return jnp.mean(values)
    return jnp.sum(jnp.where(counts, values, 0)) / jnp.sum(counts)


def _average(seen: dict[str, Array], counts: Array | None) -> dict[str, Array]:
    """Means of what an epoch's steps saw, [step]: of losses and measures over examples, of norms over steps."""
    share = None if counts is None else jnp.mean(counts, axis=1) / jnp.mean(counts)
    return {
        name: jnp.mean(values if share is None or name == "gradient_norm" else values * share)
        for name, values in seen.items()
    }


def _nan_where_bad(values: Any, first_bad_step: Array) -> Any:
    """NaN for every float of a frozen run: what it shows then looks like a result and is none."""

    def hide(x: Any) -> Array:
        x = jnp.asarray(x)
        return jnp.where(first_bad_step == 0, x, jnp.nan) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(hide, values)


def _require(task: Task, epochs: int, batch_size: int) -> int:
    """The number of examples, once everything that can be checked is."""
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if value < 1:
            raise UsageError(f"{name}={value}: at least 1 is wanted.")
    lengths = {x.shape[0] if jnp.ndim(x) else 0 for x in jax.tree.leaves(task.data)}
    if len(lengths) != 1 or 0 in lengths:
        raise UsageError(
            f"task.data: arrays of one common length [example, ...] are wanted, got {sorted(lengths)}."
        )
    return lengths.pop()
