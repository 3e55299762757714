"""Run an experiment: configuration, data, figures, claims, and what of it stands in the report."""

from __future__ import annotations

import dataclasses
import inspect
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxstab.errors import UsageError
from jaxstab.report import figures, picture
from jaxstab.report.claims import as_table
from jaxstab.report.page import write_report
from jaxstab.report.record import Entry, Record, environment, write_netcdf, write_scoreboard

SCALES = ("smoke", "default", "full")


def configure(module: ModuleType, scale: str, **overrides: Any) -> Any:
    """The experiment's configuration at a scale, with what was given on the command line and it knows."""
    config = module.SCALES[scale]
    known = {f.name for f in dataclasses.fields(config)}
    return dataclasses.replace(config, **{k: v for k, v in overrides.items() if v is not None and k in known})


def run_experiment(module: ModuleType, config: Any, out: Path) -> Entry:
    """Run one experiment and write its data and figures under `out/NAME`."""
    name = module.__name__.rsplit(".", 1)[-1]
    started = time.monotonic()
    record: Record = module.run(config)
    write_netcdf(record, out / name / "data.nc")
    drawn = draw(module, record, out / name)
    question, _, text = (inspect.getdoc(module) or name).partition("\n")
    return Entry(
        name=name,
        question=question,
        answer=module.findings(record) if hasattr(module, "findings") else "",
        text=text.strip(),
        figures=drawn,
        claims=tuple(module.claims(record)),
        notes=record.notes,
        seconds=time.monotonic() - started,
        chart=module.chart(record).to_dict() if hasattr(module, "chart") else None,
    )


def draw(module: ModuleType, record: Record, folder: Path) -> tuple[Path, ...]:
    """Write every figure as PNG, and as SVG for the page, with the figure's label as its title; the PNGs' paths."""
    drawn = []
    with figures.style():
        import matplotlib.pyplot as plt

        plt.rcParams.update(picture.STYLE)
        for title, figure in module.plot(record).items():
            path = folder / f"{title}.png"
            if record.notes:
                figure.suptitle("\n".join(record.notes), fontsize=8, color=figures.PUBLISHED, gid="notes")
            figure.savefig(path)
            plt.rcParams["svg.hashsalt"] = f"{folder.name}/{title}"  # no two figures of a page share an id
            told = {"Title": figure.get_label() or title, **picture.SILENT}
            figure.savefig(path.with_suffix(".svg"), transparent=True, metadata=told)
            plt.close(figure)
            drawn.append(path)
    return tuple(drawn)


def run_all(
    modules: Sequence[ModuleType],
    scale: str,
    out: Path,
    overrides: Mapping[str, Any],
    say: Callable[[str], None],
) -> bool:
    """Run experiments in turn, then write scoreboard and report. An experiment that fails loses no other.

    Returns whether all of them finished.
    """
    entries: list[Entry] = []
    configs = [configure(module, scale, **overrides) for module in modules]
    for number, (module, config) in enumerate(zip(modules, configs, strict=True), 1):
        name = module.__name__.rsplit(".", 1)[-1]
        say(f"[{number}/{len(modules)}] {name}: {(inspect.getdoc(module) or '').splitlines()[0]}")
        try:
            entry = run_experiment(module, config, out)
        except UsageError:
            raise
        except Exception:
            say(f"{name} failed:\n{traceback.format_exc()}")
            continue
        entries.append(entry)
        for note in entry.notes:
            say(f"  note: {note}")
        say(f"  {entry.seconds:.1f} s, {len(entry.figures)} figures, {len(entry.claims)} claims")
    about = environment()
    claims = [claim for entry in entries for claim in entry.claims]
    write_scoreboard(claims, out / "scoreboard.json", about)
    write_report(entries, out / "report.html", about)
    say("")
    if claims:
        say(as_table(claims))
    say(f"\nreport: {out / 'report.html'}")
    return len(entries) == len(modules)
