"""
The notebooks: what is committed is what a run gives, top to bottom, in another folder, without a network.

Cells tagged `picture` have to show one, others must not; what cells tagged `varies` say (seconds, losses) may change.
"""

import copy
import re
from pathlib import Path

import nbformat
import pytest


pytest.importorskip("nbclient", reason="nbclient is among the packages of the extra `test`")

import run_notebooks  # noqa: E402


NOTEBOOKS = run_notebooks.notebooks()
# Two cores for two minutes.
MAX_CPU_SECONDS = 240
MAX_GIB = 6
MAX_BYTES = 600_000
# The usual places of home and temporary folders, and this one: `/root/x`, `C:\Users\x`.
MACHINE_PATH = re.compile(rf"/(home|root|tmp|Users|mnt|var)/|[A-Z]:\\|{re.escape(str(Path.home()))}/")


def text_of(output: dict) -> str:
    """What a person can read of an output."""
    return output.get("text", "") + output.get("data", {}).get("text/plain", "")


def faults(notebook: dict) -> list[str]:
    """What is wrong with the outputs of a notebook that was run."""
    found = []
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    if [cell["execution_count"] for cell in code] != list(range(1, len(code) + 1)):
        found.append("was not run top to bottom")
    for cell in code:
        where = f"cell {cell['execution_count']} ({cell['source'].splitlines()[0]})"
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                found.append(f"{where} fails: {output['ename']}: {output['evalue']}")
            if output.get("name") == "stderr":
                found.append(f"{where} writes to stderr: {output['text']}")
            if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
                found.append(f"{where} shows a widget, which is nothing without a kernel")
            if path := MACHINE_PATH.search(text_of(output)):
                found.append(f"{where} shows a path of a machine: {path[0]}")
        shows = any("image/png" in output.get("data", {}) for output in cell["outputs"])
        if shows != ("picture" in cell["metadata"].get("tags", [])):
            found.append(f"{where} {'shows a picture without the tag' if shows else 'lacks its picture'}")
    return found


def stable_text(notebook: dict) -> list[tuple[str, str]]:
    """Source and text of the cells whose output is always the same."""
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [
        (cell["source"], "".join(map(text_of, cell["outputs"])))
        for cell in code
        if "varies" not in cell["metadata"].get("tags", [])
    ]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_committed_outputs(name):
    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    nbformat.validate(notebook)
    assert faults(notebook) == []
    assert run_notebooks.normalise(copy.deepcopy(notebook)) == notebook, "run_notebooks.py did not write it"
    assert NOTEBOOKS[name].stat().st_size < MAX_BYTES
    assert re.search(r"^MODEL = ", "\n".join(cell["source"] for cell in notebook["cells"]), re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_run_gives_what_is_committed(name):
    if missing := run_notebooks.lacks(name):
        pytest.skip(missing)
    notebook, cost = run_notebooks.run(NOTEBOOKS[name])
    assert faults(notebook) == []
    assert stable_text(notebook) == stable_text(nbformat.read(NOTEBOOKS[name], as_version=4))
    assert cost.cpu_seconds < MAX_CPU_SECONDS and cost.peak_gib < MAX_GIB, cost


PICTURE = "from PIL import Image\nImage.new('RGB', (2, 2))"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "tags", "fault"),
    [
        ("print('fine')", [], None),
        (PICTURE, ["picture"], None),
        (PICTURE + ";", ["picture"], "lacks its picture"),
        (PICTURE, [], "shows a picture without the tag"),
        ("1 / 0", [], "fails: ZeroDivisionError"),
        ("import sys; print('old', file=sys.stderr)", [], "writes to stderr"),
        ("import ipywidgets; ipywidgets.Label()", [], "shows a widget"),
        ("import os; print(os.getcwd())", [], "shows a path of a machine"),
    ],
)
def test_faults_are_found(tmp_path, source, tags, fault):
    path = tmp_path / "notebook.ipynb"
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": tags})
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title"), cell]), path)
    notebook, _ = run_notebooks.run(path)
    found = faults(notebook)
    assert len(found) == (fault is not None) and all(fault in text for text in found)


def test_what_was_not_run_is_found():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])
    assert faults(notebook) == ["was not run top to bottom"]
