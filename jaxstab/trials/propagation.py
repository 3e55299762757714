"""How signals and gradients travel through a deep stack at initialization, layer by layer.

One trial draws a stack inside a scan, carries an input of N(0, 1) entries through it, and then the gradient of
a random linear read-out back. Two streams run side by side on the same draws: the real one in the Spec's dtype,
which overflows and underflows as that dtype does, and one in float32 whose power of two is carried apart, for
the logarithms. Layers count from 1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxstab import random
from jaxstab.errors import UsageError, canonicalize
from jaxstab.nets import stacks
from jaxstab.theory import activations
from jaxstab.theory.floats import power_of_two
from jaxstab.trials import signals
from jaxstab.trials.family import Family, Trial, require_all
from jaxstab.trials.outputs import Doc, Output
from jaxstab.trials.prediction import predict
from jaxstab.typing import Activation

DTYPES = ("float32", "bfloat16", "float16")
PRECISIONS = ("default", "high", "highest")
STORED_DRAWS_BYTES = 64 * 2**20
"""A lane's draws are kept for the backward pass up to this size, and drawn again beyond it."""

MOST_ENTRIES = 2**31
"""Arrays of so many entries or more cannot be indexed."""

FLAGS = ("ok", "nonfinite", "vanished")
OK, NONFINITE, VANISHED = range(3)


