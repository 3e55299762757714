"""One stack walked forward and backward, layer by layer, over the same draws.

Two streams run side by side: the real one in the Spec's dtype, which overflows and underflows as that dtype does, and
one in float32 whose power of two is carried apart, for the logarithms. A format that JAX does not compute in is what
the real one's draws, states and gradients are rounded to; a layer computes in float32 then.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxstab import random
from jaxstab.formats import Storage, storage
from jaxstab.nets.layers.layer import (
    Layer,
    Numbers,
    Params,
    State,
    end,
    gradient_rms,
    in_dtype,
    is_homogeneous,
    is_reused,
    noting,
    signal,
    start,
    vectors,
    with_vectors,
)
from jaxstab.reductions import fraction
from jaxstab.scaling import exponent_of, power_of_two, rescale, rms
from jaxstab.theory import activations
from jaxstab.trials import signals
from jaxstab.trials.stack import HParams, Spec
from jaxstab.typing import Activation

VJP: TypeAlias = Any
"""What `jax.vjp` returns: a pytree that holds what the way back needs of the way there."""
STORED_DRAWS_BYTES = 64 * 2**20
"""A lane's draws are kept for the backward pass up to this size, and drawn again beyond it."""


class Stream(NamedTuple):
    """A signal on its way: the true state is `state * 2**exponent`."""

    state: State
    exponent: Int[Array, ""]

    def rescaled(self) -> Stream:
        """The same signal, its largest magnitude brought to [1/2, 1)."""
        exponents = [exponent_of(x) for x in jax.tree.leaves(self.state)]
        exponent = functools.reduce(jnp.maximum, exponents)
        scaled = jax.tree.map(lambda x: x * power_of_two(-exponent, x.dtype), self.state)
        return Stream(scaled, self.exponent + exponent)


class Passage(NamedTuple):
    """What the backward pass needs of one layer: its number from 0, its draws where they are stored, and of each
    stream what went in or the way back but for the draws."""

    number: Int[Array, ""]
    params: Params
    streams: dict[str, Stream]
    pulls: dict[str, VJP]


