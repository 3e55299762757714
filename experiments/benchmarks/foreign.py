"""Models that others wrote, at a small size: each a `Subject` made from a checkout of its repository.

Nothing of theirs is here: their modules are imported from the checkouts as they stand, of a notebook the classes and
functions. A folder that is not there is a FileNotFoundError.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import importlib
import json
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import optax
from flax import nnx

LICENCES = {
    "google/flax": "Apache-2.0",
    "google-deepmind/dm-haiku": "Apache-2.0",
    "google-research/big_vision": "Apache-2.0",
    "google-research/vision_transformer": "Apache-2.0",
    "patrick-kidger/equinox": "Apache-2.0",
    "paganpasta/eqxvision": "MIT",
    "ayaka14732/llama-2-jax": "CC0-1.0",
}
CLASSES, TOKENS = 10, 64


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model, what it is given, and a loss of what it returns; labels are inside the loss.

    `model` is an instance of a linen, NNX or Equinox module, or a function of (variables, *inputs). `rngs` are the
    random streams of a linen module, and make the argument `rngs` of an NNX module.
    """

    model: Any
    inputs: tuple[Any, ...]
    loss: Callable[[Any], jax.Array]
    variables: Any = None
    apply_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rngs: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)
    note: str = ""
    name: str = ""
    repository: str = ""
    commit: str = ""


Factory = Callable[[Path], Subject]
FACTORIES: dict[str, tuple[str, Factory]] = {}
"""Name -> (repository, what makes the model from the folder of the checkout)."""


def foreign(name: str, repository: str) -> Callable[[Factory], Factory]:
    """Register a factory."""

    def register(make: Factory) -> Factory:
        FACTORIES[name] = repository, make
        return make

    return register


def make(name: str, checkouts: Path) -> Subject:
    """The subject of this name; FileNotFoundError without its repository's folder under `checkouts`."""
    repository, factory = FACTORIES[name]
    folder = checkouts / repository.split("/")[1]
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} (a checkout of {repository})")
    return dataclasses.replace(factory(folder), name=name, repository=repository, commit=commit_of(folder))


def commit_of(folder: Path) -> str:
    """What the file COMMIT in a checkout says, or git of one that it keeps."""
    if (folder / "COMMIT").is_file():
        return (folder / "COMMIT").read_text().strip()
    told = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True)
    return told.stdout.strip()


def imported(folder: Path, *names: str, absent: Sequence[str] = ()) -> Any:
    """Modules of a folder; for the time of the import mock objects stand for the `absent` ones.

    They are forgotten afterwards, since folders of examples share names.
    """
    importlib.import_module("flax.training.checkpoints")  # looks for TensorFlow by itself
    before = set(sys.modules)
    stubs = {name: mock.MagicMock() for name in absent if name not in sys.modules}
    with mock.patch.object(sys, "path", [str(folder), *sys.path]), mock.patch.dict(sys.modules, stubs):
        with contextlib.ExitStack() as stack:
            for name, stub in stubs.items():
                parent, _, last = name.rpartition(".")
                if parent in sys.modules and parent not in stubs:
                    stack.enter_context(mock.patch.object(sys.modules[parent], last, stub, create=True))
            modules = [importlib.import_module(name) for name in names]
        new = {name: sys.modules[name] for name in set(sys.modules) - before - set(stubs)}
    for name, module in new.items():
        if not str(getattr(module, "__file__", None) or folder).startswith(str(folder)):
            sys.modules[name] = module  # what patch.dict took away with the stubs
    return modules[0] if len(modules) == 1 else modules


def defined(path: Path, **constants: Any) -> types.ModuleType:
    """Imports, classes and functions of a notebook or script; what cannot be imported or defined is left out."""
    text = path.read_text()
    if path.suffix == ".ipynb":
        cells = [c["source"] for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
        text = "\n\n".join("".join(source) for source in cells)
    module = types.ModuleType(f"foreign_{path.stem}")
    sys.modules[module.__name__] = module
    vars(module).update(constants)
    for node in ast.parse(text).body:
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef)):
            with contextlib.suppress(ImportError, NameError):
                exec(compile(ast.Module([node], []), str(path), "exec"), vars(module))
    return module


