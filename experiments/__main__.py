"""Run experiments, draw their figures, and hold every published number against its distribution over seeds."""

from __future__ import annotations

import importlib
import json
import sys
from functools import partial

from jaxstab.cli import main
from jaxstab.cli.others import Experiments
from jaxstab.errors import UsageError, require_choice

NAMES = (
    "explorer", "sigmoid_gradient", "matrix_product", "deep_stack", "gain_table", "initialization", "backprop",
    "regularized_backprop", "vanishing", "symmetry", "mlp", "polynomial", "weight_decay", "dropout",
    "precision", "learning_rate", "remedies", "depth_scaling", "transformer", "phase_diagram", "trainability",
)  # fmt: skip  # many short words


def run(asked: Experiments) -> int:
    """Run the experiments named (all of them by default). Returns the exit code."""
    chosen = [require_choice(name, NAMES, "experiment") for name in asked.names] or [*NAMES]
    if asked.seeds is not None and asked.seeds < 2:
        raise UsageError(f"--seeds {asked.seeds}: at least 2 are wanted for a distribution.")
    modules = [importlib.import_module(f"{__package__}.{name}") for name in dict.fromkeys(chosen)]
    if asked.list:
        questions = {
            module.__name__.rpartition(".")[2]: (module.__doc__ or "").splitlines()[0] for module in modules
        }
        if asked.json:
            print(json.dumps(questions))
            return 0
        for name, question in questions.items():
            print(f"{name:22}{question}")
        return 0
    if asked.fashion_mnist is not None and not asked.fashion_mnist.is_dir():
        raise UsageError(f"--fashion-mnist {asked.fashion_mnist}: no such folder.")
    from jaxstab.report.record import require_folder
    from jaxstab.report.runner import run_all

    require_folder(asked.out, "--out")
    overrides = {"seeds": asked.seeds, "fashion_mnist": asked.fashion_mnist}
    say = partial(print, file=sys.stderr) if asked.json else print
    is_whole = run_all(modules, asked.scale, asked.out, overrides, say)
    if asked.json:
        print((asked.out / "scoreboard.json").read_text(), end="")
    return 0 if is_whole else 1


if __name__ == "__main__":
    main(["experiments", *sys.argv[1:]])