@dataclasses.dataclass(frozen=True)
class Spec:
    """The program: sizes, names and dtypes of a stack."""

    depth: Annotated[int, Doc("number of layers")] = 100
    width: Annotated[int, Doc("units of a layer")] = 256
    batch: Annotated[int, Doc("number of inputs, each with N(0, 1) entries")] = 16
    activation: Annotated[Activation, Doc("activation function")] = "tanh"
    init: Annotated[str, Doc("initialization of the weights")] = "xavier_normal"
    kind: Annotated[str, Doc("kind of stack")] = "plain"
    sampler: Annotated[str, Doc("how layers are drawn: their matrices, or in law without")] = "dense"
    dtype: Annotated[str, Doc("format of the signal and of the gradient")] = "float32"
    precision: Annotated[str, Doc("precision of matrix products")] = "highest"

    def __post_init__(self) -> None:
        for name in ("depth", "width", "batch"):
            if not 1 <= getattr(self, name) < MOST_ENTRIES:
                raise UsageError(f"{name}={getattr(self, name)}: at least 1 and below 2^31 is wanted.")
        self._require_arrays()
        canonicalize(self, {"dtype": DTYPES, "precision": PRECISIONS})
        for name in (
            "activation",
            "init",
            "kind",
            "sampler",
        ):  # of the stack, which refuses what no stack has
            object.__setattr__(self, name, getattr(self.stack, name))

    def _require_arrays(self) -> None:
        """Refuse arrays that XLA cannot index: 2^31 entries or more."""
        width, batch = self.width, self.batch
        if width * batch >= MOST_ENTRIES:
            raise UsageError(
                f"width={width} and batch={batch}: a signal of {width * batch:.2g} entries, and an array holds fewer"
                f" than 2^31; at this width batch={(MOST_ENTRIES - 1) // width} would fit."
            )
        # where examples are not few a layer drawn in law draws its matrix
        is_drawn = self.sampler == "dense" or 2 * batch > width
        blocks = 4 if self.kind == "lstm" else 1
        if is_drawn and blocks * width**2 >= MOST_ENTRIES:
            fitting = math.isqrt((MOST_ENTRIES - 1) // blocks)
            raise UsageError(
                f"width={width}: a matrix of {blocks * width**2:.2g} entries, and an array holds fewer than 2^31;"
                f" width={fitting} would fit, or sampler='conditioned', which draws no matrix where examples are few."
            )

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

    gain: Annotated[float, Doc("factor on the weights")] = 1.0
    sigma_b: Annotated[float, Doc("standard deviation of the biases")] = 0.0
    branch_scale: Annotated[float, Doc("factor on a residual branch")] = 1.0
    forget_bias: Annotated[float, Doc("bias of an LSTM's forget gate")] = 1.0

    def validate(self, spec: Spec) -> None:
        """Refuse a negative standard deviation."""
        holds = ~(np.asarray(self.sigma_b) < 0)
        require_all(holds, "sigma_b", self.sigma_b, "a standard deviation is at least 0.")


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
        seen = {name: seen[name] for name, row in OUTPUTS.items() if row.is_measured and row.dims}
        return seen | found | {"status": status(found)}

    return trial


def status(found: Mapping[str, Array]) -> Int[Array, ""]:
    """Of the forward signal alone, so that a forward sweep pays for no gradient: `nonfinite`, else `vanished`.

    The gradient's fate is `first_bad_layer_backward` and `first_lost_layer_backward`.
    """
    bad, lost = (found[f"first_{what}_layer_forward"] > 0 for what in ("bad", "lost"))
    return jnp.where(bad, NONFINITE, jnp.where(lost, VANISHED, OK))


def _by_layer(long_name: str, theory: str = "value", undefined: str = "") -> Output:
    return Output(("layer",), long_name, theory=theory, undefined=undefined)


def _first_layers(direction: str, signal: str) -> dict[str, Output]:
    """Rows of the layers at which a signal broke, and of what theory says of that beside them."""
    first = lambda what, theory: Output((), f"first layer whose {signal} {what} (0: none)", "layer", theory)  # noqa: E731
    share = lambda what: Output(  # noqa: E731
        (), f"share of networks whose {signal} {what} in some layer", theory="value", is_measured=False
    )
    return {
        f"first_bad_layer_{direction}": first("is not finite", "interval"),
        f"first_inf_layer_{direction}": first("holds an infinity", ""),
        f"first_nan_layer_{direction}": first("holds a NaN", ""),
        f"first_lost_layer_{direction}": first("is all zero", "interval"),
        f"break_fraction_{direction}": share("is not finite"),
        f"lost_fraction_{direction}": share("is all zero"),
    }


OUTPUTS: Mapping[str, Output] = MappingProxyType({
    "forward_mean": _by_layer("mean of the activations"),
    "forward_std": _by_layer("standard deviation of the activations", undefined="where there is one entry only"),
    "forward_rms": _by_layer("root mean square of the activations", "interval"),
    "forward_absmax": _by_layer("largest magnitude of the activations", ""),
    "forward_entry": _by_layer("the first unit's activation for the first input", ""),
    "zero_fraction": _by_layer("share of activations that are zero"),
    "saturated_fraction": _by_layer("share of units where |phi'| is below 1 % of its maximum"),
    "correlation": _by_layer("mean cosine over pairs of inputs", undefined="where fewer than two inputs are nonzero"),
    "backward_rms": _by_layer("root mean square of the gradient with respect to the activations", "interval"),
    "weight_gradient_rms": _by_layer("root mean square of the gradient with respect to the weights"),
    "log10_forward_rms": _by_layer("log10 of the activations' root mean square", "interval"),
    "log10_backward_rms": _by_layer("log10 of the gradient's root mean square", "interval"),
    **_first_layers("forward", "signal"),
    **_first_layers("backward", "gradient"),
    "loss_scale": Output((), "power of two on the loss that keeps every gradient in the dtype", theory="value",
                         is_measured=False, undefined="where no single scale does"),
    "loss_scale_reason": Output((), "why no single loss scale does ('': one does)", theory="value", is_measured=False),
})  # fmt: skip
"""What a trial returns, and what theory says beside it."""

propagation = Family(
    name="propagation",
    Spec=Spec,
    HParams=HParams,
    make_trial=make_trial,
    predict=predict,
    flags=FLAGS,
    outputs=OUTPUTS,
)
