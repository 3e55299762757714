"""The house: which floor may know which, what stands at the top, what is public."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csgraph

import jaxstab

ROOT = Path(__file__).parent.parent
FLOORS = {
    "compiler": 0, "errors": 0, "formats": 0, "typing": 0, "machine": 0, "names": 0, "random": 0, "reductions": 0,
    "scaling": 0,
    "theory": 1,
    "observation": 2, "nets": 2, "data": 2, "trials": 3, "engine": 4, "diagnosis": 5, "report": 5,
    "cli": 6, "__main__": 7,
}  # fmt: skip  # from the ground up
APART = [("nets", "data"), ("observation", "nets"), ("observation", "data"), ("diagnosis", "report")]
MAY_TOUCH_FILES = (
    "machine.py",
    "engine/store.py",
    "engine/identity.py",
    "data/",
    "report/",
    "diagnosis/graph.py",
    "diagnosis/onnx.py",
    "cli/",
    "__init__.py",
)
PUBLIC = {
    "gain", "initializers", "critical_initialization", "grid", "zipped", "sample", "uniform", "log_uniform", "choice",
    "sweep", "propagate", "train", "predict", "open_store", "explain", "Explanation", "quantiles", "fit", "Task",
    "propagation", "training", "family", "Family", "Interrupted", "UsageError", "observe", "draw_graph", "Graph",
    "what_if", "to_onnx", "diagnose", "Diagnosis", "Finding", "UnstableError", "family_of",
    "Layer", "Weights", "preactivation", "theory",
}  # fmt: skip
"""Every public name; the design's are all here."""
DESIGN = ROOT.parent / "shared" / "DESIGN.md"
SOURCES = sorted((ROOT / "jaxstab").rglob("*.py"))


def floor_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imports_of(path: Path, *, for_types: bool = True) -> list[str]:
    """What a file imports of jaxstab and experiments, wherever in it; that under TYPE_CHECKING `for_types` only."""
    found = []
    for node in nodes_of(ast.parse(path.read_text()), for_types):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in found if name.startswith(("jaxstab.", "experiments."))]


def nodes_of(tree: ast.AST, for_types: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if for_types or not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from nodes_of(node, for_types)


def circles() -> set[frozenset[str]]:
    """Groups of modules each of which imports all others, directly or through others; late imports count."""
    paths = [path for top in ("jaxstab", "experiments") for path in sorted((ROOT / top).rglob("*.py"))]
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in paths]
    imported = [
        {name if name in names else name.rpartition(".")[0] for name in imports_of(p, for_types=False)}
        for p in paths
    ]
    graph = [[name in own for name in names] for own in imported]
    _, groups = csgraph.connected_components(np.array(graph), connection="strong")
    members = [frozenset(np.array(names)[groups == group].tolist()) for group in np.unique(groups)]
    return {group for group in members if len(group) > 1}


def climbs(path: Path) -> list[str]:
    """Imports of a file that do not go down."""
    own = floor_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    wrong = []
    for name in imports_of(path):
        other = floor_of(name)
        if other == own or own == "__init__":
            continue
        if FLOORS[other] > FLOORS[own] or (own, other) in APART or (other, own) in APART:
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_only(path):
    assert climbs(path) == []


def test_no_import_runs_in_a_circle():
    assert circles() == set()


def test_a_circle_is_seen_unless_it_is_of_types_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "jaxstab/nets").mkdir(parents=True)
    first, second, third = (tmp_path / f"jaxstab/nets/{name}.py" for name in ("first", "second", "third"))
    third.write_text("import jaxstab.nets.first\n")
    second.write_text("from jaxstab.nets import third\n")
    first.write_text("if TYPE_CHECKING:\n    from jaxstab.nets.second import x\n")
    assert circles() == set()
    first.write_text("def f():\n    from jaxstab.nets.second import x\n")
    assert circles() == {frozenset(f"jaxstab.nets.{name}" for name in ("first", "second", "third"))}


def test_a_climbing_import_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "jaxstab/theory").mkdir(parents=True)
    wrong = tmp_path / "jaxstab/theory/wrong.py"
    wrong.write_text("from jaxstab.nets import initializers\n")
    assert climbs(wrong) == ["jaxstab.nets.initializers"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_touched_and_text_is_printed_only_where_that_is_the_job(path):
    inside = str(path.relative_to(ROOT / "jaxstab"))
    if inside.startswith(MAY_TOUCH_FILES):
        return
    calls = [n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    names = {f.id for f in calls if isinstance(f, ast.Name)} | {
        f.attr for f in calls if isinstance(f, ast.Attribute)
    }
    assert not names & {
        "open",
        "print",
        "write_text",
        "write_bytes",
        "read_text",
        "read_bytes",
        "mkdir",
        "unlink",
    }


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_is_ever_unpickled(path):
    text = path.read_text()
    assert not re.search(r"import pickle|pickle\.|allow_pickle=True|cloudpickle|deserialize", text)
    assert text.count("np.load(") + text.count("np.savez(") <= text.count("allow_pickle=False")


def test_the_top_of_the_tree():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    top = {name.split("/")[0] for name in listed if not name.startswith(".")}
    assert top <= {"pyproject.toml", "jaxstab", "experiments", "tests", "README.md", "LICENSE"}


def test_the_public_surface():
    assert set(jaxstab.__all__) == PUBLIC
    assert all(getattr(jaxstab, name) is not None for name in jaxstab.__all__)


@pytest.mark.skipif(not DESIGN.exists(), reason="the design is not part of the repository")
def test_the_lists_hold_every_name_of_the_design():
    surface = DESIGN.read_text().split("## 3. Public surface", 1)[1].split("```")[1]
    names = set(re.findall(r"jaxstab\.(\w+)", surface))
    assert len(names) > 15
    assert names <= PUBLIC


def test_no_folder_bears_the_name_of_a_public_function():
    folders = {p.name for p in (ROOT / "jaxstab").iterdir() if p.is_dir()}
    functions = {name for name in jaxstab.__all__ if not isinstance(getattr(jaxstab, name), types.ModuleType)}
    assert not folders & functions
    files = {path.stem for path in (ROOT / "jaxstab/theory").iterdir()}
    assert not files & set(jaxstab.theory.__all__)


def test_importing_jaxstab_imports_no_jax():
    code = "import sys, jaxstab; print('jax' in sys.modules, 'matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_every_core_is_a_device_unless_the_user_said_otherwise():
    code = "import jaxstab, os; print(os.environ['JAX_NUM_CPU_DEVICES'])"
    environment = {"PATH": "/usr/bin:/bin"}
    cores = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert int(cores.stdout) >= 1
    environment["JAX_NUM_CPU_DEVICES"] = "5"
    given = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert int(given.stdout) == 5
