"""What `jaxstab.propagate` does not do with inputs: find the gradient with respect to them, put one in every row."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

import jaxstab
from jaxstab import random
from jaxstab.nets.layers import layer as layers
from jaxstab.trials.family import Trial
from jaxstab.trials.stack import HParams, Spec


def make_trial(spec: Spec) -> Trial:
    """A stack as `propagation` draws it, of one kind of layer, differentiated as a whole, on to its inputs."""
    (layer,) = spec.layers

    def trial(key: jax.Array, hparams: HParams) -> dict[str, Array]:
        numbers, (input_key, layers_key, readout_key) = (
            layers.Numbers(**hparams._asdict()),
            random.split(key, 3),
        )

        def read(x: Array) -> Array:
            def body(state: Any, index: Array) -> tuple[Any, None]:
                return layer(layer.draw(random.fold_in(layers_key, index), numbers), state, numbers), None

            state, _ = jax.lax.scan(jax.checkpoint(body), layers.start(layer, x), jnp.arange(spec.depth))
            return jnp.sum(layers.end(layer, state) * random.normal(readout_key, spec.shape))

        gradient = jax.grad(read)(random.normal(input_key, spec.shape))
        return {"square": jnp.mean(gradient**2)}

    return trial


from_inputs = jaxstab.Family("from_inputs", Spec, HParams, make_trial, dims={"square": ()})
"""Mean square of the gradient with respect to a stack's inputs, which `propagation` does not go back to."""


@dataclasses.dataclass(frozen=True)
class OneInput:
    """A layer of a stack in which all inputs are the first one: what tells them apart is their dropout masks."""

    layer: layers.Layer

    def start(self, inputs: Array) -> Any:
        """The first input in every row."""
        return layers.start(self.layer, jnp.broadcast_to(inputs[:1], inputs.shape))

    def draw(self, key: jax.Array, numbers: layers.Numbers) -> Any:
        """As the layer's."""
        return self.layer.draw(key, numbers)

    def __call__(self, params: Any, state: Any, numbers: layers.Numbers) -> Any:
        return self.layer(params, state, numbers)
