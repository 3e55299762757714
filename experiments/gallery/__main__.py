"""Draw the README's pictures: run what stands there, in a folder of its own, and keep what it drew."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
README = HERE.parents[1] / "README.md"


def snippets(text: str, language: str) -> list[str]:
    """The code blocks of a language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """The lines of the shell's blocks as words, without what follows a #."""
    lines = "".join(snippets(text, "sh")).splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def main() -> None:
    """Run every snippet and command that draws, and keep the pictures beside this file."""
    text = README.read_text()
    drawn = {Path(word).name for word in re.findall(r"\]\((experiments/gallery/[^)]+)\)", text)}
    programs = [[sys.executable, "-c", code] for code in snippets(text, "python") if "savefig" in code]
    programs += [
        [sys.executable, "-m", *words]
        for words in commands(text)
        if words[-2:-1] == ["--plot"] and words[-1] in drawn
    ]
    with tempfile.TemporaryDirectory() as folder:
        for program in programs:
            subprocess.run(program, cwd=folder, check=True)
        for name in sorted(drawn):
            shutil.copyfile(Path(folder) / name, HERE / name)
            print(HERE / name)


if __name__ == "__main__":
    main()