def keys() -> Iterator[jax.Array]:
    """Keys without end."""
    yield from (jax.random.key(i) for i in range(1_000_000))


def images(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(7), shape)


def tokens(batch: int, length: int, seed: int = 8) -> jax.Array:
    return jax.random.randint(jax.random.key(seed), (batch, length), 1, TOKENS)


def cross_entropy(shape: tuple[int, ...], classes: int, pick: Callable[[Any], Any] = lambda out: out) -> Any:
    """Mean cross-entropy of the logits that `pick` finds in the output, against random labels of this shape."""
    labels = jax.random.randint(jax.random.key(9), shape, 0, classes)

    def loss(output: Any) -> jax.Array:
        logits = pick(output).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return loss


def linen(
    model: Any, inputs: tuple[Any, ...], loss: Any, streams: Sequence[str] = (), **kwargs: Any
) -> Subject:
    """A linen module with fresh variables, unboxed as trainers do; `mutable` is no argument of its init."""
    some = keys()
    rngs = {name: next(some) for name in streams}
    given = {name: value for name, value in kwargs.items() if name != "mutable"}
    init = functools.partial(model.init, **given)
    variables = jax.jit(lambda key, *inputs: nn.unbox(init({"params": key, **rngs}, *inputs)))(
        next(some), *inputs
    )
    return Subject(model, inputs, loss, variables, kwargs, rngs)


@foreign("mnist CNN", "google/flax")
def mnist(folder: Path) -> Subject:
    train = defined(folder / "examples/mnist/train.py")
    model = train.CNN(rngs=nnx.Rngs(0))
    rngs = {"dropout": jax.random.key(1)}
    loss = cross_entropy((32,), CLASSES)
    return Subject(model, (images(32, 28, 28, 1),), loss, rngs=rngs)


def resnet(folder: Path, name: str, batch: int, **options: Any) -> Subject:
    """A ResNet whose batch normalization wants a named axis, as under pmap: a vmap over one shard gives it."""
    models = imported(folder / "examples/imagenet", "models")
    model = getattr(models, name)(num_classes=CLASSES, **options)
    x = images(1, batch, 64, 64, 3)
    first = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), x[0])

    def train(params: Any, stats: Any, x: jax.Array) -> Any:
        def shard(x: jax.Array) -> Any:
            return model.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])

        return jax.vmap(shard, axis_name="batch")(x)

    loss = cross_entropy((1, batch), CLASSES, lambda out: out[0])
    blocks = ", one block a stage" if "stage_sizes" in options else ""
    note = f"linen under vmap, for its named axis{blocks}"
    return Subject(train, (first["batch_stats"], x), loss, first["params"], note=note)


@foreign("imagenet ResNet18", "google/flax")
def resnet18(folder: Path) -> Subject:
    return resnet(folder, "ResNet18", 8, num_filters=16)


@foreign("imagenet ResNet50, bfloat16", "google/flax")
def resnet50(folder: Path) -> Subject:
    return resnet(folder, "ResNet50", 4, num_filters=16, stage_sizes=[1, 1, 1, 1], dtype=jnp.bfloat16)


@foreign("lm1b TransformerLM, bfloat16", "google/flax")
def lm1b(folder: Path) -> Subject:
    models = imported(folder / "examples/lm1b", "models")
    sizes = {"emb_dim": 64, "num_heads": 4, "num_layers": 4, "qkv_dim": 64, "mlp_dim": 256, "max_len": 32}
    config = models.TransformerConfig(
        vocab_size=TOKENS, output_vocab_size=TOKENS, dtype=jnp.bfloat16, **sizes
    )
    loss = cross_entropy((8, 32), TOKENS)
    return linen(models.TransformerLM(config), (tokens(8, 32),), loss, ["dropout"])


@foreign("wmt Transformer", "google/flax")
def wmt(folder: Path) -> Subject:
    models = imported(folder / "examples/wmt", "models")
    sizes = {"emb_dim": 64, "num_heads": 4, "num_layers": 3, "qkv_dim": 64, "mlp_dim": 256, "max_len": 32}
    shared = {"share_embeddings": True, "logits_via_embedding": True}
    config = models.TransformerConfig(vocab_size=TOKENS, output_vocab_size=TOKENS, **shared, **sizes)
    inputs = (tokens(8, 24), tokens(8, 32, seed=10))
    return linen(models.Transformer(config), inputs, cross_entropy((8, 32), TOKENS), ["dropout"])


