"""What a propagation is of: the Spec of a stack of layers, and the numbers that vary within one program."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np

from jaxstab.errors import UsageError, require_choice
from jaxstab.formats import COMPUTED, name_of_dtype, name_of_format
from jaxstab.names import spell
from jaxstab.nets import initializers, weights
from jaxstab.nets.layers import register
from jaxstab.nets.layers.check import require_layers
from jaxstab.nets.layers.layer import Layer, is_reused
from jaxstab.nets.weights import Weights
from jaxstab.theory import activations, convolutions
from jaxstab.trials.family import require_all
from jaxstab.trials.outputs import Doc, canonicalize
from jaxstab.typing import Activation

DTYPES = (*COMPUTED, "float8_e5m2", "float8_e4m3fn", "e4m3")
"""The last stands for any other numbers of bits of exponent and mantissa."""
PRECISIONS = ("default", "high", "highest")
SAMPLERS = ("auto", *weights.SAMPLERS)
FEW = 8
"""Examples are few, and layers cheaper drawn in law, where units are so many times as many.

Measured on a CPU, Gaussian stacks of 64 and 256 units: 2.3 to 4.2 times as fast there, 0.6 to 1.3 at half as many.
"""
MOST_ENTRIES = 2**31
"""Arrays of so many entries or more cannot be indexed."""


def _each(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def _canonical_kind(kind: Any) -> Any:
    """A layer among several in turn: one of the user's, or of the register but for that of images."""
    choices = [name for name in register.KINDS if name != "convolution"]
    return require_choice(kind, choices, "kind among several:") if isinstance(kind, str) else kind


def _canonical_dtype(dtype: Any) -> str:
    """A format's name: of what JAX computes in, or of what float32 simulates."""
    name = name_of_dtype(dtype)
    if isinstance(dtype, tuple) or re.fullmatch(r"e\d+m\d+", name):
        return name_of_format(dtype)
    return require_choice(name or dtype, DTYPES, "dtype")


