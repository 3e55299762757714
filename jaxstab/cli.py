"""The `jaxstab` command: gains, propagation beside its theory, sweeps that resume.

Exit codes: 0 ok, 1 failure, 2 wrong usage, 3 lanes diverged (where --fail-on-divergence asks), 75 interrupted and
resumable. JAX is loaded after the words have been understood, so that `--help` answers at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import tyro

from jaxstab.errors import Interrupted, UsageError, require_choice

Values: TypeAlias = Annotated[tuple[str, ...], tyro.conf.arg(metavar="VALUE [VALUE ...]")]


@dataclasses.dataclass(frozen=True)
class Axes:
    """A stack. Each option takes one value or several (an axis), or linspace(a,b,n), geomspace(a,b,n)."""

    depth: Values = ()
    """Layers (100)."""
    width: Values = ()
    """Units a layer (256)."""
    batch: Values = ()
    """Inputs (16)."""
    activation: Values = ()
    """tanh, relu, gelu, ... (tanh)."""
    init: Values = ()
    """xavier_normal, kaiming_normal, orthogonal, ... (xavier_normal)."""
    kind: Values = ()
    """plain, residual, normalized, recurrent, lstm (plain)."""
    sampler: Values = ()
    """dense, or conditioned: layers in law without their matrices (dense)."""
    dtype: Values = ()
    """float32, bfloat16, float16 (float32)."""
    precision: Values = ()
    """Of matrix products: default, high, highest (highest)."""
    gain: Values = ()
    """Multiplies the weights (1)."""
    sigma_b: Values = ()
    """Standard deviation of the biases (0)."""
    branch_scale: Values = ()
    """Of residual branches (1)."""
    forget_bias: Values = ()
    """Of an LSTM's forget gate (1)."""

    def settings(self) -> dict[str, Any]:
        """What was given, as `jaxstab.grid` takes it."""
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(Axes)}
        return {name: parse_values(values) for name, values in given.items() if values}


@dataclasses.dataclass(frozen=True)
class Gain:
    """The gain of activations: 1/sqrt(E[phi^2]) forward, and its relatives."""

    activation: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="ACTIVATION")]
    """Names of activations."""
    json: bool = False
    """Print one JSON object on standard output."""

    def run(self) -> int:
        """Print a table of gains."""
        from jaxstab.theory import activations, gains

        rows = {}
        for name in self.activation:
            activations.resolve(name)
            rows[name] = {
                kind: _or_none(gains.gain, name, kind) for kind in ("forward", "backward", "std", "pytorch")
            }
            critical = _or_none(gains.critical_initialization, name)
            rows[name]["critical_sigma_w"] = None if critical is None else critical[0]
        if self.json:
            print(json.dumps(rows))
            return 0
        print(f"{'activation':16}{'forward':>10}{'backward':>10}{'std':>10}{'pytorch':>10}{'critical':>10}")
        for name, row in rows.items():
            print(
                f"{name:16}" + "".join(f"{'-' if v is None else format(v, '.6f'):>10}" for v in row.values())
            )
        return 0


@dataclasses.dataclass(frozen=True)
class Propagate(Axes):
    """Send signals and gradients through random stacks, theory beside the measurement, and say what happens."""

    seeds: int = 32
    """How many networks of each configuration."""
    plot: Path | None = None
    """Write a picture to this file."""
    json: bool = False
    """Print one JSON object on standard output."""

    def run(self) -> int:
        """Measure, predict, explain."""
        import jaxstab
        from jaxstab.report import stack

        space = jaxstab.grid(**self.settings())
        measured = jaxstab.sweep(jaxstab.propagation, space, self.seeds)
        return stack.show(space, measured, jaxstab.predict(space), self.plot, self.json, print)


@dataclasses.dataclass(frozen=True)
class Predict(Axes):
    """Theory alone for the same axes: no network is drawn."""

    plot: Path | None = None
    """Write a picture to this file."""
    json: bool = False
    """Print one JSON object on standard output."""

    def run(self) -> int:
        """Predict and explain."""
        import jaxstab
        from jaxstab.report import stack

        space = jaxstab.grid(**self.settings())
        return stack.show(space, None, jaxstab.predict(space), self.plot, self.json, print)