@foreign("Gemma 3 transformer", "google/flax")
def gemma(folder: Path) -> Subject:
    modules, transformer, configs = imported(
        folder / "examples/gemma", "modules", "transformer", "transformer_cfg"
    )
    kind = modules.AttentionType
    sizes = {"num_layers": 3, "num_embed": TOKENS, "embed_dim": 64, "hidden_dim": 128}
    heads = {"num_heads": 4, "head_dim": 16, "num_kv_heads": 2, "use_qk_norm": True}
    norms = {"use_post_attn_norm": True, "use_post_ffw_norm": True, "final_logit_softcap": None}
    layers = [kind.LOCAL_SLIDING, kind.LOCAL_SLIDING, kind.GLOBAL]
    config = configs.TransformerConfig(
        **sizes, **heads, **norms, attention_types=layers, sliding_window_size=8
    )
    model = transformer.Transformer(config, rngs=nnx.Rngs(0))
    ids = tokens(4, 32)
    mask = transformer.make_causal_attn_mask(ids > 0)
    inputs = (ids, transformer.build_positions_from_mask(ids > 0), None, mask)
    rngs = {"dropout": jax.random.key(1)}
    return Subject(model, inputs, cross_entropy((4, 32), TOKENS, lambda out: out[0]), rngs=rngs)


@foreign("vae", "google/flax")
def vae(folder: Path) -> Subject:
    models = imported(folder / "examples/vae", "models")
    x = jax.nn.sigmoid(images(64, 784))

    def loss(output: Any) -> jax.Array:
        logits, mean, logvar = output
        divergence = -0.5 * jnp.sum(1 + logvar - jnp.square(mean) - jnp.exp(logvar), axis=-1)
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, x).sum(-1) + divergence)

    return linen(models.model(20), (x, jax.random.key(3)), loss)


@foreign("seq2seq LSTM", "google/flax")
def seq2seq(folder: Path) -> Subject:
    models = imported(folder / "examples/seq2seq", "models")
    model = models.Seq2seq(teacher_force=False, hidden_size=64, vocab_size=CLASSES)
    one_hot = [jax.nn.one_hot(tokens(16, n) % CLASSES, CLASSES) for n in (8, 6)]
    loss = cross_entropy((16, 5), CLASSES, lambda out: out[0])
    return linen(model, tuple(one_hot), loss, ["lstm"])


@foreign("MLP scanned over layers", "google/flax")
def scanned(folder: Path) -> Subject:
    toy = defined(folder / "examples/nnx_toy_examples/06_scan_over_layers.py")
    model = toy.ScanMLP(32, n_layers=5, rngs=nnx.Rngs(0))
    return Subject(model, (images(16, 32),), lambda out: jnp.mean(out**2))


@foreign("ViT", "google-research/vision_transformer")
def vit(folder: Path) -> Subject:
    models = imported(folder, "vit_jax.models_vit")
    layers = {
        "mlp_dim": 128,
        "num_heads": 4,
        "num_layers": 4,
        "dropout_rate": 0.1,
        "attention_dropout_rate": 0.1,
    }
    patches = types.SimpleNamespace(size=(8, 8))
    model = models.VisionTransformer(CLASSES, patches, layers, 64)
    loss = cross_entropy((8,), CLASSES)
    return linen(model, (images(8, 32, 32, 3),), loss, ["dropout"], train=True)


@foreign("MLP-Mixer", "google-research/vision_transformer")
def mixer(folder: Path) -> Subject:
    models = imported(folder, "vit_jax.models_mixer")
    model = models.MlpMixer(types.SimpleNamespace(size=(8, 8)), CLASSES, 4, 64, 32, 128)
    return linen(model, (images(8, 32, 32, 3),), cross_entropy((8,), CLASSES), train=True)


def scanned_vit(folder: Path, **options: Any) -> Subject:
    absent = ("tensorflow", "tensorflow.io", "tensorflow.io.gfile")
    models = imported(folder, "big_vision.models.vit", absent=absent)
    sizes = {"patch_size": (8, 8), "width": 64, "depth": 4, "mlp_dim": 128, "num_heads": 4, "dropout": 0.1}
    model = models.Model(CLASSES, **sizes, **options)
    loss = cross_entropy((8,), CLASSES, lambda out: out[0])
    subject = linen(model, (images(8, 32, 32, 3),), loss, ["dropout"], train=True)
    return dataclasses.replace(subject, note="data libraries stubbed")