@dataclasses.dataclass(frozen=True)
class Spec:
    """The program: sizes, names and dtypes of a stack."""

    depth: Annotated[int, Doc("number of layers")] = 100
    width: Annotated[int | tuple[int, ...], Doc("units of a layer")] = 256
    batch: Annotated[int, Doc("number of inputs, each with N(0, 1) entries")] = 16
    activation: Annotated[Activation, Doc("activation function", choices=tuple(activations.ACTIVATIONS))] = (
        "tanh"
    )
    init: Annotated[Any, Doc("initialization of the weights", choices=initializers.NAMES)] = "xavier_normal"
    kind: Annotated[Any, Doc("kind of stack, or a layer", choices=register.KINDS)] = "plain"
    sampler: Annotated[str, Doc("how layers are drawn: their matrices, or in law", choices=SAMPLERS)] = "auto"
    dtype: Annotated[Any, Doc("format of signal and gradient", choices=DTYPES)] = "float32"
    precision: Annotated[str, Doc("precision of matrix products", choices=PRECISIONS)] = "highest"
    branch_matrices: Annotated[int, Doc("matrices of a residual branch")] = 1
    sublayers: Annotated[str, Doc("what the layers of a transformer are", choices=register.SUBLAYERS)] = "ffn"
    tokens: Annotated[int, Doc("tokens of an input; 0: inputs are single vectors")] = 0
    heads: Annotated[int, Doc("heads of attention")] = 1
    kernel: Annotated[int, Doc("side of a convolution's kernel, pixels")] = 3
    side: Annotated[int, Doc("side of a convolution's images, pixels")] = 8
    padding: Annotated[
        str, Doc("what a convolution finds outside the image", choices=convolutions.PADDINGS)
    ] = "zero"

    def __post_init__(self) -> None:
        for name in ("depth", "width", "batch", "kernel", "side"):
            if not all(1 <= n < MOST_ENTRIES for n in _each(getattr(self, name))):
                raise UsageError(f"{name}={getattr(self, name)}: at least 1 and below 2^31 is wanted.")
        if self.tokens < 0:
            raise UsageError(f"tokens={self.tokens}: 1 or more, or 0 for inputs that are single vectors.")
        canonicalize(self)
        object.__setattr__(self, "dtype", _canonical_dtype(self.dtype))
        activations.canonicalize(self)
        if isinstance(self.kind, str):
            object.__setattr__(self, "kind", require_choice(self.kind, register.KINDS, "kind"))
        elif isinstance(self.kind, tuple):
            object.__setattr__(self, "kind", tuple(map(_canonical_kind, self.kind)))
        object.__setattr__(self, "init", self.weights.init)
        if self.dtype == "float64" and self.sampler == "conditioned":
            raise UsageError(
                "dtype='float64': what sampler='conditioned' draws is float32; sampler='dense' holds it."
            )
        self._require_arrays()
        self._require_layer()

    def _require_arrays(self) -> None:
        """Refuse arrays that XLA cannot index: 2^31 entries or more."""
        width, (_, *within, _) = max(self.widths), self.shape
        rows, taps = self.batch * math.prod(within), self.kernel**2 if self.kind == "convolution" else 1
        if taps * width * rows >= MOST_ENTRIES:
            of = f" of {self.tokens} tokens" if self.tokens else f" of {self.side} x {self.side} pixels"
            said = f"width={width} and batch={self.batch}" + of * (len(within) > 0)
            fitting = (MOST_ENTRIES - 1) // (taps * width * math.prod(within))
            raise UsageError(
                f"{said}: a signal of {taps * width * rows:.2g} entries, and an array holds fewer than 2^31;"
                f" at this width batch={fitting} would fit."
            )
        # where examples are not few a layer drawn in law draws its matrix
        is_drawn = not self.is_in_law or 2 * rows > taps * width
        blocks = 4 if self.kind == "lstm" else taps
        if is_drawn and blocks * width**2 >= MOST_ENTRIES:
            fitting = math.isqrt((MOST_ENTRIES - 1) // blocks)
            raise UsageError(
                f"width={width}: a matrix of {blocks * width**2:.2g} entries, and an array holds fewer than 2^31;"
                f" width={fitting} would fit, or sampler='conditioned', which draws no matrix where examples are few."
            )

    def _require_layer(self) -> None:
        """Refuse a layer that cannot be one, and one that wants tokens where there are none."""
        for kind in self.kind if isinstance(self.kind, tuple) else (self.kind,):
            if not isinstance(kind, (str, Layer)):
                choices = ", ".join(register.KINDS)
                raise UsageError(
                    f"kind={spell(kind)}: a name, or an object with draw(key, numbers) and"
                    f" __call__(params, state, numbers), is wanted. Choices: {choices}."
                )
            attends = kind in register.ATTENDING or (kind in register.ORDERS and self.sublayers != "ffn")
            if attends and not self.tokens:
                raise UsageError(f"kind={kind!r} attends to tokens: give tokens=, 1 or more.")
        if isinstance(self.width, tuple) and len(self.width) != self.depth + 1:
            raise UsageError(
                f"width={self.width}: {len(self.width)} widths are {len(self.width) - 1} layers; give depth="
                f"{len(self.width) - 1}."
            )
        layers = self.layers  # refuses what they cannot be made of
        if self.depth % len(layers):
            raise UsageError(
                f"depth={self.depth}: a multiple of {len(layers)} is wanted, the layers in turn."
            )
        if len(layers) > 1 and any(map(is_reused, layers)):
            raise UsageError(f"kind={spell(self.kind)}: a layer that is drawn once stands alone.")
        if not isinstance(self.kind, str):
            require_layers(layers, self.shape, self.dtype)

    @classmethod
    def settle(cls, specs: Sequence[Spec]) -> dict[str, str]:
        """What "auto" stands for in a sweep of these: one sampler for all, since seeds are paired across them."""
        undecided = [spec for spec in specs if spec.sampler == "auto" and isinstance(spec.kind, str)]
        if not undecided:
            return {}
        return {"sampler": "conditioned" if all(spec.is_in_law for spec in undecided) else "dense"}

    def as_run(self, hparams: HParams) -> tuple[Spec, HParams]:
        """A Spec and float32 numbers that give the same bits: Gaussian schemes differ by a factor on the gain alone."""
        kinds = self.kind if isinstance(self.kind, tuple) else (self.kind,)
        is_named = all(isinstance(kind, str) for kind in kinds) and isinstance(self.init, str)
        if not is_named or self.init not in weights.GAUSSIAN or isinstance(self.width, tuple):
            return self, hparams
        fan = self.width * (self.kernel**2 if self.kind == "convolution" else 1)
        std = np.float32(initializers.weight_std(self.init, fan, fan))
        with np.errstate(over="ignore", under="ignore"):
            gain = jax.tree.map(lambda gain: np.float32(gain) * std, hparams.gain)
        return dataclasses.replace(self, init="normal"), hparams._replace(gain=gain)

    @property
    def is_in_law(self) -> bool:
        """Whether layers are drawn in law: where asked for, or where that is exact, cheaper, and nobody asked.

        Exact are Gaussian and orthogonal matrices that are used once, as float32 holds them: a lower format or
        precision rounds the matrix.
        """
        if self.sampler != "auto":
            return self.sampler == "conditioned"
        is_exact = (
            isinstance(self.kind, str)
            and self.kind not in register.REUSED
            and isinstance(self.init, str)
            and self.init in weights.CONDITIONED
            and (self.init != "orthogonal" or (isinstance(self.width, int) and self.kind != "convolution"))
            and (self.dtype, self.precision) == ("float32", "highest")
        )  # fmt: skip - a line each otherwise
        taps = self.kernel**2 if self.kind == "convolution" else 1
        return is_exact and FEW * math.prod(self.shape[:-1]) <= taps * min(self.widths)

    @property
    def weights(self) -> Weights:
        """How this Spec's weights are drawn."""
        sampler = "conditioned" if self.sampler == "conditioned" else "dense"
        return Weights(self.init, sampler, self.precision, self.kernel if self.kind == "convolution" else 1)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers that this Spec describes, or holds; the stack repeats them in turn."""
        make = functools.partial(
            register.make_layers, width=self.width, activation=self.activation, weights=self.weights,
            branch_matrices=self.branch_matrices, sublayers=self.sublayers, heads=self.heads, padding=self.padding,
        )  # fmt: skip
        kinds = self.kind if isinstance(self.kind, tuple) else (self.kind,)
        return tuple(layer for kind in kinds for layer in (make(kind) if isinstance(kind, str) else (kind,)))

    @property
    def widths(self) -> tuple[int, ...]:
        """Units before the first layer and behind each; of one width, before and behind any."""
        return self.width if isinstance(self.width, tuple) else (self.width, self.width)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the inputs: [batch, width], [batch, tokens, width], or [batch, side, side, width] of images."""
        within = (self.side, self.side) if self.kind == "convolution" else (self.tokens,) * (self.tokens > 0)
        return (self.batch, *within, self.widths[0])


class HParams(NamedTuple):
    """The numbers: each is traced, so that any of their values is a lane of the same program."""

    gain: Annotated[float | tuple[float, ...], Doc("factor on the weights")] = 1.0
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
        if isinstance(self.gain, tuple) and len(self.gain) != spec.depth:
            gains = tuple(np.ravel(gain)[0].item() for gain in self.gain)
            raise UsageError(f"gain={gains}: {len(gains)} gains of layers, and depth={spec.depth}.")
        if len(self.dropout) > 1:
            raise UsageError(f"dropout: {len(self.dropout)} rates; one for all layers, or none, is wanted.")
        if self.dropout and spec.kind == "lstm":
            raise UsageError("dropout: kind='lstm' has none; leave it out.")
        for rate in map(np.asarray, self.dropout):
            require_all((rate >= 0) & (rate <= 1), "dropout", rate, "a rate is a probability.")
