"""How signals and gradients travel through a deep stack at initialization, layer by layer.

One trial draws a stack inside a scan, carries an input of N(0, 1) entries through it, and then the gradient of
a random linear read-out back. Two streams run side by side on the same draws: the real one in the Spec's dtype,
which overflows and underflows as that dtype does, and one in float32 whose power of two is carried apart, for
the logarithms. Layers count from 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxstab import random
from jaxstab.errors import UsageError, require_choice
from jaxstab.nets import stacks
from jaxstab.theory import activations
from jaxstab.theory.floats import power_of_two
from jaxstab.trials import signals
from jaxstab.trials.family import Family, Trial
from jaxstab.trials.prediction import predict
from jaxstab.typing import Activation

DTYPES = ("float32", "bfloat16", "float16")
PRECISIONS = ("default", "high", "highest")
STORED_DRAWS_BYTES = 64 * 2**20
"""A lane's draws are kept for the backward pass up to this size, and drawn again beyond it."""

FLAGS = ("ok", "nonfinite", "vanished")
VANISHED = 2


@dataclasses.dataclass(frozen=True)
class Spec:
    """The program: sizes, names and dtypes of a stack."""

    depth: int = 100
    width: int = 256
    batch: int = 16
    activation: Activation = "tanh"
    init: str = "xavier_normal"
    kind: str = "plain"
    sampler: str = "dense"
    dtype: str = "float32"
    precision: str = "highest"

    def __post_init__(self) -> None:
        for name in ("depth", "width", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: at least 1 is wanted.")
        require_choice(self.dtype, DTYPES, "dtype")
        require_choice(self.precision, PRECISIONS, "precision")
        self.stack  # noqa: B018  refuses what no stack has

    @property
    def stack(self) -> stacks.Stack:
        """The stack that this Spec describes."""
        return stacks.Stack(self.width, self.activation, self.init, self.kind, self.sampler, self.precision)

    @property
    def draws_bytes(self) -> int:
        """Bytes of one lane's matrices in float32, or of what stands for them where layers are drawn in law."""
        if self.sampler == "conditioned":
            return 4 * self.depth * 2 * self.batch * self.width  # the inputs' frame and as many normals
        layers = self.depth if self.kind in stacks.USED_ONCE else 1
        return 4 * layers * self.stack.blocks * self.width**2


class HParams(NamedTuple):
    """The numbers: each is traced, so that any of their values is a lane of the same program."""

    gain: float = 1.0
    sigma_b: float = 0.0
    branch_scale: float = 1.0
    forget_bias: float = 1.0

    def validate(self, spec: Spec) -> None:
        """Refuse a negative standard deviation."""
        if self.sigma_b < 0:
            raise UsageError(f"sigma_b={self.sigma_b}: a standard deviation is at least 0.")


class Stream(NamedTuple):
    """A signal on its way: the true state is `state * 2**exponent`."""

    state: stacks.State
    exponent: Int[Array, ""]

    def normalized(self) -> Stream:
        """The same signal, its largest magnitude brought to [1/2, 1)."""
        exponent = jnp.maximum(signals.exponent_of(self.state.h), signals.exponent_of(self.state.c)) \
            if self.state.c.size else signals.exponent_of(self.state.h)  # fmt: skip
        scale = power_of_two(-exponent)
        state = jax.tree.map(lambda x: x * scale, self.state)
        return Stream(state, self.exponent + exponent)


PullBack: TypeAlias = Callable[[Float[Array, "batch units"]], tuple[Float[Array, "batch width"]]]


class Layer(NamedTuple):
    """What the backward pass needs of one layer: its draws (or their key), and each stream on its way through."""

    key: jax.Array
    parameters: dict[str, Array]
    inputs: dict[str, Stream]
    preactivations: dict[str, Float[Array, "batch units"]]
    pulls: dict[str, PullBack]


class Walk:
    """One stack with its numbers, walked forward and backward over the same draws."""

    def __init__(self, spec: Spec, hparams: HParams, key: jax.Array):
        self.spec, self.stack = spec, spec.stack
        self.numbers = stacks.Numbers(*hparams)
        self.dtype = jnp.dtype(spec.dtype)
        self.carries_scale = self.stack.is_homogeneous
        # forward, one stream serves both purposes where neither the dtype nor the scale sets them apart
        self.streams = ("real", "scaled") if self.carries_scale or self.dtype != jnp.float32 else ("real",)
        self.stores_draws = spec.draws_bytes <= STORED_DRAWS_BYTES
        # a matrix is all that its pull-back needs; a layer drawn in law would have to be drawn again for it
        self.stores_pulls = self.stores_draws and spec.sampler == "conditioned"
        self.input_key, self.layers_key, self.readout_key = random.split(key, 3)
        self.is_drawn_once = spec.kind not in stacks.USED_ONCE
        self.once = self.stack.draw(self.layers_key, self.numbers) if self.is_drawn_once else {}

    def draw(self, key: jax.Array) -> dict[str, Array]:
        return self.once if self.is_drawn_once else self.stack.draw(key, self.numbers)

    def streams_of(self, state: stacks.State) -> dict[str, Stream]:
        """A float32 state as every stream has it at its start."""
        zero = jnp.int32(0)
        streams = {"real": Stream(jax.tree.map(lambda x: x.astype(self.dtype), state), zero)}
        if "scaled" in self.streams:
            streams["scaled"] = Stream(state, zero)
        return streams

    def forward(self) -> tuple[Layer, dict[str, Array]]:
        """All layers (stacked on axis 0) and what was seen of each."""
        shape = (self.spec.batch, self.spec.width)
        start = self.stack.start(random.normal(self.input_key, shape))

        def draw_bias(index: Array) -> Array:
            key = random.fold_in(self.layers_key, index)
            return self.once["bias"] if self.is_drawn_once else self.stack.draw_bias(key, self.numbers)

        def body(carried: tuple[dict[str, Stream], Array], index: Array) -> tuple[Any, Any]:
            streams, bias = carried
            key = random.fold_in(self.layers_key, index)
            parameters = self.draw(key) | {"bias": bias}
            after, seen, preactivations, pulls = {}, {}, {}, {}
            for name, stream in streams.items():
                linear, pulls[name] = self.linear(parameters, stream.state.h)
                z = self.stack.preactivations(parameters, linear, stream.exponent)
                state, observed = self.stack.activate(z, stream.state, self.numbers)
                after[name], preactivations[name] = Stream(state, stream.exponent), z
                if name == "real":
                    seen = self.observe(state.h, observed)
                if name == "scaled" and self.carries_scale:
                    after[name] = after[name].normalized()
            scaled = after[self.streams[-1]]
            seen["log10_forward_rms"] = signals.log10_rms(scaled.state.h, scaled.exponent)
            stored = {} if self.is_drawn_once or not self.stores_draws else parameters
            layer = Layer(key, stored, streams, preactivations, pulls if self.stores_pulls else {})
            # a bias is drawn one layer ahead: XLA would draw it where it is added, again for every example
            return (after, draw_bias(index + 1)), (layer, seen)

        first = (self.streams_of(start), draw_bias(jnp.int32(0)))
        _, (layers, seen) = jax.lax.scan(body, first, jnp.arange(self.spec.depth))
        return layers, seen

    def observe(self, h: Float[Array, "batch width"], z: Float[Array, "batch units"]) -> dict[str, Array]:
        """Statistics of one layer's activations h, which came of the preactivations z."""
        phi = activations.resolve(self.spec.activation)
        slope = lambda x: jnp.abs(activations.derivative(phi)(x))  # noqa: E731
        # the largest slope is found in the program itself: a sweep compiles its programs and nothing else
        flat = slope(z.astype(jnp.float32)) < 0.01 * jnp.nanmax(slope(jnp.linspace(-20.0, 20.0, 2001)))
        seen = {f"forward_{name}": value for name, value in signals.describe(h).items()}
        seen["zero_fraction"] = seen.pop("forward_zero_fraction")
        seen["saturated_fraction"] = jnp.mean(flat.astype(jnp.float32))
        seen["correlation"] = signals.mean_cosine(h)
        return seen | {f"forward_{k}": v for k, v in signals.is_bad(h).items()}

    def backward(self, layers: Layer) -> dict[str, Array]:
        """The gradient of a random linear read-out, from the last layer to the first."""
        shape = (self.spec.batch, self.spec.width)
        cotangent = random.normal(self.readout_key, shape)
        start = stacks.State(cotangent, jnp.zeros_like(self.stack.start(cotangent).c))

        def body(gradients: dict[str, Stream], layer: Layer) -> tuple[Any, Any]:
            parameters = layer.parameters or self.draw(layer.key)
            seen = self.observe_gradient(gradients)
            before = {}
            for name, gradient in gradients.items():
                stream = name if name in layer.inputs else "real"
                given, z = layer.inputs[stream].state, layer.preactivations[stream]
                _, pull = jax.vjp(lambda z, state: self.stack.activate(z, state, self.numbers)[0], z, given)
                of_z, beside = pull(gradient.state)
                pull = layer.pulls[stream] if layer.pulls else self.linear(parameters, given.h)[1]
                earlier = stacks.State(beside.h + pull(of_z)[0], beside.c)
                before[name] = Stream(earlier, gradient.exponent)
                if name == "real":
                    seen["weight_gradient_rms"] = signals.outer_norm_rms(given.h, of_z)
                if name == "scaled":
                    before[name] = before[name].normalized()
            return before, seen

        gradients = {"real": self.streams_of(start)["real"], "scaled": Stream(start, jnp.int32(0))}
        _, seen = jax.lax.scan(body, gradients, layers, reverse=True)
        return seen

    def linear(
        self, parameters: dict[str, Array], h: Float[Array, "batch width"]
    ) -> tuple[Float[Array, "batch units"], PullBack]:
        """A layer's linear part, and the map (a pytree, so that a scan can stack it) of its gradient to h's."""
        return jax.vjp(lambda h: self.stack.linear(parameters, h, self.numbers), h)

    def observe_gradient(self, gradients: dict[str, Stream]) -> dict[str, Array]:
        """Size of the gradient with respect to one layer's activations (and cell)."""
        real, scaled = gradients["real"], gradients["scaled"]
        entries, log_entries = _joined(real.state), _joined(scaled.state)
        seen = {"backward_rms": signals.rms(entries)}
        seen["log10_backward_rms"] = signals.log10_rms(log_entries, scaled.exponent)
        return seen | {f"backward_{k}": v for k, v in signals.is_bad(entries).items()}


def _joined(state: stacks.State) -> Float[Array, "batch units"]:
    return jnp.concatenate([state.h, state.c], axis=1)


def first_layers(seen: Mapping[str, Array], direction: str) -> dict[str, Array]:
    """The first layer in the direction of travel that is not finite, infinite, NaN, all zero: where a signal broke.

    A gradient travels from the last layer to the first, so that its first layer is the highest.
    """
    first = signals.first_layer if direction == "forward" else signals.last_layer
    inf, nan, zero = (seen[f"{direction}_{k}"] for k in ("inf", "nan", "zero"))
    return {
        f"first_bad_layer_{direction}": first(inf | nan),
        f"first_inf_layer_{direction}": first(inf),
        f"first_nan_layer_{direction}": first(nan),
        f"first_lost_layer_{direction}": first(zero),
    }


def make_trial(spec: Spec) -> Trial:
    """The trial of one Spec."""

    def trial(key: jax.Array, hparams: HParams) -> dict[str, Array]:
        walk = Walk(spec, hparams, key)
        layers, seen = walk.forward()
        seen = seen | walk.backward(layers)
        found = first_layers(seen, "forward") | first_layers(seen, "backward")
        return {name: seen[name] for name in LAYER_OUTPUTS} | found

    return trial


def status(outputs: Mapping[str, Array]) -> Int[Array, ""]:
    """nonfinite where a signal or gradient overflowed or became NaN, vanished where one became all zero."""
    bad, lost = jnp.array(False), jnp.array(False)
    for name, value in outputs.items():
        if name.startswith("first_lost"):
            lost |= value > 0
        elif name.startswith("first_"):
            bad |= value > 0
        elif name.endswith(("_rms", "_std", "_mean", "_absmax", "_entry")):
            # the logarithm of a signal that is all zero is -inf, which is not a failure to compute
            bad |= jnp.any(jnp.isnan(value) | (value == jnp.inf))
            lost |= jnp.any((value == 0) if not name.startswith("log10") else (value == -jnp.inf)) & (
                name in ("forward_rms", "backward_rms", "log10_forward_rms", "log10_backward_rms")
            )
    return jnp.where(bad, 1, jnp.where(lost, VANISHED, 0))


LAYER_OUTPUTS = (
    "forward_mean", "forward_std", "forward_rms", "forward_absmax", "forward_entry", "zero_fraction",
    "saturated_fraction", "correlation", "backward_rms", "weight_gradient_rms", "log10_forward_rms",
    "log10_backward_rms",
)  # fmt: skip

propagation = Family(
    name="propagation",
    Spec=Spec,
    HParams=HParams,
    make_trial=make_trial,
    dims=dict.fromkeys(LAYER_OUTPUTS, ("layer",)),
    predict=predict,
    status=status,
    flags=FLAGS,
)
