"""Do jaxstab's training experiments follow the law of the chapter's own PyTorch code?

The chapter's code, written again in PyTorch and apart from jaxstab: polynomial regression in its three regimes, weight
decay from scratch and concise, both classifiers. Each is run for many seeds on both sides, and the distributions of
what the chapter prints or draws are compared by the two-sample Kolmogorov-Smirnov test; one planted error (the
concise decay against the one from scratch) shows that the test can see. Needs `pip install jaxstab[bench]`.

    python -m experiments.benchmarks.torch_chapter --fashion-mnist DIR
"""

from __future__ import annotations

import importlib
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from scipy import stats

import jaxstab
from experiments import mlp, polynomial, weight_decay
from jaxstab.data import datasets
from jaxstab.data.fashion_mnist import find
from jaxstab.data.images import ImageData
from jaxstab.errors import UsageError
from jaxstab.trials import training

LEAST_P = 1e-4
"""Below this a pair of distributions is said to differ; the comparisons are about 40."""

Sample = Mapping[str, float]


def import_torch() -> Any:
    """The torch module; UsageError where it is not installed."""
    try:
        return importlib.import_module("torch")
    except ImportError:
        raise UsageError("torch is not installed: pip install 'jaxstab[bench]'.") from None


def batches(torch: Any, n: int, size: int) -> Any:
    """A DataLoader's batches of a shuffled epoch, the last as short as it comes out."""
    return torch.randperm(n).split(size)


def fit_polynomial(seed: int, powers: int, epochs: int) -> Sample:
    """Section 4.4: the weights after training; data by NumPy, as there."""
    torch = import_torch()
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    true_w = np.zeros(20)
    true_w[:4] = [5, 1.2, -3.4, 5.6]
    x = rng.normal(size=(200, 1))
    features = np.power(x, np.arange(20).reshape(1, -1)) / [math.gamma(i + 1) for i in range(20)]
    labels = features @ true_w + rng.normal(scale=0.1, size=200)
    inputs = torch.tensor(features[:100, :powers], dtype=torch.float32)
    targets = torch.tensor(labels[:100], dtype=torch.float32).reshape(-1, 1)
    net = torch.nn.Linear(powers, 1, bias=False)
    trainer = torch.optim.SGD(net.parameters(), lr=0.01)
    loss = torch.nn.MSELoss(reduction="none")
    for _ in range(epochs):
        for batch in batches(torch, 100, 10):
            trainer.zero_grad()
            loss(net(inputs[batch]), targets[batch]).mean().backward()
            trainer.step()
    weights = net.weight.detach().numpy()[0]
    return {f"weight {i}": float(w) for i, w in enumerate(weights)}


def draw_linear(torch: Any, n: int) -> tuple[Any, Any]:
    """d2l.synthetic_data with 200 weights of 0.01 and a bias of 0.05."""
    x = torch.normal(0, 1, (n, 200))
    return x, x @ (torch.ones(200, 1) * 0.01) + 0.05 + torch.normal(0, 0.01, (n, 1))


def decay_from_scratch(seed: int, decay: float) -> Sample:
    """Section 4.5, from scratch: the norm of w."""
    torch = import_torch()
    torch.manual_seed(seed)
    x, y = draw_linear(torch, 20)
    w = torch.normal(0, 1, size=(200, 1), requires_grad=True)
    b = torch.zeros(1, requires_grad=True)
    for _ in range(100):
        for batch in batches(torch, 20, 5):
            error = x[batch] @ w + b - y[batch]
            (error**2 / 2 + decay * torch.sum(w.pow(2)) / 2).sum().backward()
            with torch.no_grad():
                for parameter in (w, b):
                    parameter -= 0.003 * parameter.grad / len(batch)
                    parameter.grad.zero_()
    return {"norm of w": torch.norm(w).item()}


