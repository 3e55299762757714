"""The published simulations that `experiments.benchmarks.facts` measures again: settings, formulas, numbers.

Simulated with NumPy and PyTorch; every formula is written out here, or is `jaxstab.theory`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from scipy.optimize import root_scalar

from experiments.benchmarks.stack_inputs import OneInput
from jaxstab import theory
from jaxstab.nets.layers.register import make_layers
from jaxstab.nets.weights import Weights

CONDITIONED = {"sampler": "conditioned"}
HALF = math.sqrt(0.5)


class Fact(NamedTuple):
    """A number that was simulated: `value` is it, of a Dataset measured (over seeds) or predicted."""

    section: str
    case: str
    quantity: str
    formula: float
    simulated: float
    error: float
    settings: dict[str, Any]
    seeds: int
    value: Callable[[Any], Any]
    center: str = "mean"
    of_inputs: bool = False  # measured by `stack_inputs.from_inputs`


def square(layer: int, variable: str = "forward") -> Callable[[Any], Any]:
    """E h^2 of a layer, or E g^2 with "backward"."""
    return lambda data: data[f"{variable}_rms"].sel(layer=layer) ** 2


def correlation(layer: int, sigma_w_var: float = 1.0, sigma_b_var: float = 0.0) -> Callable[[Any], Any]:
    """Correlation of the next layer's preactivations."""

    def value(data: Any) -> Any:
        one = data.sel(layer=layer)
        shared = sigma_w_var * one.forward_rms**2
        return (shared * one.correlation + sigma_b_var) / (shared + sigma_b_var)

    return value


def growth(first: int, last: int) -> Callable[[Any], Any]:
    """Factor on E g^2 for each layer on the way back."""
    return lambda data: (
        (square(first, "backward")(data) / square(last, "backward")(data)) ** (1 / (last - first))
    )


def of_inputs(data: Any) -> Any:
    """E g^2 of the inputs."""
    return data.square


def fixed_cosine(correlation_map: Callable[[float], Any]) -> float:
    """c with C(c) = c, of a map with C(0) > 0 and C(1) < 1."""
    return root_scalar(lambda c: float(correlation_map(c)) - c, bracket=(0.0, 1.0)).root


def second_moment(phi: str) -> float:
    """E[phi(z)^2], z of N(0, 1)."""
    return float(theory.q_map(phi, 1.0, 1.0))


def chi(phi: str) -> float:
    """Factor on E g^2 of a branch of variance 1: E[phi'^2] / E[phi^2]."""
    return float(theory.chi(phi, 1.0, 1.0)) / second_moment(phi)


def facts() -> Iterator[Fact]:
    """All of them, in the order of the sections that they are from."""
    yield from dropped()
    yield from residuals()
    yield from residual_gradients()
    yield from blocks()
    yield from uniform_attention()
    yield from batch_norm()


