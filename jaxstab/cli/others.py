"""Commands that hand over to others: the experiments, and the shell's completion."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, ClassVar, Literal

import tyro

from jaxstab.cli.options import Folder, Names
from jaxstab.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Experiments:
    """Answer the questions of a textbook's chapter over many seeds: figures, scoreboard.json and report.html."""

    EXAMPLE: ClassVar[str] = "jaxstab experiments deep_stack dropout --out results"

    names: Annotated[Names, tyro.conf.Positional] = ()
    """Experiments to run; all of them by default."""
    seeds: int | None = None
    """How many seeds, in place of each experiment's own number."""
    scale: Literal["smoke", "default", "full"] = "default"
    """How much of everything."""
    out: Path = Path("results")
    """Folder for figures, data, scoreboard.json and report.html."""
    fashion_mnist: Folder = None
    """Folder with Fashion-MNIST's four official files, in place of a download."""
    list: bool = False
    """Say which experiments there are, and stop."""
    json: bool = False
    """Print one JSON object on standard output (what there is, or the scoreboard); the rest goes to standard error."""

    def run(self) -> int:
        """Run them, and write the report."""
        return find_experiments().run(self)


def find_experiments() -> ModuleType:
    """The experiments' own program: inside an installed jaxstab, beside it in a checkout."""
    folder = Path(__file__).parents[1]
    if (folder / "experiments").is_dir():
        return importlib.import_module("jaxstab.experiments.__main__")
    if not (folder.parent / "experiments" / "__main__.py").is_file():
        raise UsageError(
            f"experiments: none beside {folder}. Choices: install a wheel of jaxstab, or a checkout."
        )
    if str(folder.parent) not in sys.path:
        sys.path.insert(0, str(folder.parent))
    return importlib.import_module("experiments.__main__")


@dataclasses.dataclass(frozen=True)
class Completion:
    """Print a script that lets your shell complete commands and options."""

    EXAMPLE: ClassVar[str] = 'eval "$(jaxstab completion bash)"'

    shell: Annotated[Literal["bash", "zsh", "tcsh"], tyro.conf.Positional]
    """The shell that the script is for."""