class Walk:
    """One stack with its numbers, walked forward and backward over the same draws.

    A stream is differentiated layer by layer, by `jax.vjp` of the layer. What that keeps of a layer is stored as a
    whole where its draws are small; else without them, and they are drawn again; in law, where there is nothing but
    draws, the layer is walked again.
    """

    def __init__(self, spec: Spec, hparams: HParams, key: jax.Array):
        self.spec, self.layers = spec, spec.layers
        self.numbers = Numbers(*hparams)  # type: ignore[arg-type]  # a gain by layer is one of them in `numbers_of`
        self.carries_scale = all(map(is_homogeneous, self.layers))
        # forward, one stream serves both purposes where neither the dtype nor the scale sets them apart
        is_narrow = spec.dtype not in ("float32", "float64")
        self.streams = ("real", "scaled") if self.carries_scale or is_narrow else ("real",)
        self.input_key, self.layers_key, self.readout_key = random.split(key, 3)
        first = self.layers[0]
        self.once = self.draw_with(self.layers_key, first, 0) if is_reused(first) else None
        self.stores_draws = self.once is None and self._draws_bytes() <= STORED_DRAWS_BYTES
        self.stores_pulls = self.stores_draws or spec.sampler != "conditioned"

    def numbers_of(self, index: Int[Array, ""] | int) -> Numbers:
        """The numbers of one layer, counted from 0."""
        gain = self.numbers.gain
        return self.numbers._replace(gain=jnp.stack(gain)[index]) if isinstance(gain, tuple) else self.numbers

    def draw(self, layer: Layer, index: Int[Array, ""]) -> Params:
        """What one layer draws, that number counted from 0."""
        key = random.fold_in(self.layers_key, index)
        return self.draw_with(key, layer, index) if self.once is None else self.once

    def draw_with(self, key: jax.Array, layer: Layer, index: Int[Array, ""] | int) -> Params:
        """A layer's draws: float32, the same ones whatever the stream is kept in."""
        with jax.enable_x64(False):
            return layer.draw(key, self.numbers_of(index))

    def _draws_bytes(self) -> int:
        """Bytes of a lane's draws in float32, or of what stands for them where layers are drawn in law."""
        if self.spec.sampler == "conditioned":
            entries = math.prod(self.spec.shape[:-1]) * max(self.spec.widths)
            return 4 * self.spec.depth * 2 * entries  # the inputs' frame and as many normals
        draws = lambda: [self.draw_with(self.layers_key, layer, 0) for layer in self.layers]  # noqa: E731 - one expression
        entries = sum(x.size for x in jax.tree.leaves(jax.eval_shape(draws)))
        return 4 * entries * self.spec.depth // len(self.layers)

    def streams_of(self, state: State) -> dict[str, Stream]:
        """A float32 state as every stream has it at its start."""
        zero = jnp.int32(0)
        streams = {"real": Stream(self.stored("real", state), zero)}
        if "scaled" in self.streams:
            streams["scaled"] = Stream(state, zero)
        return streams

    def storage_of(self, name: str) -> Storage:
        """How a stream's numbers are kept."""
        is_own = name == "scaled" and name in self.streams
        return storage("float32" if is_own else self.spec.dtype)

    def stored(self, name: str, state: State) -> State:
        """A stream's state or gradient as it is kept between layers."""
        return jax.tree.map(self.storage_of(name), state)

    def through(
        self, name: str, place: int, index: Int[Array, ""], params: Params, stream: Stream
    ) -> tuple[State, VJP, list[tuple[Activation, Array]]]:
        """A layer's next state, the map of gradients back through it, its activations and what they were applied to."""
        phis: list[Activation] = []
        layer, numbers = self.layers[place], self.numbers_of(index)

        def call(params: Params, state: State) -> tuple[State, list[Array]]:
            with noting() as noted:
                after = layer(params, state, numbers)
            phis[:] = [phi for phi, _ in noted]
            return after, [z for _, z in noted]

        given = in_dtype(params, self.storage_of(name), stream.exponent)
        after, pull, noted = jax.vjp(call, given, stream.state, has_aux=True)
        return self.stored(name, after), pull, list(zip(phis, noted, strict=True))

    def forward(self) -> tuple[tuple[Passage, ...], dict[str, Stream], dict[str, Array]]:
        """The passages of each of `layers` (stacked on axis 0), the streams behind the last, and what was seen."""
        begun = start(self.layers[0], random.normal(self.input_key, self.spec.shape))

        def body(carried: Any, round_: Array) -> tuple[Any, Any]:
            passages, sights = [], []
            for place, index in enumerate(self.indices(round_)):
                carried, passage, seen = self.forth(carried, place, index)
                passages.append(passage)
                sights.append(seen)
            return carried, (tuple(passages), self.joined(sights))

        first = vectors(self.draw(self.layers[0], jnp.int32(0)))
        (streams, _), (passages, seen) = self.scan(body, (self.streams_of(begun), first), self.rounds())
        return passages, streams, self.unrolled(seen)

    def forth(
        self, carried: tuple[dict[str, Stream], list[Array]], place: int, index: Int[Array, ""]
    ) -> tuple[tuple[dict[str, Stream], list[Array]], Passage, dict[str, Array]]:
        """One layer's way there: what is carried on, its passage, and what was seen of it."""
        # a bias is drawn one layer ahead: XLA would draw it where it is added, again for every example
        streams, biases = carried
        layer, following = self.layers[place], self.layers[(place + 1) % len(self.layers)]
        params = with_vectors(self.draw(layer, index), biases)
        biases = vectors(self.draw(following, index + 1))
        after, seen, pulls = {}, {}, {}
        for name, stream in streams.items():
            state, pull, noted = self.through(name, place, index, params, stream)
            after[name], pulls[name] = Stream(state, stream.exponent), pull
            if name == "real":
                seen = self.observe(signal(state), noted)
            if name == "scaled" and self.carries_scale:
                after[name] = after[name].rescaled()
        scaled = after[self.streams[-1]]
        seen["log10_forward_rms"] = signals.log10_rms(signal(scaled.state), scaled.exponent)
        pulls = {name: without_draws(pull) for name, pull in pulls.items()} if self.stores_pulls else {}
        if self.stores_pulls:
            streams = {name: stream._replace(state=None) for name, stream in streams.items()}
        return (after, biases), Passage(index, params if self.stores_draws else None, streams, pulls), seen

    def rounds(self) -> Int[Array, " round"]:
        """The layers are walked in turn so many times."""
        return jnp.arange(self.spec.depth // len(self.layers), dtype=jnp.int32)

    def indices(self, round_: Int[Array, ""]) -> list[Int[Array, ""]]:
        """The numbers of a round's layers."""
        count = len(self.layers)
        return [round_] if count == 1 else [count * round_ + i for i in range(count)]

    def scan(self, body: Any, carried: Any, xs: Any, reverse: bool = False) -> tuple[Any, Any]:
        """`jax.lax.scan`; of a single round its body itself, since states of its layers may differ in shape."""
        if 1 < len(self.layers) == self.spec.depth:
            carried, found = body(carried, jax.tree.map(lambda x: x[0], xs))
            return carried, jax.tree.map(lambda x: x[None], found)
        return jax.lax.scan(body, carried, xs, reverse=reverse)

    def joined(self, sights: list[dict[str, Array]]) -> dict[str, Array]:
        """What was seen of a round's layers, stacked."""
        return sights[0] if len(sights) == 1 else jax.tree.map(lambda *x: jnp.stack(x), *sights)

    def unrolled(self, seen: dict[str, Array]) -> dict[str, Array]:
        """What was seen, [layer, ...], of [round, layer of the round, ...]."""
        if len(self.layers) == 1:
            return seen
        return {name: x.reshape(self.spec.depth, *x.shape[2:]) for name, x in seen.items()}

    def observe(
        self, h: Float[Array, "batch ..."], noted: list[tuple[Activation, Array]]
    ) -> dict[str, Array]:
        """Statistics of one layer's activations h, which came of the preactivations that it noted."""
        seen = {f"forward_{name}": value for name, value in signals.describe(h).items()}
        seen["zero_fraction"] = seen.pop("forward_zero_fraction")
        seen["saturated_fraction"] = self.saturated(noted)
        seen["correlation"] = signals.mean_cosine(h)
        if self.spec.kind == "convolution":
            m, exponent = rescale(h)
            seen["forward_profile"] = jnp.ldexp(jnp.sqrt(jnp.mean(m * m, axis=(0, 3))), exponent)
        return seen | {f"forward_{k}": v for k, v in signals.is_bad(h).items()}

    def saturated(self, noted: list[tuple[Activation, Array]]) -> Float[Array, ""]:
        """Share of units where the activation is flat; NaN of a layer that does not tell."""
        if not noted:
            return jnp.float32(jnp.nan)
        flat = [self._is_flat(activations.derivative(activations.resolve(phi)), z) for phi, z in noted]
        return jnp.mean(jnp.stack(list(map(fraction, flat))))

    @staticmethod
    def _is_flat(slope: Callable[..., Array], z: Array) -> Array:
        # the largest slope is found in the program itself: a sweep compiles its programs and nothing else
        largest = jnp.nanmax(jnp.abs(slope(jnp.linspace(-20.0, 20.0, 2001))))
        return jnp.abs(slope(z.astype(jnp.float32))) < 0.01 * largest

    def backward(self, passages: tuple[Passage, ...], streams: dict[str, Stream]) -> dict[str, Array]:
        """The gradient of a random linear read-out, from the last layer to the first."""

        def body(gradients: dict[str, Stream], passages: tuple[Passage, ...]) -> tuple[Any, Any]:
            sights = []
            for place in reversed(range(len(self.layers))):
                gradients, seen = self.back(gradients, place, passages[place])
                sights.append(seen)
            return gradients, self.joined(sights[::-1])

        gradients = {}
        for name in ("real", "scaled"):
            stream = streams[name if name in self.streams else "real"]
            read, pull = jax.vjp(lambda state: end(self.layers[-1], state), stream.state)
            cotangent = random.normal(self.readout_key, read.shape)
            cotangent = self.stored(name, cotangent).astype(read.dtype)
            gradients[name] = Stream(self.stored(name, pull(cotangent)[0]), jnp.int32(0))
        _, seen = self.scan(body, gradients, passages, reverse=True)
        return self.unrolled(seen)

    def back(
        self, gradients: dict[str, Stream], place: int, passage: Passage
    ) -> tuple[dict[str, Stream], dict[str, Array]]:
        """One layer's way back: the gradients before it, and what was seen of those behind it."""
        seen, before = self.observe_gradient(gradients), {}
        params = passage.params if self.stores_draws else self.draw(self.layers[place], passage.number)
        for name, gradient in gradients.items():
            pull = self.way_back(place, passage, params, name if name in self.streams else "real")
            of_params, earlier = pull(gradient.state)
            before[name] = Stream(self.stored(name, earlier), gradient.exponent)
            if name == "real":
                seen["weight_gradient_rms"] = gradient_rms(of_params)
            if name == "scaled":
                before[name] = before[name].rescaled()
        return before, seen

    def way_back(self, place: int, passage: Passage, params: Params, stream: str) -> VJP:
        """The map of a stream's gradients through one layer."""
        if not self.stores_pulls:
            return self.through(stream, place, passage.number, params, passage.streams[stream])[1]
        given = in_dtype(params, self.storage_of(stream), passage.streams[stream].exponent)
        return with_draws(passage.pulls[stream], given)

    def observe_gradient(self, gradients: dict[str, Stream]) -> dict[str, Array]:
        """Size of the gradient with respect to one layer's activations (and cell)."""
        real, scaled = gradients["real"], gradients["scaled"]
        entries, log_entries = _joined(real.state), _joined(scaled.state)
        seen = {"backward_rms": rms(entries)}
        seen["log10_backward_rms"] = signals.log10_rms(log_entries, scaled.exponent)
        return seen | {f"backward_{k}": v for k, v in signals.is_bad(entries).items()}


def without_draws(pull: VJP) -> VJP:
    """A layer's map of gradients, but for what it drew."""
    return dataclasses.replace(pull, args_res=[None, *pull.args_res[1:]])


def with_draws(pull: VJP, params: Params) -> VJP:
    """The map with what was drawn, drawn again."""
    return dataclasses.replace(pull, args_res=[tuple(jax.tree.leaves(params)), *pull.args_res[1:]])


def _joined(state: State) -> Float[Array, "batch ..."]:
    leaves = jax.tree.leaves(state)
    return leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves, axis=-1)