@dataclasses.dataclass(frozen=True)
class Train:
    """Train image classifiers, many seeds and numbers at once. Each option takes one value or several (an axis)."""

    dataset: Values = ()
    """digits (embedded) or fashion_mnist (digits)."""
    hidden: Values = ()
    """Units of the hidden layers: 256, or 256+128 for two (256)."""
    activation: Values = ()
    """relu, tanh, ... (relu)."""
    init: Values = ()
    """kaiming_normal, xavier_normal, normal, ... (kaiming_normal)."""
    optimizer: Values = ()
    """sgd, sgdw, adam, adamw (sgd)."""
    epochs: Values = ()
    """Passes over the training images (10)."""
    batch_size: Values = ()
    """Images a step (64)."""
    order: Values = ()
    """Data order per_seed or shared (per_seed)."""
    precision: Values = ()
    """Of matrix products: bfloat16 (sums in float32), default, high, highest (highest)."""
    learning_rate: Values = ()
    """Step size (0.1)."""
    weight_decay: Values = ()
    """Of weights, not of biases (0)."""
    l1: Values = ()
    """L1 penalty's slope, of weights, not of biases (0)."""
    dropout: Values = ()
    """Rate of each hidden layer: 0.5, or 0.2+0.5 for two (none)."""
    gain: Values = ()
    """Multiplies the initialization (1)."""
    momentum: Values = ()
    """Of sgd and sgdw (0)."""
    clip_norm: Values = ()
    """Largest norm of the gradient (inf: off)."""
    seeds: int = 4
    """How many runs of each configuration."""
    fashion_mnist: Path | None = None
    """Folder with Fashion-MNIST's four official files."""
    plot: Path | None = None
    """Write a picture of the curves to this file."""
    json: bool = False
    """Print one JSON object on standard output."""

    def settings(self) -> dict[str, Any]:
        """What was given, as `jaxstab.grid` takes it."""
        other = ("seeds", "fashion_mnist", "plot", "json")
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in other}
        return {name: parse_values(values) for name, values in given.items() if values}

    def run(self) -> int:
        """Train, and show how it ended."""
        if self.fashion_mnist is not None:
            os.environ["JAXSTAB_FASHION_MNIST"] = str(self.fashion_mnist)
        import jaxstab
        from jaxstab.data.images import DataError
        from jaxstab.report import curves

        try:
            data = jaxstab.sweep(jaxstab.training, jaxstab.grid(**self.settings()), self.seeds)
        except DataError as error:
            print(f"jaxstab: {error}", file=sys.stderr)
            return 1
        return curves.show(data, self.plot, self.json, print)


@dataclasses.dataclass(frozen=True)
class Tile:
    """Measure how fast a family runs at every tile, beside the rule's own choice."""

    family: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FAMILY")]
    """propagation, or your own as module:family."""
    grid: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE,VALUE ...")] = ()
    """Axes: width=64,256 gain=linspace(0.5,2.5,64)."""
    seeds: int = 256
    """How many seeds of each configuration are run at each tile."""
    keep: tuple[str, ...] = ()
    """Outputs wanted; all of them by default."""
    devices: int | None = None
    """How many local devices; all of them by default."""
    json: bool = False
    """Print one JSON object on standard output."""

    def run(self) -> int:
        """Measure, and print a table for each program."""
        import jaxstab
        from jaxstab.engine import tuning

        family, space = load_family(self.family), jaxstab.grid(**parse_grid(self.grid))
        found = tuning.measure_tiles(family, space, self.seeds, keep=self.keep or None, devices=self.devices)
        if self.json:
            print(json.dumps({"family": family.name, "programs": [dataclasses.asdict(one) for one in found]}))
            return 0
        for one in found:
            print(f"{one.spec}\n{'tile':>8}{'lanes/s':>12}")
            for tile, rate in one.rates.items():
                remarks = ["fastest"] * (tile == one.fastest) + ["the rule's"] * (tile == one.ruled)
                print(f"{tile:>8}{rate:>12.4g}  {', '.join(remarks)}".rstrip())
        return 0


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Run a family over a grid and seeds into a folder; the same command resumes what was interrupted."""

    family: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FAMILY")]
    """propagation, training, or your own as module:family."""
    grid: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE,VALUE ...")] = ()
    """Axes: gain=0.5,1,1.5 or gain=linspace(0.5,2.5,64)."""
    seeds: int = 32
    """How many seeds of each configuration."""
    keep: tuple[str, ...] = ()
    """Outputs wanted; all of them by default."""
    store: Path | None = None
    """Folder of the chunks; without it nothing is kept but --out."""
    out: Path | None = None
    """Write the results to this netCDF file."""
    devices: int | None = None
    """How many local devices; all of them by default."""
    tile: int | None = None
    """Lanes a tile; by default the rule that follows from the family."""
    distributed: bool = False
    """This is one process of a run that Slurm, Open MPI, Kubernetes or Cloud TPU started."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where processes are started by hand."""
    processes: int | None = None
    """How many are started by hand."""
    process: int | None = None
    """Which of them this is: 0 to N - 1."""
    fail_on_divergence: bool = False
    """Exit with 3 if any lane is not ok."""
    json: bool = False
    """Print one JSON object on standard output."""

    def run(self) -> int:
        """Sweep, and say how the lanes ended."""
        import jaxstab
        from jaxstab.engine import cluster
        from jaxstab.report import record

        by_hand = (self.coordinator, self.processes, self.process)
        if self.distributed or by_hand != (None, None, None):
            cluster.join(*by_hand)
        family, space = load_family(self.family), jaxstab.grid(**parse_grid(self.grid))
        data = jaxstab.sweep(
            family,
            space,
            self.seeds,
            keep=self.keep or None,
            store=self.store,
            devices=self.devices,
            tile=self.tile,
        )
        if self.out is not None:
            record.write_netcdf(record.Record(data), self.out)
        names = data.status.attrs["flag_meanings"].split()
        values = data.status.attrs["flag_values"].tolist()
        counts = {name: int((data.status == v).sum()) for name, v in zip(names, values, strict=True)}
        summary = {
            "family": family.name,
            "lanes": data.status.size,
            "programs": data.attrs["programs"],
            "status": counts,
        }
        summary |= {"store": str(self.store)} if self.store else {}
        if self.json:
            print(json.dumps(summary))
        else:
            print(data)
            print("\nlanes: " + ", ".join(f"{n} {name}" for name, n in counts.items() if n))
        bad = data.status.size - counts["ok"] - counts["not_run"]
        return 3 if self.fail_on_divergence and bad else 0