@foreign("ViT, scanned and rematerialized", "google-research/big_vision")
def vit_scan(folder: Path) -> Subject:
    return scanned_vit(folder, scan=True, pool_type="map")


@foreign("ViT, bfloat16", "google-research/big_vision")
def vit_bfloat16(folder: Path) -> Subject:
    return scanned_vit(folder, dtype_mm="bfloat16", pool_type="tok", rep_size=True)


@foreign("Llama 2", "ayaka14732/llama-2-jax")
def llama(folder: Path) -> Subject:
    lib = imported(folder, "lib.llama")
    sizes = {"d_ff": 128, "d_k": 16, "d_model": 64, "d_v": 16, "n_heads_kv": 2, "n_layers": 4, "n_rep_kv": 2}
    config = lib.model_config_dummy._replace(vocab_size=TOKENS, **sizes)
    with mock.patch.object(jax, "tree_map", jax.tree.map, create=True):  # gone from JAX since
        params = lib.init_llama(key=jax.random.key(0), model_config=config)
    rotary = lib.make_rotary_values(None, 8, 32, model_config=config)
    mask = jnp.tril(jnp.ones((8, 1, 1, 32, 32), bool))

    def forward(params: Any, ids: jax.Array, mask: jax.Array, rotary: Any, key: jax.Array) -> Any:
        return lib.forward_llama(params, ids, mask, rotary_values=rotary, key=key, model_config=config)

    inputs = (tokens(8, 32).astype(jnp.uint16), mask, rotary, jax.random.key(1))
    loss = cross_entropy((8, 32), TOKENS, lambda out: out[0])
    return Subject(forward, inputs, loss, params, note="no modules and no named scopes")


def batched(model: Any, inputs: tuple[Any, ...], loss: Any, axes: tuple[Any, ...]) -> Subject:
    """An Equinox module of one example: a function of its arrays, mapped over the batch."""
    arrays, rest = eqx.partition(model, eqx.is_inexact_array)

    def call(arrays: Any, *inputs: Any) -> Any:
        return jax.vmap(eqx.combine(arrays, rest), in_axes=axes)(*inputs)

    return Subject(call, inputs, loss, arrays, note="an Equinox module under vmap")


@foreign("BERT classifier", "patrick-kidger/equinox")
def bert(folder: Path) -> Subject:
    book = defined(folder / "docs/examples/bert.ipynb")
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    rates = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    config = {"vocab_size": TOKENS, "max_position_embeddings": 32, "type_vocab_size": 2, **sizes, **rates}
    model = book.BertClassifier(config=config, num_classes=CLASSES, key=jax.random.PRNGKey(0))
    batch = {"token_ids": tokens(8, 32), "segment_ids": jnp.zeros((8, 32), jnp.int32)}
    inputs = (batch, True, jax.random.split(jax.random.key(1), 8))
    return batched(model, inputs, cross_entropy((8,), CLASSES), (0, None, 0))


@foreign("vision transformer", "patrick-kidger/equinox")
def vision_transformer(folder: Path) -> Subject:
    book = defined(folder / "docs/examples/vision_transformer.ipynb", channels=3)
    model = book.VisionTransformer(64, 128, 4, 3, 0.1, 4, 64, CLASSES, jax.random.PRNGKey(0))
    inputs = (images(8, 3, 32, 32), True, jax.random.split(jax.random.key(1), 8))
    return batched(model, inputs, cross_entropy((8,), CLASSES), (0, None, 0))


@foreign("diffusion UNet", "patrick-kidger/equinox")
def unet(folder: Path) -> Subject:
    book = defined(folder / "docs/examples/unet.ipynb")
    model = book.UNet(
        data_shape=(1, 16, 16),
        is_biggan=True,
        dim_mults=[1, 2],
        hidden_size=16,
        heads=2,
        dim_head=8,
        dropout_rate=0.1,
        num_res_blocks=2,
        attn_resolutions=[8],
        key=jax.random.PRNGKey(0),
    )
    noise, key = images(1, 16, 16), jax.random.key(1)
    model = eqx.tree_at(lambda m: m.time_pos_emb.emb, model, replace_fn=jax.lax.stop_gradient)

    def loss(output: jax.Array) -> jax.Array:
        return jnp.mean((output - noise) ** 2)

    return Subject(model, (jnp.float32(0.3), noise), loss, apply_kwargs={"key": key})


