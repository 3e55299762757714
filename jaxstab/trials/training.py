"""The image classifier as a family: dense layers trained on shuffled batches, every number traced."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxstab.data import datasets
from jaxstab.data.images import ImageData
from jaxstab.errors import UsageError
from jaxstab.nets import initializers
from jaxstab.nets.mlp import make_mlp
from jaxstab.reductions import norm
from jaxstab.theory import activations
from jaxstab.trials.family import Family, Trial, require_all
from jaxstab.trials.fitting import ORDERS, Task, fit, matrices, norm_of_matrices
from jaxstab.trials.outputs import Doc, Output, canonicalize
from jaxstab.typing import Activation

OPTIMIZERS = ("sgd", "sgdw", "adam", "adamw")
"""Plain and Adam; decay added to the gradient (PyTorch's `SGD`, `Adam`), or to the step (`w`, as `AdamW`)."""

PRECISIONS = ("bfloat16", "default", "high", "highest")
"""Of products: JAX's own three, and operands rounded to bfloat16 with sums in float32."""
FLAGS = ("ok", "nonfinite", "diverged", "untrained")
OK, NONFINITE, DIVERGED, UNTRAINED = range(4)

WORSE = 2.0
"""A run has diverged whose loss ends at so many times the larger of what it began with and chance's loss."""

LEARNT = 0.95
"""A run has learnt nothing whose loss does not end below so many times what it began with and chance's loss."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """The program: data, sizes, names. `hidden` holds the units of each hidden layer."""

    dataset: Annotated[str, Doc("images and labels", choices=datasets.NAMES)] = "digits"
    hidden: Annotated[tuple[int, ...], Doc("units of each hidden layer")] = (256,)
    activation: Annotated[Activation, Doc("activation function", choices=tuple(activations.ACTIVATIONS))] = (
        "relu"
    )
    init: Annotated[str, Doc("initialization of the weights", choices=initializers.NAMES)] = "kaiming_normal"
    optimizer: Annotated[str, Doc("optimizer", choices=OPTIMIZERS)] = "sgd"
    epochs: Annotated[int, Doc("passes over the training images")] = 10
    batch_size: Annotated[int, Doc("images of a step")] = 64
    order: Annotated[str, Doc("data order: of each seed, or shared", choices=ORDERS)] = "per_seed"
    precision: Annotated[str, Doc("precision of matrix products", choices=PRECISIONS)] = "highest"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: at least 1 is wanted.")
        if any(units < 1 for units in self.hidden):
            raise UsageError(f"hidden={self.hidden}: every layer needs at least one unit.")
        canonicalize(self)
        activations.canonicalize(self)


class HParams(NamedTuple):
    """The numbers, each traced.

    weight_decay multiplies each weight and is added to its gradient (its step, for an optimizer in `w`); l1
    multiplies each weight's sign and is added to its gradient; both leave biases out. dropout: a rate for
    each hidden layer, () for a network without. gain multiplies the initialization. momentum: of sgd and
    sgdw. clip_norm: largest norm of the loss's gradient; infinity is off.
    """

    learning_rate: Annotated[float, Doc("step size")] = 0.1
    weight_decay: Annotated[float, Doc("slope of the L2 penalty over the weight")] = 0.0
    l1: Annotated[float, Doc("slope of the L1 penalty")] = 0.0
    dropout: Annotated[tuple[float, ...], Doc("dropout rate of each hidden layer")] = ()
    gain: Annotated[float, Doc("factor on the initial weights")] = 1.0
    momentum: Annotated[float, Doc("momentum of the gradient's running sum")] = 0.0
    clip_norm: Annotated[float, Doc("largest norm of the gradient")] = math.inf

    def validate(self, spec: Spec) -> None:
        """Refuse numbers that cannot be meant, naming them."""
        for name in ("learning_rate", "weight_decay", "l1", "momentum"):
            values = np.asarray(getattr(self, name))
            require_all(
                (values >= 0) & (values < math.inf), name, values, "a finite number, 0 or more, is wanted."
            )
        clip = np.asarray(self.clip_norm)
        require_all(clip > 0, "clip_norm", clip, "a number above 0 is wanted; infinity is off.")
        if len(self.dropout) not in (0, len(spec.hidden)):
            raise UsageError(
                f"dropout: {len(self.dropout)} rates; one for each of {len(spec.hidden)} hidden layers is wanted."
            )
        for rate in map(np.asarray, self.dropout):
            require_all((rate >= 0) & (rate <= 1), "dropout", rate, "a rate is a probability.")
        if spec.optimizer not in ("sgd", "sgdw"):
            momentum = np.asarray(self.momentum)
            wanted = f"{spec.optimizer} has moments of its own; choose sgd or sgdw."
            require_all(momentum == 0, "momentum", momentum, wanted)


def make_update(optimizer: str, hparams: HParams) -> optax.GradientTransformation:
    """The optimizer of that name with traced numbers; for sgd and sgdw, what is switched off changes no bit.

    The gradient of the loss is clipped before decay and L1 are added, as with PyTorch's `clip_grad_norm_`.
    """
    moments = optax.trace(hparams.momentum) if optimizer.startswith("sgd") else optax.scale_by_adam()
    decay = optax.add_decayed_weights(hparams.weight_decay, mask=matrices)
    sign = optax.stateless_with_tree_map(lambda g, w: g + hparams.l1 * jnp.sign(jnp.asarray(w)))
    return optax.chain(
        _clip(hparams.clip_norm),
        optax.masked(sign, matrices),
        *((moments, decay) if optimizer.endswith("w") else (decay, moments)),
        optax.scale_by_learning_rate(hparams.learning_rate),
    )


def _clip(max_norm: Any) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm`, with the norm that is seen anyway."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        size = norm(updates)
        # where the norm overflows, the gradient may yet be finite: off is off
        is_kept = jnp.isinf(max_norm) | (size < max_norm)
        return jax.tree.map(lambda g: jnp.where(is_kept, g, g / size * max_norm), updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def make_task(spec: Spec, hparams: HParams, data: ImageData) -> Task:
    """The classifier of a Spec on `data`: cross-entropy, and accuracy beside it."""
    model = make_mlp(
        spec.hidden, len(datasets.classes(spec.dataset)), activation=spec.activation, init=spec.init,
        gain=hparams.gain, precision=spec.precision,
    )  # fmt: skip
    rates = list(hparams.dropout) or None
    return Task(
        init=lambda key: model.init(key, data.train_images[:1]),
        # without a key nothing is dropped: that is evaluation
        apply=lambda params, x, key: model.apply(params, x, None if key is None else rates, key),
        loss=optax.softmax_cross_entropy_with_integer_labels,
        data=(data.train_images, data.train_labels),
        measure=lambda logits, labels: {"train_accuracy": is_right(logits, labels)},
    )


def is_right(
    logits: Float[Array, "batch classes"], labels: Int[Array | np.ndarray, " batch"]
) -> Float[Array, " batch"]:
    """1 where the largest logit is the label's, else 0; a tie goes to the first, as in PyTorch."""
    return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)


