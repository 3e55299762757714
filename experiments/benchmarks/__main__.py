"""jaxstab beside what people use instead, and beside the machine's limits: `python -m experiments.benchmarks`.

Every benchmark runs jaxstab and its peers in turn, several times, in one process; their results must be of one law.
Writes OUT/MACHINE/benchmarks.json and benchmarks.md, scaling.json and scaling.png. Campaigns with commands of their
own: reliability, kills, contract, layers, forecasts, facts, torch_chapter.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from experiments.benchmarks.race import LEAST_P
from jaxstab.errors import UsageError, require_choice

BENCHMARKS = {
    "stacks": ("deep_stack", "width"),
    "fits": ("polynomial", "weight_decay", "mlp"),
    "costs": ("engine", "cores", "compilation", "startup", "first_answer"),
}
MODULES = {name: module for module, names in BENCHMARKS.items() for name in names}
NAMES = (*MODULES, "scaling")


def main(
    names: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="NAME")] = (),
    /,
    *,
    out: Path = Path("experiments/benchmarks/results"),
    device: Literal["cpu", "gpu"] | None = None,
    rounds: int = 5,
    scale: float = 1.0,
    fashion_mnist: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
) -> int:
    """Run the benchmarks named (all of them by default), print and write their tables.

    Args:
        names: deep_stack, width, polynomial, weight_decay, mlp, engine, cores, compilation, startup,
            first_answer, scaling.
        out: folder; the machine's name is the folder inside.
        device: where everybody runs; by default where JAX does.
        rounds: how often everybody runs.
        scale: how much of the work, 1 for all of it; less is a trial.
        fashion_mnist: folder with Fashion-MNIST's four official files; digits without.
    """
    chosen = [require_choice(name, NAMES, "benchmark") for name in names] or [*NAMES]
    if rounds < 1 or not scale > 0:
        raise UsageError(
            f"--rounds {rounds} --scale {scale}: at least 1 round and a scale above 0 are wanted."
        )
    if device is not None:
        os.environ["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda"}[device]
    import importlib

    from experiments.benchmarks import limits, scaling
    from experiments.benchmarks.race import race
    from experiments.benchmarks.setting import Setting, import_torch
    from jaxstab.data.fashion_mnist import find
    from jaxstab.report import figures

    torch = import_torch()
    environment = describe(torch)
    on = "cuda" if environment["backend"] == "gpu" else "cpu"
    if on == "cuda" and torch is not None and not torch.cuda.is_available():
        torch = None
    dataset = "fashion_mnist" if find(fashion_mnist).folder else "digits"
    setting = Setting(on, torch, scale, rounds, dataset, fashion_mnist)
    folder = out / environment["machine"]
    folder.mkdir(parents=True, exist_ok=True)
    rates = limits.measure(torch, on)
    print(limits_table(rates), flush=True)
    record = {"environment": environment, "scale": scale, "dataset": dataset, "limits": rates, "contests": []}
    for name in dict.fromkeys(chosen):
        if name == "scaling":
            curves = scaling.measure(setting)
            (folder / "scaling.json").write_text(json.dumps(curves, indent=1) + "\n")
            with figures.style():
                scaling.plot(curves).savefig(folder / "scaling.png")
            print(f"\n{folder / 'scaling.png'}")
            continue
        module = importlib.import_module(f"experiments.benchmarks.{MODULES[name]}")
        for contest in getattr(module, name)(setting):
            record["contests"].append(race(contest, rounds, rates))
            print("\n" + table(record["contests"][-1]), flush=True)
            write(folder, record)
    return 0


def write(folder: Path, record: dict[str, Any]) -> None:
    """What has been measured so far, as JSON and as Markdown."""
    (folder / "benchmarks.json").write_text(json.dumps(record, indent=1) + "\n")
    parts = [heading(record["environment"]), limits_table(record["limits"]), *map(table, record["contests"])]
    (folder / "benchmarks.md").write_text("\n\n".join(parts) + "\n")


def describe(torch: Any) -> dict[str, Any]:
    """The machine and what runs on it."""
    import jax

    from jaxstab.engine.identity import environment

    known = environment(jax.local_devices()[0])
    device = jax.local_devices()[0]
    model = str(known.get("cpu", platform.machine())).partition(" (")[0]
    name = model if device.platform == "cpu" else device.device_kind
    machine = re.sub(r"[^a-z0-9]+", "-", f"{name} x{jax.local_device_count()}".lower()).strip("-")
    return {
        "machine": machine,
        "backend": device.platform,
        "device": name,
        "devices": jax.local_device_count(),
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "torch": None if torch is None else torch.__version__,
        "python": platform.python_version(),
    }


def heading(environment: dict[str, Any]) -> str:
    """What ran where, in a line."""
    return (
        f"{environment['device']}, {environment['cores']} cores, {environment['devices']} JAX devices; jax"
        f" {environment['jax']}, torch {environment['torch']}, Python {environment['python']}"
    )


def limits_table(rates: dict[str, float]) -> str:
    """The machine's own rates."""
    from experiments.benchmarks.limits import UNITS

    rows = [f"| {UNITS[kind]} | {rate:.3g} |" for kind, rate in rates.items()]
    return "\n".join(["| limit, measured in this run | |", "|---|---|", *rows])


def table(result: dict[str, Any]) -> str:
    """A contest as Markdown: everybody's cost, and by which factor ours lead."""
    lines = [f"**{result['name']}** (median of {result['rounds']} rounds)", ""]
    lines += [
        f"| | ms a {result['unit']} | quartiles | first call, s | first call, MiB | share of limits |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in result["contestants"].items():
        low, high = (1e3 * q for q in row["quartiles"])
        reached = ", ".join(f"{kind} {share:.0%}" for kind, share in row["shares"].items())
        name = f"**{name}**" if row["ours"] else name
        lines.append(
            f"| {name} | {1e3 * row['seconds']:.4g} | {low:.4g} to {high:.4g} | {row['first_seconds']:.3g}"
            f" | {row['extra_mib']:.0f} | {reached} |"
        )
    lines += [f"| {name} | absent: {why} | | | | |" for name, why in result["absent"].items()]
    lines.append("")
    for name, ratio in result["ratios"].items():
        target = f" (target {ratio['target']:g})" if ratio["target"] else ""
        low, high = ratio["interval"]
        within = "" if math.isnan(low + high) else f", 95 % interval {low:.3g} to {high:.3g}"
        lines.append(f"{name}: {ratio['factor']:.3g} times {ratio['against']}{within}{target}. ")
    if result["agree"]:
        is_one = min(result["agree"].values()) > LEAST_P
        values = ", ".join(f"{name} p = {p:.2g}" for name, p in result["agree"].items())
        lines.append(f"{'Same law' if is_one else 'NOT THE SAME LAW, nothing is compared'}: {values}.")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        code = tyro.cli(main, prog="python -m experiments.benchmarks")
    except UsageError as error:
        print(f"experiments.benchmarks: {error}", file=sys.stderr)
        code = 2
    sys.exit(code)