def decay_concise(seed: int, decay: float) -> Sample:
    """Section 4.5, concise: the norm of w."""
    torch = import_torch()
    torch.manual_seed(seed)
    x, y = draw_linear(torch, 20)
    net = torch.nn.Linear(200, 1)
    for parameter in net.parameters():
        parameter.data.normal_()
    loss = torch.nn.MSELoss(reduction="none")
    groups = [{"params": net.weight, "weight_decay": decay}, {"params": net.bias}]
    trainer = torch.optim.SGD(groups, lr=0.003)
    for _ in range(100):
        for batch in batches(torch, 20, 5):
            trainer.zero_grad()
            loss(net(x[batch]), y[batch]).mean().backward()
            trainer.step()
    return {"norm of w": net.weight.norm().item()}


def train_classifier(seed: int, way: str, data: ImageData, epochs: int) -> Sample:
    """Sections 4.2 and 4.3: what train_ch3 draws of the last epoch."""
    torch = import_torch()
    torch.manual_seed(seed)
    x, x_test = (torch.tensor(a) for a in (data.train_images, data.test_images))
    y, y_test = (torch.tensor(a, dtype=torch.int64) for a in (data.train_labels, data.test_labels))
    if way == "scratch":
        w1 = torch.nn.Parameter(torch.randn(x.shape[1], 256) * 0.01)
        b1 = torch.nn.Parameter(torch.zeros(256))
        w2 = torch.nn.Parameter(torch.randn(256, 10) * 0.01)
        b2 = torch.nn.Parameter(torch.zeros(10))
        parameters = [w1, b1, w2, b2]

        def net(x: Any) -> Any:
            h = x @ w1 + b1
            return torch.max(h, torch.zeros_like(h)) @ w2 + b2
    else:
        layers = torch.nn.Linear(x.shape[1], 256), torch.nn.Linear(256, 10)
        for layer in layers:
            torch.nn.init.normal_(layer.weight, std=0.01)
        net = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1])
        parameters = [parameter for layer in layers for parameter in layer.parameters()]
    loss, trainer = torch.nn.CrossEntropyLoss(reduction="none"), torch.optim.SGD(parameters, lr=0.1)
    total = right = 0.0
    for _ in range(epochs):
        total = right = 0.0
        for batch in batches(torch, len(x), 256):
            logits = net(x[batch])
            losses = loss(logits, y[batch])
            trainer.zero_grad()
            losses.mean().backward()
            trainer.step()
            total += float(losses.detach().sum())
            right += float((logits.argmax(axis=1) == y[batch]).sum())
    with torch.no_grad():
        test = float((net(x_test).argmax(axis=1) == y_test).float().mean())
    return {"train_loss": total / len(x), "train_accuracy": right / len(x), "test_accuracy": test}


class Case(NamedTuple):
    """One of the chapter's experiments, by PyTorch for one seed and by jaxstab for many: name -> [seed]."""

    by_torch: Callable[[int], Sample]
    by_jaxstab: Callable[[int], Mapping[str, np.ndarray]]


def polynomial_case(powers: int, epochs: int) -> Case:
    """One regime of the polynomial."""

    def by_jaxstab(seeds: int) -> Mapping[str, np.ndarray]:
        space = jaxstab.grid(powers=powers, epochs=epochs)
        weights = jaxstab.sweep(polynomial.regression, space, seeds, keep=["weights"]).weights
        return {f"weight {i}": weights.isel(power=i).values for i in range(powers)}

    return Case(lambda seed: fit_polynomial(seed, powers, epochs), by_jaxstab)


def decay_case(way: str, decay: float | int, other: str | None = None) -> Case:
    """Weight decay one way; with `other`, jaxstab's side is another way: the planted error."""
    by_torch = decay_from_scratch if way == "scratch" else decay_concise

    def by_jaxstab(seeds: int) -> Mapping[str, np.ndarray]:
        space = jaxstab.grid(way=other or way, decay=decay)
        data = jaxstab.sweep(weight_decay.regression, space, seeds, keep=["w_norm"])
        return {"norm of w": data.w_norm.isel(epoch=-1).values}

    return Case(lambda seed: by_torch(seed, decay), by_jaxstab)


def classifier_case(way: str, dataset: str, epochs: int, folder: Path | None = None) -> Case:
    """A classifier on a dataset that both sides read."""
    images = datasets.load(dataset, folder)

    def by_jaxstab(seeds: int) -> Mapping[str, np.ndarray]:
        space = jaxstab.grid(way=way, dataset=dataset, epochs=epochs)
        data = jaxstab.sweep(
            training.from_folder(mlp.classifier, folder), space, seeds, keep=list(mlp.CURVES)
        )
        return {name: data[name].isel(epoch=-1).values for name in mlp.CURVES}

    return Case(lambda seed: train_classifier(seed, way, images, epochs), by_jaxstab)