def dropped() -> Iterator[Fact]:
    """Dropout: one layer's moment; ReLU at the gain that keeps E h^2; tanh that was critical without it."""
    for phi, mean, error in (("tanh", 0.49333, 0.00025), ("gelu", 0.53245, 0.00075)):
        settings = {
            "activation": phi,
            "init": "lecun_normal",
            "width": 2**16,
            "depth": 1,
            "batch": 1,
            "dropout": 0.2,
        }
        formula = second_moment(phi) / 0.8
        yield Fact("2", f"dropout 0.2, {phi}", "E h^2 of a layer", formula, mean, error, settings | CONDITIONED,
                   400, square(1))  # fmt: skip
    told = {0.1: (0.626, 0.007, 0.630, 0.008, 1.005, 0.045, 0.941, 0.039),
            0.5: (0.211, 0.009, 0.216, 0.013, 0.960, 0.063, 1.053, 0.071)}  # fmt: skip
    for p, (c, c_error, twin, twin_error, h, h_error, g, g_error) in told.items():
        case, sizes = (
            f"dropout {p}, relu at its gain",
            {"depth": 20, "width": 500, "batch": 2, "activation": "relu"},
        )
        settings = sizes | {"init": "kaiming_normal", "gain": math.sqrt(1 - p), "dropout": p} | CONDITIONED
        fixed = fixed_cosine(lambda c, p=p: (1 - p) * theory.c_map("relu", c, 1.0, math.sqrt(2)))
        yield Fact("2", case, "c of two inputs, layer 20", fixed, c, c_error, settings, 1000, correlation(20))
        yield Fact("2", case, "E h^2, layer 20", 1.0, h, h_error, settings, 1000, square(20))
        yield Fact("2", case, "E g^2, layer 1", 1.0, g, g_error, settings, 1000, square(1, "backward"))
        same = {
            "same": OneInput(*make_layers("plain", 500, "relu", Weights("kaiming_normal", "conditioned")))
        }
        yield Fact("2", case, "c of one input under two masks, layer 20", fixed, twin, twin_error,
                   settings | {"kind": same}, 1000, correlation(20))  # fmt: skip
    w_var, b_var, p = 1.760955, 0.05, 0.1
    sizes = {"depth": 40, "width": 800, "batch": 2, "activation": "tanh", "init": "lecun_normal"}
    settings = sizes | {"gain": math.sqrt(w_var), "sigma_b": math.sqrt(b_var), "dropout": p} | CONDITIONED
    q = float(theory.fixed_point("tanh", math.sqrt(w_var / (1 - p)), math.sqrt(b_var)).q)
    numbers = (q, math.sqrt(w_var), math.sqrt(b_var))
    fixed = fixed_cosine(lambda c: theory.c_map("tanh", c, *numbers) * theory.q_map("tanh", *numbers) / q)
    case = f"dropout {p}, tanh"
    yield Fact("2", case, "q*", q, 0.697, 0.006, settings, 200, lambda data: w_var * square(39)(data) + b_var)
    yield Fact("2", case, "c*", fixed, 0.381, 0.012, settings, 200, correlation(39, w_var, b_var))
    factor = float(theory.chi("tanh", q, math.sqrt(w_var / (1 - p))))
    yield Fact("2", case, "factor on E g^2 a layer", factor, 1.0421, 0.0023, settings, 200, growth(5, 35))


def residuals() -> Iterator[Fact]:
    """E h_L^2 of h <- a h + b f(h): branches of mean 0, then ReLU's, whose means add up."""
    sizes = {"kind": "residual", "width": 512, "batch": 2, **CONDITIONED}
    centred = ((16, 1.0, 1.0, 6.65e4, 0.27e4), (16, 1.0, 0.25, 2.637, 0.015), (16, 1.0, 1 / 16, 1.062, 0.002),
               (64, 1.0, 0.125, 2.654, 0.031), (16, HALF, HALF, 1.09, 0.05))  # fmt: skip
    for depth, a, b, mean, error in centred:
        settings = sizes | {"depth": depth, "skip_scale": a, "branch_scale": b, "branch_matrices": 2}
        settings |= {"activation": "relu", "init": "lecun_normal", "gain": 2**0.25}
        yield Fact("3", f"residual, two matrices, a = {a:.3g}, b = {b:.3g}", f"E h^2, layer {depth}",
                   (a**2 + b**2) ** depth, mean, error, settings, 400, square(depth))  # fmt: skip
    added = ((16, 1.0, 1.0, 1.332e7, 0.058e7), (16, 1.0, 0.25, 29.21, 0.29), (64, 1.0, 0.125, 2391, 56),
             (16, 1.0, 1 / 16, 1.405, 0.006), (64, 1.0, 1 / 64, 1.366, 0.007), (16, HALF, HALF, 190, 6),
             (64, HALF, HALF, 1.25e10, 0.14e10))  # fmt: skip
    for depth, a, b, mean, error in added:
        settings = sizes | {"depth": depth, "skip_scale": a, "branch_scale": b}
        settings |= {"activation": "relu", "init": "kaiming_normal"}
        q, m = 1.0, 0.0
        for _ in range(depth):
            q, m = (
                a**2 * q + 2 * a * b * m * math.sqrt(q / math.pi) + b**2 * q,
                a * m + b * math.sqrt(q / math.pi),
            )
        yield Fact("3", f"residual, one matrix of relu, a = {a:.3g}, b = {b:.3g}", f"E h^2, layer {depth}",
                   q, mean, error, settings, 400, square(depth))  # fmt: skip