@foreign("DINO ViT", "paganpasta/eqxvision")
def dino(folder: Path) -> Subject:
    models = imported(folder, "eqxvision.models.classification.vit", absent=("equinox.experimental",))
    model = models.VisionTransformer(
        img_size=32,
        patch_size=8,
        num_classes=CLASSES,
        embed_dim=64,
        depth=3,
        num_heads=4,
        key=jax.random.PRNGKey(0),
    )
    return Subject(model, (images(3, 32, 32),), cross_entropy((), CLASSES), apply_kwargs={"key": keys_of(1)})


def keys_of(seed: int) -> jax.Array:
    """A key of the old kind."""
    return jax.random.PRNGKey(seed)


def transformed(f: Callable[..., Any], inputs: tuple[Any, ...], loss: Any, note: str = "") -> Subject:
    """A function that calls Haiku modules: of (parameters, state, key, *inputs)."""
    pair = hk.transform_with_state(f)
    params, state = jax.jit(pair.init)(jax.random.key(0), *inputs)
    return Subject(pair.apply, (state, jax.random.key(1), *inputs), loss, params, note=note)


@foreign("language model", "google-deepmind/dm-haiku")
def language(folder: Path) -> Subject:
    models = imported(folder, "examples.transformer.model")

    def call(ids: jax.Array) -> jax.Array:
        stack = models.Transformer(num_heads=4, num_layers=3, attn_size=16, dropout_rate=0.1)
        return models.LanguageModel(transformer=stack, model_size=64, vocab_size=TOKENS, pad_token=0)(ids)

    return transformed(call, (tokens(8, 32),), cross_entropy((8, 32), TOKENS, lambda out: out[0]))


@foreign("VAE", "google-deepmind/dm-haiku")
def haiku_vae(folder: Path) -> Subject:
    models = imported(folder, "examples.vae", absent=("tensorflow_datasets", "tensorflow"))
    x = jax.nn.sigmoid(images(16, 28, 28, 1))

    def call(x: jax.Array) -> Any:
        return models.VariationalAutoEncoder(models.Encoder(10), models.Decoder(x.shape[1:]))(x)

    def loss(output: Any) -> jax.Array:
        found = output[0]
        divergence = jnp.log(found.variance) - found.variance - found.mean**2
        likelihood = optax.sigmoid_binary_cross_entropy(found.logits, x).sum((1, 2, 3))
        return jnp.mean(likelihood - 0.5 * divergence.sum(-1))

    return transformed(call, (x,), loss, "data library stubbed")


@foreign("hk.nets.ResNet of 18 layers", "google-deepmind/dm-haiku")
def haiku_resnet(folder: Path) -> Subject:
    """The network is part of the installed library: the checkout is not read."""
    del folder
    widths = (16, 32, 64, 128)

    def call(x: jax.Array) -> jax.Array:
        net = hk.nets.ResNet((2, 2, 2, 2), CLASSES, bottleneck=False, channels_per_group=widths)
        return net(x, is_training=True)

    return transformed(call, (images(8, 64, 64, 3),), cross_entropy((8,), CLASSES, lambda out: out[0]))


@foreign("LSTM language model", "google-deepmind/dm-haiku")
def lstm(folder: Path) -> Subject:
    """Their deep LSTM and unrolling, with the sizes that flags would give."""
    book = defined(folder / "examples/rnn/train.py", HIDDEN_SIZE=types.SimpleNamespace(value=64))
    book.__dict__["dataset"] = types.SimpleNamespace(NUM_CHARS=TOKENS)

    def call(ids: jax.Array) -> Any:
        core = book.make_network()
        return hk.dynamic_unroll(core, ids, core.initial_state(ids.shape[1]))[0]

    return transformed(call, (tokens(16, 8),), cross_entropy((16, 8), TOKENS, lambda out: out[0]))
