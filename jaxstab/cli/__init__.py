"""The `jaxstab` command: gains, propagation beside its theory, sweeps that resume, diagnoses of your own models.

Exit codes: 0 ok, 1 failure, 2 wrong usage, 3 something grave was found in a model (or lanes diverged, where
--fail-on-divergence asks), 75 interrupted and resumable. JAX is loaded after the words have been understood, so that
`--help` answers at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys

import tyro

from jaxstab.cli.commands import COMMANDS, COMPILING
from jaxstab.errors import Interrupted, UsageError, require_choice


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
    if words[0] in COMPILING:
        from jaxstab.cli.cache import keep_programs

        keep_programs()
    return command.run()


def _first_line() -> str:
    return (__doc__ or "").splitlines()[0]