def residual_gradients() -> Iterator[Fact]:
    """E g_0^2 of L = 16, b = 1: with a second matrix as mean field says, without it far more at finite width."""
    settings = {"kind": "residual", "activation": "relu", "depth": 16, "batch": 2, **CONDITIONED}
    double = settings | {"branch_matrices": 2, "init": "lecun_normal", "gain": 2**0.25, "width": 512}
    yield Fact("3", "residual, two matrices, a = 1, b = 1", "E g_0^2", 2.0**16, 6.79e4, 0.18e4, double, 400,
               of_inputs, of_inputs=True)  # fmt: skip
    for width, mean, error in (
        (64, 1.08e6, 0.10e6),
        (128, 5.1e5, 0.6e5),
        (256, 3.2e5, 0.4e5),
        (512, 2.3e5, 0.3e5),
    ):
        yield Fact("3", f"residual, one matrix of relu, width {width}", "E g_0^2 (formula: as the width grows)",
                   2.0**16, mean, error, settings | {"init": "kaiming_normal", "width": width}, 1000, of_inputs,
                   of_inputs=True)  # fmt: skip


def block(kind: str, phi: str, depth: int, width: int = 256) -> dict[str, Any]:
    """Feed-forward blocks whose branch has variance 1 where its input has."""
    scale = 1 / math.sqrt(second_moment(phi))
    return {"kind": kind, "activation": phi, "depth": depth, "width": width, "batch": 2, "init": "lecun_normal",
            "branch_scale": scale, **CONDITIONED}  # fmt: skip


def blocks() -> Iterator[Fact]:
    """Pre- and post-norm blocks: Q_L, E g_L^2, E g_0^2 (of medians where few networks carry the mean)."""
    before = {
        12: (12.73, 0.15, 0.0793, 0.0010),
        24: (24.8, 0.6, 0.0409, 0.0011),
        100: (98.8, 2.3, 0.0101, 0.0002),
    }
    for depth, (q, q_error, g, g_error) in before.items():
        settings, case = block("pre_ln", "relu", depth), f"pre_ln, relu, L = {depth}"
        yield Fact("4", case, "E h_L^2", 1.0 + depth, q, q_error, settings, 200, square(depth))
        yield Fact(
            "4", case, "E g_L^2", 1 / (1 + depth), g, g_error, settings, 200, square(depth, "backward")
        )
    for phi, depth, mean, error in (
        ("relu", 24, 1.012, 0.019),
        ("gelu", 24, 1.266, 0.023),
        ("relu", 100, 1.26, 0.11),
    ):
        formula = math.prod(1 + chi(phi) / (1 + layer) for layer in range(depth)) / (1 + depth)
        yield Fact("4", f"pre_ln, {phi}, L = {depth}", "E g_0^2", formula, mean, error,
                   block("pre_ln", phi, depth), 400, of_inputs, of_inputs=True)  # fmt: skip
    after = (("relu", 12, 256, 0.92, 0.06), ("relu", 24, 256, 1.16, 0.06), ("relu", 100, 256, 2.4, 1.6),
             ("relu", 24, 64, 2.17, 0.28), ("relu", 24, 512, 1.11, 0.11), ("gelu", 24, 256, 2.71, 0.11),
             ("gelu", 24, 64, 3.73, 0.25), ("gelu", 24, 512, 2.42, 0.14))  # fmt: skip
    for phi, depth, width, mean, error in after:
        yield post(phi, depth, width, mean, error)
    yield post("relu", 24, 256, 1.02, 1.25 * 0.06, "median")
    yield post("gelu", 24, 256, 2.49, 1.25 * 0.11, "median")
    for depth, mean, error in ((12, 6.78, 0.07), (24, 13.25, 0.17)):
        settings = block("pre_ln", "relu", depth) | {"branch_scale": 1.0}
        yield Fact("4", f"pre_ln, Xavier and relu, L = {depth}", "E h_L^2", 1 + depth / 2, mean, error, settings,
                   200, square(depth))  # fmt: skip
    for depth, mean, error in ((24, 1.961, 0.015), (48, 1.974, 0.020)):
        settings = block("pre_ln", "relu", depth)
        settings["branch_scale"] /= math.sqrt(depth)
        yield Fact("4", f"pre_ln, scaled by 1/sqrt({depth})", "E h_L^2", 2.0, mean, error, settings, 200,
                   square(depth))  # fmt: skip


