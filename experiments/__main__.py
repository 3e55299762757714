"""Run experiments, draw their figures, and hold every published number against its distribution over seeds."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxstab.errors import UsageError, require_choice

NAMES = (
    "explorer", "sigmoid_gradient", "matrix_product", "deep_stack", "gain_table", "initialization", "backprop",
    "regularized_backprop", "vanishing", "symmetry", "mlp", "polynomial", "weight_decay", "dropout",
    "precision", "learning_rate", "remedies", "depth_scaling", "transformer", "phase_diagram", "trainability",
)  # fmt: skip  # many short words


def main(
    names: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="NAME")] = (),
    /,
    *,
    seeds: int | None = None,
    scale: Literal["smoke", "default", "full"] = "default",
    out: Path = Path("results"),
    fashion_mnist: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    only_list: Annotated[bool, tyro.conf.arg(name="list")] = False,
) -> int:
    """Run the experiments named (all of them by default).

    Args:
        names: experiments to run.
        seeds: how many seeds, in place of each experiment's own number.
        scale: how much of everything.
        out: folder for figures, data, scoreboard.json and report.html.
        fashion_mnist: folder with Fashion-MNIST's four official files, in place of a download.
        only_list: say which experiments there are, and stop.
    """
    chosen = [require_choice(name, NAMES, "experiment") for name in names] or [*NAMES]
    if seeds is not None and seeds < 2:
        raise UsageError(f"--seeds {seeds}: at least 2 are wanted for a distribution.")
    modules = [importlib.import_module(f"experiments.{name}") for name in dict.fromkeys(chosen)]
    if only_list:
        for module in modules:
            print(f"{module.__name__.rsplit('.', 1)[-1]:22}{(module.__doc__ or '').splitlines()[0]}")
        return 0
    if fashion_mnist is not None and not fashion_mnist.is_dir():
        raise UsageError(f"--fashion-mnist {fashion_mnist}: no such folder.")
    from jaxstab.cli.cache import keep_programs
    from jaxstab.report.runner import run_all

    keep_programs()
    overrides = {"seeds": seeds, "fashion_mnist": fashion_mnist}
    return 0 if run_all(modules, scale, out, overrides, print) else 1


if __name__ == "__main__":
    try:
        code = tyro.cli(main, prog="python -m experiments")
    except UsageError as error:
        print(f"experiments: {error}", file=sys.stderr)
        code = 2
    sys.exit(code)
