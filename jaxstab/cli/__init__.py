"""The `jaxstab` command: is this network numerically stable, and how sure are we?

Exit codes: 0 ok, 1 failure, 2 wrong usage, 3 something grave was found in a model (or lanes diverged, where
--fail-on-divergence asks), 75 interrupted and resumable. `jaxstab --help` loads no JAX, so that it
answers at once; a command whose options are a family's does.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
from typing import Any

import tyro

from jaxstab.cli.commands import COMMANDS, COMPILING
from jaxstab.cli.options import with_axes
from jaxstab.cli.others import Completion
from jaxstab.errors import Interrupted, UsageError, require_choice

STORY = """jaxstab: is this network numerically stable, and how sure are we?

It sends signals and gradients through random deep networks, layer by layer, for thousands of seeds and settings in one
compiled program, with theory beside every measurement; and it says what is wrong with a model of yours, and where.
"""
REST = """`jaxstab COMMAND --help` lists every option with its default. Almost every command takes --json.

Exit codes: 0 ok, 1 failure, 2 wrong usage, 3 grave findings (or diverged lanes, with --fail-on-divergence),
75 interrupted and resumable. Compiled programs are kept in your cache folder; JAXSTAB_CACHE=off keeps none."""


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
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] == "--version":
        from importlib import metadata

        print(f"jaxstab {metadata.version('jaxstab')}, jax {metadata.version('jax')}")
        return 0
    name = require_choice(words[0], COMMANDS, "command")
    command = understand(name, words[1:])
    if isinstance(command, Completion):
        every = {name: with_axes(one) for name, one in COMMANDS.items()}
        tyro.extras.subcommand_cli_from_dict(
            every, prog="jaxstab", args=["--tyro-print-completion", command.shell]
        )
        return 0
    if name in COMPILING:
        from jaxstab.cli.cache import keep_programs

        keep_programs()
    return command.run()


def understand(name: str, words: list[str]) -> Any:
    """The command with its options; UsageError for one that it does not have."""
    command_type = with_axes(COMMANDS[name])
    command, unknown = tyro.cli(
        command_type,
        args=words,
        prog=f"jaxstab {name}",
        description=f"{command_type.__doc__}\n\nExample: {command_type.EXAMPLE}",
        return_unknown_args=True,
    )
    if unknown:
        known = [f"--{f.name.replace('_', '-')}" for f in dataclasses.fields(command)]
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UsageError(f"{name}: unknown option {unknown[0]}.{hint} Choices: {', '.join(known)}.")
    return command


def overview() -> str:
    """The story, and a line and an example of every command."""
    lines = [STORY]
    for name, command in COMMANDS.items():
        lines += [
            f"  {name:12} {(command.__doc__ or '').splitlines()[0]}",
            f"               $ {command.EXAMPLE}",
        ]
    return "\n".join([*lines, "", REST])