def loss_of_chance(labels: Int[Array | np.ndarray, " n"], classes: int) -> Float[Array, ""]:
    """Entropy of the labels: the mean cross-entropy of the best guess that does not look at the image."""
    share = jnp.mean(jax.nn.one_hot(labels, classes), axis=0)
    return -jnp.sum(jax.scipy.special.xlogy(share, share))


def make_trial(spec: Spec) -> Trial:
    """The trial of one Spec."""

    def trial(key: jax.Array, hparams: HParams, data: ImageData) -> dict[str, Array]:
        data = ImageData(*(jnp.asarray(x) for x in data))
        task = make_task(spec, hparams, data)

        def probe(params: Any, key: jax.Array) -> dict[str, Array]:
            logits = task.apply(params, data.test_images, None)
            return {
                "test_loss": jnp.mean(task.loss(logits, data.test_labels)),
                "test_accuracy": jnp.mean(is_right(logits, data.test_labels)),
                "weight_norm": norm_of_matrices(params),
            }

        run = fit(
            key, task, make_update(spec.optimizer, hparams), epochs=spec.epochs, batch_size=spec.batch_size,
            order=spec.order, probe=probe,
        )  # fmt: skip
        chance = loss_of_chance(data.train_labels, len(datasets.classes(spec.dataset)))
        last = run.seen["train_loss"][-1]
        is_worse = last > WORSE * jnp.maximum(run.start_loss, chance)
        has_learnt = last < LEARNT * jnp.minimum(run.start_loss, chance)
        status = jnp.where(is_worse, DIVERGED, jnp.where(has_learnt, OK, UNTRAINED))
        return run.seen | {
            "start_loss": run.start_loss,
            "first_bad_step": run.first_bad_step,
            "status": jnp.where(run.first_bad_step > 0, NONFINITE, status),
        }

    return trial


def load(spec: Any, folder: str | os.PathLike[str] | None = None) -> ImageData:
    """The dataset that a Spec names, which every lane reads; Fashion-MNIST from `folder`, if one is given."""
    return datasets.load(spec.dataset, folder)


def from_folder(family: Family, folder: str | os.PathLike[str] | None) -> Family:
    """The same family of image classifiers, with Fashion-MNIST read from `folder`."""
    return dataclasses.replace(family, shared=functools.partial(load, folder=folder))


def _by_epoch(long_name: str, units: str = "1", diverged: float = math.inf) -> Output:
    return Output(("epoch",), long_name, units, diverged=diverged)


OUTPUTS: Mapping[str, Output] = MappingProxyType({
    "train_loss": _by_epoch("mean cross-entropy of the epoch's batches", "nat"),
    "test_loss": _by_epoch("mean cross-entropy of the test images", "nat"),
    "train_accuracy": _by_epoch("share of the epoch's training images that are classified right", diverged=-math.inf),
    "test_accuracy": _by_epoch("share of the test images that are classified right", diverged=-math.inf),
    "weight_norm": _by_epoch("Euclidean norm of all weights"),
    "gradient_norm": _by_epoch("mean Euclidean norm of the steps' gradients"),
    "start_loss": Output((), "mean cross-entropy of the first batch before any update", "nat"),
    "first_bad_step": Output((), "first step whose loss or parameters are not finite (0: none)", "step"),
})  # fmt: skip
"""What a trial returns."""

training = Family(
    name="training",
    Spec=Spec,
    HParams=HParams,
    make_trial=make_trial,
    shared=load,
    flags=FLAGS,
    outputs=OUTPUTS,
)
