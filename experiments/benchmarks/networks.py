"""Small networks of six kinds with places where a fault can be planted, and twenty that are well."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

Array = jax.Array
Change = Callable[[Array], Array]
Planted = tuple[str, Change] | None
"""A place, and what is done there."""
HE = nn.initializers.he_normal()
WIDTH, CLASSES, VOCABULARY, LENGTH = 64, 10, 200, 24


def at(planted: Planted, place: str, x: Array) -> Array:
    """`x`, or what the plant of this place makes of it."""
    return planted[1](x) if planted is not None and planted[0] == place else x


class MLP(nn.Module):
    """Dense layers of one width; places 0, 1, ... before the activation, "features" before the head, "logits"."""

    depth: int = 8
    width: int = WIDTH
    activation: Change = nn.relu
    kernel_init: Any = HE
    normalize: Callable[[], Any] | None = None
    drop: float = 0.0
    train: bool = False
    planted: Planted = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(self.depth):
            x = nn.Dense(self.width, kernel_init=self.kernel_init, name=f"dense_{i}")(x)
            x = self.normalize()(x) if self.normalize is not None else x
            x = self.activation(at(self.planted, str(i), x))
            x = nn.Dropout(self.drop, deterministic=not self.train)(x) if self.drop else x
        return at(self.planted, "logits", nn.Dense(CLASSES, name="head")(at(self.planted, "features", x)))


class CNN(nn.Module):
    """Convolutions with a norm; places 0, 1, ... before the norm, "pooled", "logits"."""

    depth: int = 5
    channels: int = 16
    activation: Change = nn.relu
    normalize: Callable[[], Any] | None = functools.partial(nn.BatchNorm, use_running_average=False)
    kernel_init: Any = HE
    planted: Planted = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(self.depth):
            x = nn.Conv(self.channels, (3, 3), kernel_init=self.kernel_init, name=f"conv_{i}")(x)
            x = at(self.planted, str(i), x)
            x = self.activation(self.normalize()(x) if self.normalize is not None else x)
        x = at(self.planted, "pooled", x.mean((1, 2)))
        return at(self.planted, "logits", nn.Dense(CLASSES, name="head")(x))


class Attention(nn.Module):
    """Causal, written out; places "scores", "masked", "weights"."""

    heads: int
    planted: Planted

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1] // self.heads
        project = functools.partial(nn.DenseGeneral, (self.heads, width))
        query, key, value = (project(name=name)(x) for name in ("query", "key", "value"))
        scores = at(self.planted, "scores", jnp.einsum("bqhd,bkhd->bhqk", query, key) / jnp.sqrt(width))
        mask = jnp.tril(jnp.ones((x.shape[1],) * 2, bool))
        scores = at(self.planted, "masked", jnp.where(mask, scores, jnp.finfo(jnp.float32).min))
        weights = at(self.planted, "weights", nn.softmax(scores))
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        return nn.DenseGeneral(x.shape[-1], axis=(-2, -1), name="out")(mixed)


class Block(nn.Module):
    """Pre-norm; places "attended", "hidden", "stream"."""

    heads: int
    planted: Planted
    is_normalized: bool = True
    has_skip: bool = True

    @nn.compact
    def __call__(self, x: Array, _: Any = None) -> tuple[Array, None]:
        width = x.shape[-1]
        norm = nn.LayerNorm if self.is_normalized else lambda: lambda x: x
        y = at(self.planted, "attended", Attention(self.heads, self.planted, name="attention")(norm()(x)))
        x = x + y if self.has_skip else y
        y = at(self.planted, "hidden", nn.gelu(nn.Dense(4 * width, name="up")(norm()(x))))
        y = nn.Dense(width, name="down")(y)
        return at(self.planted, "stream", x + y if self.has_skip else y), None


class Transformer(nn.Module):
    """Blocks over tokens, in a row or under nn.scan; places "embedded", "features", "logits"; those of block
    `sick` alone where they are in a row."""

    depth: int = 4
    width: int = WIDTH
    heads: int = 4
    embed_init: Any = nn.initializers.normal(1.0)
    is_scanned: bool = False
    is_normalized: bool = True
    is_tied: bool = False
    has_skip: bool = True
    sick: int = 1
    planted: Planted = None

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        embed = nn.Embed(VOCABULARY, self.width, embedding_init=self.embed_init, name="embed")
        x = at(self.planted, "embedded", embed(tokens))
        x = x + self.param("position", self.embed_init, (tokens.shape[1], self.width))
        settings = (self.heads, self.planted, self.is_normalized, self.has_skip)
        if self.is_scanned:
            scanned = nn.scan(
                nn.remat(Block, prevent_cse=False),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.depth,
            )
            x, _ = scanned(*settings, name="blocks")(x, None)
        else:
            for i in range(self.depth):
                own = (self.heads, self.planted if i == self.sick else None, *settings[2:])
                x, _ = Block(*own, name=f"block_{i}")(x)
        x = at(self.planted, "features", nn.LayerNorm(name="norm")(x) if self.is_normalized else x)
        logits = embed.attend(x) if self.is_tied else nn.Dense(VOCABULARY, name="head")(x)
        return at(self.planted, "logits", logits)


class Residual(nnx.Module):
    """x + W2 phi(W1 norm(x)); places 0, 1, ... inside the branches, "logits"."""

    def __init__(self, depth: int = 6, planted: Planted = None, drop: float = 0.0, seed: int = 0):
        rngs = nnx.Rngs(seed)
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(depth)])
        self.up = nnx.List([nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(depth)])
        self.down = nnx.List([nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(depth)])
        self.drop = nnx.Dropout(drop, rngs=rngs)
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)
        self.planted = planted

    def __call__(self, x: Array) -> Array:
        for i, (norm, up, down) in enumerate(zip(self.norms, self.up, self.down, strict=True)):
            x = x + self.drop(down(nnx.silu(at(self.planted, str(i), up(norm(x))))))
        return at(self.planted, "logits", self.head(x))


class Recurrent(nn.Module):
    """A cell run over time by nn.RNN; places "states", "logits"."""

    cell: Callable[..., Any] = nn.GRUCell
    planted: Planted = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        states: Any = nn.RNN(self.cell(WIDTH, name="cell"))(x)
        states = at(self.planted, "states", states)
        return at(self.planted, "logits", nn.Dense(CLASSES, name="head")(states[:, -1]))


def plain(planted: Planted, parameters: dict[str, Any], x: Array) -> Array:
    """A function of a dict, its layers under a scan; places "body", "logits"."""

    def layer(x: Any, own: Any) -> tuple[Any, None]:
        with jax.named_scope("layer"):
            return jnp.tanh(at(planted, "body", x @ own["w"] + own["b"])), None

    x, _ = jax.lax.scan(layer, x, parameters["layers"])
    with jax.named_scope("head"):
        return at(planted, "logits", x @ parameters["head"])


def function(planted: Planted = None) -> Callable[[dict[str, Any], Array], Array]:
    """`plain` with its plant."""
    return functools.partial(plain, planted)


def parameters_of_function(depth: int = 8, gain: float = 1.0, seed: int = 0) -> dict[str, Any]:
    """{"layers": {"w" [depth, width, width], "b"}, "head"}, Gaussian of 1/sqrt(fan-in)."""
    one, two = jax.random.split(jax.random.key(seed))
    w = gain * jax.random.normal(one, (depth, WIDTH, WIDTH)) / WIDTH**0.5
    head = jax.random.normal(two, (WIDTH, CLASSES)) / WIDTH**0.5
    return {"layers": {"w": w, "b": jnp.zeros((depth, WIDTH))}, "head": head}


def vectors(count: int = 32) -> Array:
    return jax.random.normal(jax.random.key(1), (count, WIDTH))


def images(count: int = 16) -> Array:
    return jax.random.normal(jax.random.key(1), (count, 12, 12, 3))


def tokens(count: int = 4) -> Array:
    return jax.random.randint(jax.random.key(1), (count, LENGTH), 0, VOCABULARY)


def series() -> Array:
    return jax.random.normal(jax.random.key(1), (8, LENGTH, 8))


def cross_entropy(logits: Array) -> Array:
    """Mean over rows against the classes 0, 1, 2, ... in turn."""
    rows = logits.reshape(-1, logits.shape[-1])
    wanted = jnp.arange(len(rows)) % rows.shape[-1]
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(rows), wanted[:, None], axis=-1))


def healthy() -> dict[str, tuple[Any, Array]]:
    """Twenty (model, input); each is finite in float16 and bfloat16 as it is drawn."""
    orthogonal, xavier = nn.initializers.orthogonal(), nn.initializers.xavier_normal()
    return {
        "MLP, ReLU": (MLP(), vectors()),
        "MLP, GELU": (MLP(activation=nn.gelu), vectors()),
        "MLP, tanh": (MLP(activation=jnp.tanh, kernel_init=xavier), vectors()),
        "MLP, SELU": (MLP(activation=nn.selu, kernel_init=nn.initializers.lecun_normal()), vectors()),
        "MLP, tanh, orthogonal, 20 layers": (
            MLP(depth=20, activation=jnp.tanh, kernel_init=orthogonal),
            vectors(),
        ),
        "MLP, LayerNorm": (MLP(normalize=nn.LayerNorm), vectors()),
        "MLP, RMSNorm, SiLU": (MLP(normalize=nn.RMSNorm, activation=nn.silu), vectors()),
        "MLP, 20 layers, ReLU": (MLP(depth=20), vectors()),
        "MLP, two layers, width 512": (MLP(depth=2, width=512), vectors()),
        "CNN, BatchNorm": (CNN(), images()),
        "CNN, GroupNorm": (CNN(normalize=functools.partial(nn.GroupNorm, 4)), images()),
        "CNN, no norm": (CNN(normalize=None), images()),
        "CNN, leaky ReLU": (CNN(normalize=None, activation=nn.leaky_relu), images()),
        "transformer": (Transformer(), tokens()),
        "transformer, scanned and recomputed": (Transformer(is_scanned=True), tokens()),
        "transformer, normal(0.02)": (
            Transformer(embed_init=nn.initializers.normal(0.02), depth=6),
            tokens(),
        ),
        "transformer, one head, width 128": (Transformer(heads=1, width=128), tokens()),
        "GRU": (Recurrent(), series()),
        "LSTM": (Recurrent(cell=nn.OptimizedLSTMCell), series()),
        "transformer, tied, normal(1/sqrt(width))": (
            Transformer(is_tied=True, embed_init=nn.initializers.normal(WIDTH**-0.5)),
            tokens(),
        ),
    }
