"""What the `jaxstab` command can do: a class each, its fields the options, its `run` returning the exit code."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Annotated, Any, ClassVar

import tyro

from jaxstab.cli.diagnosing import Diagnose
from jaxstab.cli.options import Axes, File, Folder, Grid, Names
from jaxstab.cli.others import Completion, Experiments
from jaxstab.cli.words import load_family, parse_grid
from jaxstab.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Gain:
    """The gain of activations: 1/sqrt(E[phi^2]) forward, and its relatives."""

    EXAMPLE: ClassVar[str] = "jaxstab gain tanh gelu silu"

    activation: Annotated[Names, tyro.conf.Positional] = ()
    """Names of activations; all of them by default."""
    json: bool = False
    """Print one JSON object on standard output."""

    def run(self) -> int:
        """Print a table of gains."""
        from jaxstab.theory import activations, gains

        rows = {}
        for name in self.activation or activations.ACTIVATIONS:
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

    EXAMPLE: ClassVar[str] = "jaxstab propagate --activation tanh --gain 1 1.6667 --seeds 64 --plot stack.png"
    FAMILY: ClassVar[str] = "propagation"

    seeds: int = 32
    """How many networks of each configuration."""
    plot: File = None
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

    EXAMPLE: ClassVar[str] = "jaxstab predict --activation relu --init lecun_normal --dtype float16"
    FAMILY: ClassVar[str] = "propagation"

    plot: File = None
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
class Train(Axes):
    """Train image classifiers, many seeds and numbers at once, and show how each configuration ended."""

    EXAMPLE: ClassVar[str] = "jaxstab train --learning-rate 0.01 0.1 --dropout 0.5 --plot curves.png"
    FAMILY: ClassVar[str] = "training"

    seeds: int = 4
    """How many runs of each configuration."""
    fashion_mnist: Folder = None
    """Folder with Fashion-MNIST's four official files."""
    plot: File = None
    """Write a picture of the curves to this file."""
    json: bool = False
    """Print one JSON object on standard output."""

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

    EXAMPLE: ClassVar[str] = "jaxstab tile propagation --grid width=64,256"

    family: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FAMILY")]
    """propagation, or your own as module:family."""
    grid: Grid = ()
    """Axes: width=64,256 gain=linspace(0.5,2.5,64)."""
    seeds: int = 256
    """How many seeds of each configuration are run at each tile."""
    keep: Names = ()
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

    EXAMPLE: ClassVar[str] = (
        'jaxstab sweep propagation --grid "gain=linspace(0.5,2.5,64)" activation=tanh,relu --store runs/edge'
    )

    family: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FAMILY")]
    """propagation, training, or your own as module:family."""
    grid: Grid = ()
    """Axes: gain=0.5,1,1.5 or gain=linspace(0.5,2.5,64)."""
    seeds: int = 32
    """How many seeds of each configuration."""
    keep: Names = ()
    """Outputs wanted; all of them by default."""
    store: Folder = None
    """Folder of the chunks; without it nothing is kept but --out."""
    out: File = None
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

        if self.out is not None:
            record.require_file(self.out, "--out")
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
    "experiments": Experiments,
    "completion": Completion,
}


def _or_none(function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except UsageError:
        return None


COMPILING = ("propagate", "train", "sweep", "diagnose", "tile", "experiments")
"""Commands whose programs are kept for the next time."""