class Comparison(NamedTuple):
    """Two samples of one quantity, and the p-value of their being of one law."""

    quantity: str
    by_torch: np.ndarray
    by_jaxstab: np.ndarray
    p: float


def compare(name: str, case: Case, torch_seeds: int, jaxstab_seeds: int) -> tuple[list[Comparison], str]:
    """Run both sides; every quantity compared, and a line with the time a seed takes on either."""
    started = time.monotonic()
    runs = [case.by_torch(seed) for seed in range(torch_seeds)]
    torch_time = (time.monotonic() - started) / torch_seeds
    case.by_jaxstab(2)  # compiled before it is timed
    started = time.monotonic()
    ours = case.by_jaxstab(jaxstab_seeds)
    own_time = (time.monotonic() - started) / jaxstab_seeds
    found = []
    for quantity in runs[0]:
        # a run that diverged is a value too: the largest
        samples = [np.asarray(x) for x in ([run[quantity] for run in runs], ours[quantity])]
        theirs, own = (np.where(np.isfinite(x), x, np.inf) for x in samples)
        test: Any = stats.ks_2samp(theirs, own)
        found.append(Comparison(f"{name}: {quantity}", theirs, own, float(test.pvalue)))
    return found, f"{name}: {1e3 * torch_time:.1f} ms a seed in PyTorch, {1e3 * own_time:.2f} in jaxstab"


def row(one: Comparison) -> str:
    """A comparison as a line of a Markdown table."""
    theirs, ours = np.median(one.by_torch), np.median(one.by_jaxstab)
    return f"| {one.quantity} | {theirs:.4g} | {ours:.4g} | {one.p:.2g} |"


def main(
    *,
    seeds: int = 32,
    jaxstab_seeds: int = 256,
    fashion_mnist: Path | None = None,
    out: Path = Path("experiments/benchmarks/results"),
) -> int:
    """Compare them all.

    Args:
        seeds: how many of PyTorch's runs (the classifiers of jaxstab too).
        jaxstab_seeds: how many of jaxstab's regressions.
        fashion_mnist: folder with Fashion-MNIST's four official files; digits without.
        out: folder of torch_chapter.md, the same lines as a table.
    """
    import_torch().set_num_threads(1)  # these tensors are too small to be shared out
    dataset = "fashion_mnist" if find(fashion_mnist).folder else "digits"
    cases = {name: polynomial_case(*sizes) for name, sizes in polynomial.REGIMES.items()}
    cases |= {f"{way}, lambda = {d}": decay_case(way, d) for way in ("scratch", "concise") for d in (0, 3)}
    cases |= {
        f"mlp {way} on {dataset}": classifier_case(way, dataset, 10, fashion_mnist)
        for way in ("scratch", "concise")
    }
    cases["planted: scratch against concise, lambda = 3"] = decay_case("scratch", 3, other="concise")
    differ, rows = 0, []
    for name, case in cases.items():
        found, times = compare(name, case, seeds, seeds if name.startswith("mlp") else jaxstab_seeds)
        print(times)
        for one in found:
            differ += (one.p < LEAST_P) != name.startswith("planted")
            rows.append(row(one))
            print(rows[-1], flush=True)
    verdict = f"{differ} of {len(rows)} comparisons other than expected, {seeds} seeds of PyTorch's"
    print(verdict)
    out.mkdir(parents=True, exist_ok=True)
    head = "| quantity | median, PyTorch | median, jaxstab | p |\n|---|---|---|---|\n"
    (out / "torch_chapter.md").write_text(head + "\n".join(rows) + f"\n\n{verdict}\n")
    return 1 if differ else 0


if __name__ == "__main__":
    try:
        sys.exit(tyro.cli(main, prog="python -m experiments.benchmarks.torch_chapter"))
    except UsageError as error:
        print(f"torch_chapter: {error}", file=sys.stderr)
        sys.exit(2)