def post(phi: str, depth: int, width: int, center: float, error: float, kind: str = "mean") -> Fact:
    """E g_0^2 of post-norm blocks."""
    quantity = "E g_0^2" if kind == "mean" else "median of g_0^2"
    formula = ((1 + chi(phi)) / 2) ** depth
    return Fact("4", f"post_ln, {phi}, L = {depth}, width {width}", quantity, formula, center, error,
                block("post_ln", phi, depth, width), 1000, of_inputs, kind, of_inputs=True)  # fmt: skip


def uniform_attention() -> Iterator[Fact]:
    """Blocks of attention that attends to all tokens alike: tokens of cosine c, r = c + (1 - c) / T."""
    shared = {"sublayers": "attention", "qk_scale": 0.0, "init": "lecun_normal", "width": 256, "batch": 1}
    for tokens, mean, error in ((16, 0.0633, 0.0039), (64, 0.0163, 0.0009)):
        settings = shared | {"kind": "post_ln", "tokens": tokens, "depth": 24}
        case = f"post_ln, uniform attention of {tokens} tokens, L = 24"
        yield Fact(
            "4",
            case,
            "E g_12^2",
            gradient_at(12, tokens, 24),
            mean,
            error,
            settings,
            40,
            square(12, "backward"),
        )
        if tokens == 16:
            yield Fact("4", case, "E g_0^2", gradient_at(0, tokens, 24), 1.12, 0.10, settings, 100, of_inputs,
                       of_inputs=True)  # fmt: skip
    for depth, q, q_error, c, c_error in ((12, 7.06, 0.17, 0.856, 0.004), (24, 19.0, 0.4, 0.947, 0.001)):
        settings = shared | {"kind": "pre_ln", "tokens": 16, "depth": depth}
        case = f"pre_ln, uniform attention of 16 tokens, L = {depth}"
        square_told, shared_told = 1.0, 0.0
        for _ in range(depth):
            cosine = shared_told / square_told
            mixed = cosine + (1 - cosine) / 16
            square_told, shared_told = square_told + mixed, shared_told + mixed
        yield Fact("4", case, "E h_L^2", square_told, q, q_error, settings, 100, square(depth))
        yield Fact("4", case, "c_L", shared_told / square_told, c, c_error, settings, 100, correlation(depth))


def gradient_at(layer: int, tokens: int, depth: int) -> float:
    """E g^2 of post-norm uniform attention: the tokens' mean doubles, all is divided by 1 + r, a layer back."""
    cosines = [0.0]
    for _ in range(depth):
        r = cosines[-1] + (1 - cosines[-1]) / tokens
        cosines.append((cosines[-1] + r) / (1 + r))
    mean, rest = 1 / tokens, 1 - 1 / tokens
    for c in cosines[layer:depth]:
        r = c + (1 - c) / tokens
        mean, rest = 2 * mean / (1 + r), rest / (1 + r)
    return mean + rest


def batch_norm() -> Iterator[Fact]:
    """Batch norm before ReLU, no skip: the gradient's growth a layer, by batch and by width."""
    told = ((4, 512, 2.830, 0.040), (8, 512, 1.796, 0.006), (16, 512, 1.597, 0.004), (32, 512, 1.520, 0.002),
            (64, 512, 1.489, 0.002), (128, 512, 1.475, 0.002), (256, 512, 1.466, 0.001), (16, 128, 1.589, 0.006),
            (16, 1024, 1.590, 0.005))  # fmt: skip
    for batch, width, mean, error in told:
        settings = {
            "kind": "batch_norm",
            "activation": "relu",
            "init": "lecun_normal",
            "depth": 24,
            "batch": batch,
        }
        settings |= {"width": width} | (CONDITIONED if batch <= 64 else {})
        yield Fact("7", f"batch_norm, relu, batch {batch}, width {width}",
                   "factor on E g^2 a layer (formula: of large batches)", math.pi / (math.pi - 1), mean, error,
                   settings, 16, growth(2, 22))  # fmt: skip
