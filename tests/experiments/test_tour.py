"""The notebook runs from its first cell to its last, in a kernel of its own, and is kept without its outputs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TOUR = Path(__file__).parents[2] / "experiments" / "tour.ipynb"


# the kernel's sockets and event loop are its own affair
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::RuntimeWarning")
def test_the_tour_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    book = nbformat.read(TOUR, as_version=4)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert len(cells) == 12
    assert not any(cell.outputs for cell in cells)
    for cell in cells:
        cell.source = cell.source.replace("propagate(64,", "propagate(16,").replace("seeds=64", "seeds=8")
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [kind for cell in cells for output in cell.outputs for kind in output.get("data", ())]
    assert shown.count("image/png") == 7
    assert shown.count("text/html") >= 3
