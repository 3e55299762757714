"""What the `jaxstab` command can do: a class each, its fields the options, its `run` returning the exit code."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import tyro

from jaxstab.cli.diagnosing import Diagnose
from jaxstab.cli.words import load_family, parse_grid, parse_values
from jaxstab.errors import UsageError

Values: TypeAlias = Annotated[tuple[str, ...], tyro.conf.arg(metavar="VALUE [VALUE ...]")]


@dataclasses.dataclass(frozen=True)
class Axes:
    """A stack. Each option takes one value or several (an axis), or linspace(a,b,n), geomspace(a,b,n)."""

    depth: Values = ()
    """Layers (100)."""
    width: Values = ()
    """Units a layer (256); 100+400+50: before the first layer and behind each."""
    batch: Values = ()
    """Inputs (16)."""
    activation: Values = ()
    """tanh, relu, gelu, ... (tanh)."""
    init: Values = ()
    """xavier_normal, kaiming_normal, orthogonal, ... (xavier_normal)."""
    kind: Values = ()
    """plain, residual, normalized, rms_norm, batch_norm, recurrent, lstm, pre_ln, post_ln, attention,
    residual_attention, convolution (plain)."""
    sampler: Values = ()
    """dense, or conditioned: in law without matrices (auto: the latter where it is exact and cheaper)."""
    dtype: Values = ()
    """float32, bfloat16, float16 (float32)."""
    precision: Values = ()
    """Of matrix products: default, high, highest (highest)."""
    gain: Values = ()
    """Multiplies the weights (1); 1.1+0.9: those of each layer."""
    sigma_b: Values = ()
    """Standard deviation of the biases (0)."""
    branch_scale: Values = ()
    """Of residual branches (1)."""
    forget_bias: Values = ()
    """Of an LSTM's forget gate (1)."""
    skip_scale: Values = ()
    """Of what a residual branch is added to (1)."""
    branch_matrices: Values = ()
    """Matrices of a residual branch: 1 or 2 (1)."""
    sublayers: Values = ()
    """Of pre_ln and post_ln: ffn, attention, alternate (ffn)."""
    tokens: Values = ()
    """Tokens of an input; 0: inputs are single vectors (0)."""
    heads: Values = ()
    """Heads of attention (1)."""
    kernel: Values = ()
    """Side of a convolution's kernel (3)."""
    side: Values = ()
    """Side of a convolution's images, whose channels are the width (8)."""
    padding: Values = ()
    """Of a convolution: zero, circular (zero)."""
    qk_scale: Values = ()
    """Of the logits of attention (1)."""
    dropout: Values = ()
    """Rate in every layer (none)."""

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
        import jaxstab
        from jaxstab.data.images import DataError
        from jaxstab.report import curves
        from jaxstab.trials import training

        family = training.from_folder(jaxstab.training, self.fashion_mnist)
        try:
            data = jaxstab.sweep(family, jaxstab.grid(**self.settings()), self.seeds)
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
    "diagnose": Diagnose,
    "tile": Tile,
}


def _or_none(function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except UsageError:
        return None


COMPILING = ("propagate", "train", "sweep", "diagnose", "tile")
"""Commands whose programs are kept for the next time."""
