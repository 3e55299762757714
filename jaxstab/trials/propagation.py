"""How signals and gradients travel through a deep stack at initialization, layer by layer.

One trial draws a stack inside a scan, carries an input of N(0, 1) entries through it, and then the gradient of
a random linear read-out back. Two streams run side by side on the same draws: the real one in the Spec's dtype,
which overflows and underflows as that dtype does, and one in float32 whose power of two is carried apart, for
the logarithms. Layers count from 1.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxstab import random
from jaxstab.errors import UsageError, canonicalize
from jaxstab.names import spell
from jaxstab.nets.layers import register
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
from jaxstab.nets.weights import Weights
from jaxstab.scaling import exponent_of, power_of_two, rms
from jaxstab.theory import activations
from jaxstab.trials import signals
from jaxstab.trials.family import Family, Trial, require_all
from jaxstab.trials.outputs import Doc, Output
from jaxstab.trials.prediction import predict
from jaxstab.typing import Activation

VJP: TypeAlias = Any
"""What `jax.vjp` returns: a pytree that holds what the way back needs of the way there."""
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
    kind: Annotated[Any, Doc("kind of stack, or its layer")] = "plain"
    sampler: Annotated[str, Doc("how layers are drawn: their matrices, or in law without")] = "dense"
    dtype: Annotated[str, Doc("format of the signal and of the gradient")] = "float32"
    precision: Annotated[str, Doc("precision of matrix products")] = "highest"
    branch_matrices: Annotated[int, Doc("matrices of a residual branch")] = 1
    sublayers: Annotated[str, Doc("what the layers of a transformer are")] = "ffn"
    tokens: Annotated[int, Doc("tokens of an input; 0: inputs are single vectors")] = 0
    heads: Annotated[int, Doc("heads of attention")] = 1

    def __post_init__(self) -> None:
        for name in ("depth", "width", "batch"):
            if not 1 <= getattr(self, name) < MOST_ENTRIES:
                raise UsageError(f"{name}={getattr(self, name)}: at least 1 and below 2^31 is wanted.")
        if self.tokens < 0:
            raise UsageError(f"tokens={self.tokens}: 1 or more, or 0 for inputs that are single vectors.")
        canonicalize(self, {"dtype": DTYPES, "precision": PRECISIONS, "sublayers": register.SUBLAYERS})
        activations.canonicalize(self)
        if isinstance(self.kind, str):
            canonicalize(self, {"kind": register.KINDS})
        for name in ("init", "sampler"):
            object.__setattr__(self, name, getattr(self.weights, name))
        self._require_arrays()
        self._require_layer()

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

    def _require_layer(self) -> None:
        """Refuse a layer that cannot be one, and one that wants tokens where there are none."""
        if not isinstance(self.kind, (str, Layer)):
            choices = ", ".join(register.KINDS)
            raise UsageError(
                f"kind={spell(self.kind)}: a name, or an object with draw(key, numbers) and"
                f" __call__(params, state, numbers), is wanted. Choices: {choices}."
            )
        attends = self.kind in register.ATTENDING or (
            self.kind in register.ORDERS and self.sublayers != "ffn"
        )
        if attends and not self.tokens:
            raise UsageError(f"kind={self.kind!r} attends to tokens: give tokens=, 1 or more.")
        self.layer  # noqa: B018 - refuses what it cannot be made of

    @property
    def weights(self) -> Weights:
        """How this Spec's weights are drawn."""
        return Weights(self.init, self.sampler, self.precision)

    @property
    def layer(self) -> Layer:
        """The layer that this Spec describes, or holds."""
        if not isinstance(self.kind, str):
            return self.kind
        return register.make_layer(
            self.kind, self.width, self.activation, self.weights, branch_matrices=self.branch_matrices,
            sublayers=self.sublayers, heads=self.heads,
        )  # fmt: skip

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the inputs: [batch, width], or [batch, tokens, width]."""
        return (self.batch, self.tokens, self.width) if self.tokens else (self.batch, self.width)


class HParams(NamedTuple):
    """The numbers: each is traced, so that any of their values is a lane of the same program."""

    gain: Annotated[float, Doc("factor on the weights")] = 1.0
    sigma_b: Annotated[float, Doc("standard deviation of the biases")] = 0.0
    branch_scale: Annotated[float, Doc("factor on a residual branch")] = 1.0
    forget_bias: Annotated[float, Doc("bias of an LSTM's forget gate")] = 1.0
    skip_scale: Annotated[float, Doc("factor on what a residual branch is added to")] = 1.0
    qk_scale: Annotated[float, Doc("factor on the logits of attention")] = 1.0
    dropout: Annotated[tuple[float, ...], Doc("dropout rate of every layer; none: no dropout")] = ()

    def validate(self, spec: Spec) -> None:
        """Refuse a negative standard deviation, and rates that are none."""
        holds = ~(np.asarray(self.sigma_b) < 0)
        require_all(holds, "sigma_b", self.sigma_b, "a standard deviation is at least 0.")
        if len(self.dropout) > 1:
            raise UsageError(f"dropout: {len(self.dropout)} rates; one for all layers, or none, is wanted.")
        for rate in map(np.asarray, self.dropout):
            require_all((rate >= 0) & (rate <= 1), "dropout", rate, "a rate is a probability.")


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

    def through(self, params: Params, stream: Stream) -> tuple[State, VJP, list[Array]]:
        """A layer's next state, the map of gradients back through it, what its activation was applied to."""

        def call(params: Params, state: State) -> tuple[State, list[Array]]:
            with noting() as noted:
                after = self.layer(params, state, self.numbers)
            return after, noted

        given = in_dtype(params, signal(stream.state).dtype, stream.exponent)
        return jax.vjp(call, given, stream.state, has_aux=True)

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

    def observe(self, h: Float[Array, "batch ..."], noted: list[Array]) -> dict[str, Array]:
        """Statistics of one layer's activations h, which came of the preactivations that it noted."""
        seen = {f"forward_{name}": value for name, value in signals.describe(h).items()}
        seen["zero_fraction"] = seen.pop("forward_zero_fraction")
        seen["saturated_fraction"] = self.saturated(noted)
        seen["correlation"] = signals.mean_cosine(h)
        return seen | {f"forward_{k}": v for k, v in signals.is_bad(h).items()}

    def saturated(self, noted: list[Array]) -> Float[Array, ""]:
        """Share of units where the activation is flat; NaN of a layer that does not tell."""
        if not noted:
            return jnp.float32(jnp.nan)
        derivative = activations.derivative(activations.resolve(self.spec.activation))

        def slope(x: Array) -> Array:
            return jnp.abs(derivative(x))

        # the largest slope is found in the program itself: a sweep compiles its programs and nothing else
        largest = jnp.nanmax(slope(jnp.linspace(-20.0, 20.0, 2001)))
        flat = [slope(z.astype(jnp.float32)) < 0.01 * largest for z in noted]
        return jnp.mean(jnp.stack([jnp.mean(one.astype(jnp.float32)) for one in flat]))

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
        passages, streams, seen = walk.forward()
        seen = seen | walk.backward(passages, streams)
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
