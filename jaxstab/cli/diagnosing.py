"""`jaxstab diagnose`: a user's own model from the command line, with inputs described in words."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import sys
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from jaxstab.cli.options import File
from jaxstab.cli.words import load
from jaxstab.errors import UsageError, require_choice

FLOATS = ("float32", "bfloat16", "float16")
INTEGERS = ("int32", "int16", "int8", "uint32", "uint16", "uint8", "bool")
MODELS = "a module of linen, NNX or Equinox, a tuple (function, parameters), or a function that returns one"
Inputs = tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]]


@dataclasses.dataclass(frozen=True)
class Diagnose:
    """Say what is wrong with a model of yours: which layer, which line, what to change. Ends with 3 if it is grave."""

    EXAMPLE: ClassVar[str] = "jaxstab diagnose net:Net --input float32:32,256"

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODULE:NAME")]
    """A module, a function without arguments that returns one (or a tuple (function, parameters)), or that tuple."""
    input: Annotated[
        Inputs, tyro.conf.arg(metavar="DTYPE:SHAPE[:LOW..HIGH] [...]", help_behavior_hint="")
    ] = ()
    """What it is called with: float32:16,224,224,3 draws N(0, 1), int32:16,128:0..32000 integers below 32000."""
    dtype: tuple[str, ...] = ("bfloat16", "float16")
    """Formats in which the model is asked about too."""
    seeds: int = 8
    """How many draws of the parameters."""
    loss: str | None = None
    """module:function of the output, one number; a random linear read-out without it."""
    plot: File = None
    """Write a picture to this file."""
    json: bool = False
    """Print one JSON object on standard output."""

    def run(self) -> int:
        """Diagnose, and print what was found; what the model itself prints goes to standard error."""
        with contextlib.redirect_stdout(sys.stderr):
            found = self._diagnose()
        if self.plot is not None:
            _draw(found, self.plot)
        print(found.to_json() if self.json else found)
        return 3 if found.is_grave else 0

    def _diagnose(self) -> Any:
        words = [word for group in self.input for word in group]
        inputs = [parse_input(word, number) for number, word in enumerate(words)]
        model, *parameters = load_model(self.model)
        loss = None if self.loss is None else load(self.loss, "loss")
        if loss is not None and not callable(loss):
            raise UsageError(f"loss {self.loss!r}: a function of the output is wanted, not {loss!r}.")
        if self.plot is not None:
            from jaxstab.report import figures

            figures.require_picture(self.plot)
        if not inputs and not parameters:
            raise UsageError(
                f"diagnose {self.model}: no --input. DTYPE:SHAPE is wanted, as in float32:16,32."
            )
        import jaxstab

        return jaxstab.diagnose(model, *parameters, *inputs, loss=loss, seeds=self.seeds, dtypes=self.dtype)


def load_model(name: str) -> tuple[Any, ...]:
    """(module,) or (function, parameters) that module:name is, or returns when called."""
    found = load(name, "model")
    if _is_model(found):
        return found if isinstance(found, tuple) else (found,)
    if not callable(found):
        raise UsageError(f"model {name!r} is of type {type(found).__name__}. Choices: {MODELS}.")
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise UsageError(f"model {name!r} must be callable without arguments: {error}.") from None
    made = found()
    if not _is_model(made):
        raise UsageError(f"model {name!r} returned a value of type {type(made).__name__}. Choices: {MODELS}.")
    return made if isinstance(made, tuple) else (made,)


def _is_model(value: Any) -> bool:
    from flax import linen, nnx

    equinox = sys.modules.get("equinox")
    modules = (linen.Module, nnx.Module, *((equinox.Module,) if equinox else ()))
    return isinstance(value, modules) or (isinstance(value, tuple) and len(value) == 2 and callable(value[0]))


def parse_input(word: str, number: int = 0) -> Any:
    """DTYPE:SHAPE[:LOW..HIGH] as an array: N(0, 1) for floats, LOW to HIGH - 1 alike for integers (0..2 by default).

    The same numbers for the same words; `number` tells the inputs of one model apart.
    """
    import jax.numpy as jnp
    import numpy as np

    name, *rest = word.split(":")
    dtype = require_choice(name, (*FLOATS, *INTEGERS), f"dtype in --input {word}:")
    if not 1 <= len(rest) <= 2:
        raise UsageError(
            f"--input {word}: DTYPE:SHAPE or DTYPE:SHAPE:LOW..HIGH is wanted, as in int32:16,128:0..32000."
        )
    shape, rng = _shape(rest[0], word), np.random.default_rng(number)
    if dtype in INTEGERS:
        low, high = _bounds(rest[1] if rest[1:] else "0..2", dtype, word)
        return jnp.asarray(rng.integers(low, high, shape), dtype)
    if rest[1:]:
        raise UsageError(
            f"--input {word}: {rest[1]} bounds integers; {dtype} draws N(0, 1). Choices: {', '.join(INTEGERS)}."
        )
    return jnp.asarray(rng.normal(size=shape), dtype)


def _shape(text: str, word: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in text.split(","))
    except ValueError:
        shape = (0,)
    if min(shape) < 1:
        raise UsageError(
            f"--input {word}: {text!r} is no shape; sizes of at least 1 are wanted, as in 16,224,224,3."
        )
    return shape


def _bounds(text: str, dtype: str, word: str) -> tuple[int, int]:
    """LOW..HIGH, within what the dtype holds."""
    import numpy as np

    low, _, high = text.partition("..")
    try:
        first, last = int(low), int(high)
    except ValueError:
        raise UsageError(
            f"--input {word}: {text!r} is no range; LOW..HIGH is wanted, as in 0..32000."
        ) from None
    least, most = (0, 1) if dtype == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if not least <= first < last <= most + 1:
        raise UsageError(
            f"--input {word}: {text} is no range of {dtype}, from {least} to {most}; LOW is the first that is"
            " drawn, and HIGH, above it, is not."
        )
    return first, last


def _draw(found: Any, path: Path) -> None:
    from jaxstab.report import figures

    with figures.style():
        figures.save(found.plot().figure, path)
