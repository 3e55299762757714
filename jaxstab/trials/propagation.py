"""How signals and gradients travel through a deep stack at initialization, layer by layer.

One trial draws a stack inside a scan, carries an input of N(0, 1) entries through it, and then the gradient of
a random linear read-out back. Two streams run side by side on the same draws: the real one in the Spec's dtype,
which overflows and underflows as that dtype does, and one in float32 whose power of two is carried apart, for
the logarithms. Layers count from 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxstab.formats import storage
from jaxstab.trials import signals
from jaxstab.trials.family import Family, Trial
from jaxstab.trials.outputs import Output
from jaxstab.trials.prediction import predict
from jaxstab.trials.stack import HParams, Spec
from jaxstab.trials.walk import Walk

FLAGS = ("ok", "nonfinite", "vanished")
OK, NONFINITE, VANISHED = range(3)


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
        with storage(spec.dtype).computing():
            return walked(key, hparams)

    def walked(key: jax.Array, hparams: HParams) -> dict[str, Array]:
        walk = Walk(spec, hparams, key)
        passages, streams, seen = walk.forward()
        seen = seen | walk.backward(passages, streams)
        found = first_layers(seen, "forward") | first_layers(seen, "backward")
        by_layer = {name: seen[name] for name, row in OUTPUTS.items() if row.is_measured and name in seen}
        return by_layer | found | {"status": status(found)}

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
    "saturated_fraction": _by_layer(
        "share of units where |phi'| is below 1 % of its maximum", undefined="where the layer names no activation"
    ),
    "correlation": _by_layer(
        "mean cosine over pairs of inputs, or of an input's tokens", undefined="where fewer than two are nonzero"
    ),
    "backward_rms": _by_layer("root mean square of the gradient with respect to the activations", "interval"),
    "weight_gradient_rms": _by_layer(
        "root mean square of the gradient with respect to the weights", undefined="where the layer has no weights"
    ),
    "forward_profile": Output(
        ("layer", "row", "column"), "root mean square of a convolution's activations by pixel", theory="value"
    ),
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