COMMANDS: dict[str, Any] = {
    "gain": Gain,
    "propagate": Propagate,
    "predict": Predict,
    "train": Train,
    "sweep": Sweep,
    "tile": Tile,
}


def main(arguments: list[str] | None = None) -> None:
    """Understand the words, run, and exit."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        sys.exit(_run(words))
    except UsageError as error:
        print(f"jaxstab: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as interruption:
        print(f"jaxstab: {interruption}", file=sys.stderr)
        raise
    except BrokenPipeError:  # `jaxstab ... | head`
        sys.stderr.close()
        sys.exit(0)


def _run(words: list[str]) -> int:
    if not words or words[0].startswith("-"):
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="jaxstab", description=_first_line(), args=words or ["--help"]
        )
        return 0
    command_type = COMMANDS[require_choice(words[0], COMMANDS, "command")]
    command, unknown = tyro.cli(
        command_type, args=words[1:], prog=f"jaxstab {words[0]}", return_unknown_args=True
    )
    if unknown:
        known = [f"--{f.name.replace('_', '-')}" for f in dataclasses.fields(command)]
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UsageError(f"{words[0]}: unknown option {unknown[0]}.{hint} Choices: {', '.join(known)}.")
    return command.run()


def _first_line() -> str:
    return (__doc__ or "").splitlines()[0]


def parse_values(words: tuple[str, ...]) -> Any:
    """One value, or the list that several words (or linspace(...), geomspace(...)) stand for."""
    if any("+" in w.strip("+").replace("e+", "") for w in words):
        return {w: tuple(_parse_value(part) for part in w.split("+")) for w in words}
    if len(words) > 1:
        return [_parse_value(w) for w in words]
    word = " ".join(words)
    name, _, rest = word.partition("(")
    if rest.endswith(")") and name in ("linspace", "geomspace"):
        import numpy as np

        try:
            first, last, count = (float(x) for x in rest[:-1].split(","))
            return getattr(np, name)(first, last, int(count))
        except ValueError as error:
            raise UsageError(f"{word!r}: {name}(first, last, count) is wanted ({error}).") from None
    return _parse_value(word)


def _parse_value(word: str) -> Any:
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(word.lower(), word)


def parse_grid(words: tuple[str, ...]) -> dict[str, Any]:
    """NAME=VALUE,VALUE words as the axes of a grid."""
    axes: dict[str, Any] = {}
    for word in words:
        name, equals, values = word.partition("=")
        if not equals or not name or not values:
            raise UsageError(f"--grid {word!r}: NAME=VALUE or NAME=VALUE,VALUE is wanted.")
        if name in axes:
            raise UsageError(f"--grid: axis {name!r} is given twice.")
        axes[name] = parse_values((values,) if "(" in values else tuple(values.split(",")))
    return axes


def load_family(name: str) -> Any:
    """A family of jaxstab's by name, or a user's by module:family."""
    from jaxstab.trials.family import Family

    built_in = {name: f"jaxstab.trials.{name}" for name in ("propagation", "training")}
    module, colon, attribute = name.partition(":")
    if not colon:
        require_choice(name, [*built_in, "module:family"], "family")
        module, attribute = built_in[name], name
    sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise UsageError(f"family {name!r}: module {module!r} cannot be imported ({error}).") from None
    except AttributeError:
        raise UsageError(f"family {name!r}: module {module!r} has no {attribute!r}.") from None
    if not isinstance(found, Family):
        raise UsageError(f"family {name!r} is no Family: decorate it with @jaxstab.family.")
    return found


def _or_none(function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except UsageError:
        return None


if __name__ == "__main__":
    main()
