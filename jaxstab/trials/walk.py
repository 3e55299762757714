"""One stack walked forward and backward, layer by layer, over the same draws.

Two streams run side by side: the real one in the Spec's dtype, which overflows and underflows as that dtype does, and
one in float32 whose power of two is carried apart, for the logarithms.
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
from jaxstab.nets.layers.layer import (
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
from jaxstab.scaling import exponent_of, power_of_two, rms
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
        scale = power_of_two(-exponent)
        return Stream(jax.tree.map(lambda x: x * scale, self.state), self.exponent + exponent)


class Passage(NamedTuple):
    """What the backward pass needs of one layer: its key, and of each stream what went in or the way back."""

    key: jax.Array
    streams: dict[str, Stream]
    pulls: dict[str, VJP]


class Walk:
    """One stack with its numbers, walked forward and backward over the same draws.

    A stream is differentiated layer by layer, by `jax.vjp` of the layer. What that keeps of a layer is stored as a
    whole where its draws are small; else without them, and they are drawn again; in law, where there is nothing but
    draws, the layer is walked again.
    """

    def __init__(self, spec: Spec, hparams: HParams, key: jax.Array):
        self.spec, self.layer = spec, spec.layer
        self.numbers = Numbers(*hparams)
        self.dtype = jnp.dtype(spec.dtype)
        self.carries_scale = is_homogeneous(self.layer)
        # forward, one stream serves both purposes where neither the dtype nor the scale sets them apart
        self.streams = ("real", "scaled") if self.carries_scale or self.dtype != jnp.float32 else ("real",)
        self.input_key, self.layers_key, self.readout_key = random.split(key, 3)
        self.once = self.layer.draw(self.layers_key, self.numbers) if is_reused(self.layer) else None
        self.stores_draws = self.once is None and self._draws_bytes() <= STORED_DRAWS_BYTES
        self.stores_pulls = self.stores_draws or spec.sampler == "dense"

    def draw(self, key: jax.Array) -> Params:
        """What one layer draws."""
        return self.layer.draw(key, self.numbers) if self.once is None else self.once

    def _draws_bytes(self) -> int:
        """Bytes of a lane's draws in float32, or of what stands for them where layers are drawn in law."""
        if self.spec.sampler == "conditioned":
            return (
                4 * self.spec.depth * 2 * math.prod(self.spec.shape)
            )  # the inputs' frame and as many normals
        shapes = jax.eval_shape(lambda: self.layer.draw(self.layers_key, self.numbers))
        return self.spec.depth * sum(x.size * 4 for x in jax.tree.leaves(shapes))

    def streams_of(self, state: State) -> dict[str, Stream]:
        """A float32 state as every stream has it at its start."""
        zero = jnp.int32(0)
        streams = {"real": Stream(jax.tree.map(lambda x: x.astype(self.dtype), state), zero)}
        if "scaled" in self.streams:
            streams["scaled"] = Stream(state, zero)
        return streams

    def through(self, params: Params, stream: Stream) -> tuple[State, VJP, list[tuple[Activation, Array]]]:
        """A layer's next state, the map of gradients back through it, its activations and what they were applied to."""
        phis: list[Activation] = []

        def call(params: Params, state: State) -> tuple[State, list[Array]]:
            with noting() as noted:
                after = self.layer(params, state, self.numbers)
            phis[:] = [phi for phi, _ in noted]
            return after, [z for _, z in noted]

        given = in_dtype(params, signal(stream.state).dtype, stream.exponent)
        after, pull, noted = jax.vjp(call, given, stream.state, has_aux=True)
        return after, pull, list(zip(phis, noted, strict=True))

    def forward(self) -> tuple[Passage, dict[str, Stream], dict[str, Array]]:
        """All layers' passages (stacked on axis 0), the streams behind the last, and what was seen of each layer."""
        begun = start(self.layer, random.normal(self.input_key, self.spec.shape))

        def body(carried: tuple[dict[str, Stream], list[Array]], index: Array) -> tuple[Any, Any]:
            # a bias is drawn one layer ahead: XLA would draw it where it is added, again for every example
            (streams, biases), key = carried, random.fold_in(self.layers_key, index)
            params = with_vectors(self.draw(key), biases)
            biases = vectors(self.draw(random.fold_in(self.layers_key, index + 1)))
            after, seen, pulls = {}, {}, {}
            for name, stream in streams.items():
                state, pull, noted = self.through(params, stream)
                after[name], pulls[name] = Stream(state, stream.exponent), pull
                if name == "real":
                    seen = self.observe(signal(state), noted)
                if name == "scaled" and self.carries_scale:
                    after[name] = after[name].rescaled()
            scaled = after[self.streams[-1]]
            seen["log10_forward_rms"] = signals.log10_rms(signal(scaled.state), scaled.exponent)
            if not self.stores_draws:
                pulls = {name: without_draws(pull) for name, pull in pulls.items()}
            if self.stores_pulls:
                streams = {name: stream._replace(state=None) for name, stream in streams.items()}
            return (after, biases), (Passage(key, streams, pulls if self.stores_pulls else {}), seen)

        first = vectors(self.draw(random.fold_in(self.layers_key, jnp.int32(0))))
        carried = (self.streams_of(begun), first)
        (streams, _), (passages, seen) = jax.lax.scan(body, carried, jnp.arange(self.spec.depth))
        return passages, streams, seen

    def observe(
        self, h: Float[Array, "batch ..."], noted: list[tuple[Activation, Array]]
    ) -> dict[str, Array]:
        """Statistics of one layer's activations h, which came of the preactivations that it noted."""
        seen = {f"forward_{name}": value for name, value in signals.describe(h).items()}
        seen["zero_fraction"] = seen.pop("forward_zero_fraction")
        seen["saturated_fraction"] = self.saturated(noted)
        seen["correlation"] = signals.mean_cosine(h)
        return seen | {f"forward_{k}": v for k, v in signals.is_bad(h).items()}

    def saturated(self, noted: list[tuple[Activation, Array]]) -> Float[Array, ""]:
        """Share of units where the activation is flat; NaN of a layer that does not tell."""
        if not noted:
            return jnp.float32(jnp.nan)
        flat = [self._is_flat(activations.derivative(activations.resolve(phi)), z) for phi, z in noted]
        return jnp.mean(jnp.stack([jnp.mean(one.astype(jnp.float32)) for one in flat]))

    @staticmethod
    def _is_flat(slope: Callable[..., Array], z: Array) -> Array:
        # the largest slope is found in the program itself: a sweep compiles its programs and nothing else
        largest = jnp.nanmax(jnp.abs(slope(jnp.linspace(-20.0, 20.0, 2001))))
        return jnp.abs(slope(z.astype(jnp.float32))) < 0.01 * largest

    def backward(self, passages: Passage, streams: dict[str, Stream]) -> dict[str, Array]:
        """The gradient of a random linear read-out, from the last layer to the first."""
        cotangent = random.normal(self.readout_key, self.spec.shape)

        def body(gradients: dict[str, Stream], passage: Passage) -> tuple[Any, Any]:
            seen, before = self.observe_gradient(gradients), {}
            params = None if self.stores_draws else self.draw(passage.key)
            for name, gradient in gradients.items():
                pull = self.way_back(passage, params, name if name in self.streams else "real")
                of_params, earlier = pull(gradient.state)
                before[name] = Stream(earlier, gradient.exponent)
                if name == "real":
                    seen["weight_gradient_rms"] = gradient_rms(of_params)
                if name == "scaled":
                    before[name] = before[name].rescaled()
            return before, seen

        gradients = {}
        for name in ("real", "scaled"):
            stream = streams[name if name in self.streams else "real"]
            _, pull = jax.vjp(lambda state: end(self.layer, state), stream.state)
            gradients[name] = Stream(pull(cotangent.astype(signal(stream.state).dtype))[0], jnp.int32(0))
        _, seen = jax.lax.scan(body, gradients, passages, reverse=True)
        return seen

    def way_back(self, passage: Passage, params: Params, stream: str) -> VJP:
        """The map of a stream's gradients through one layer, whose draws were drawn again where they are not stored."""
        if not self.stores_pulls:
            return self.through(params, passage.streams[stream])[1]
        if self.stores_draws:
            return passage.pulls[stream]
        dtype = self.dtype if stream == "real" else jnp.dtype(jnp.float32)
        return with_draws(passage.pulls[stream], in_dtype(params, dtype, passage.streams[stream].exponent))

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
