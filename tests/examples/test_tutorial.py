"""The notebook of the tutorial runs, and what it says of its results is so; its kept outputs name no machine.

`python tests/examples/test_tutorial.py` runs it and keeps the new outputs; it needs nbclient and ipykernel.
"""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "tutorial.ipynb"

Cells = list[dict[str, Any]]


def code_cells(notebook: Any) -> Cells:
    """The cells with code."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def printed(cells: Cells) -> str:
    """All that they have printed."""
    outputs = [output for cell in cells for output in cell["outputs"] if output["output_type"] == "stream"]
    return "".join("".join(output["text"]) for output in outputs)


def executed(folder: Path) -> Any:
    """The notebook with the outputs of a run in this folder, without times."""
    nbformat = pytest.importorskip("nbformat", reason="needs Jupyter: pip install nbclient ipykernel")
    nbclient = pytest.importorskip("nbclient", reason="needs Jupyter: pip install nbclient ipykernel")
    pytest.importorskip("ipykernel", reason="needs Jupyter: pip install nbclient ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, resources=where, record_timing=False, coalesce_streams=True).execute()
    return notebook


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Jupyter's own
def test_it_runs_and_its_prose_is_true(tmp_path: Path) -> None:
    """A new run says what the kept one says, but for its numbers, and these are as the text has them."""
    cells = code_cells(executed(tmp_path))
    said = printed(cells)
    kept = code_cells(json.loads(NOTEBOOK.read_text()))
    kinds = [[[output["output_type"] for output in cell["outputs"]] for cell in some] for some in (cells, kept)]
    assert kinds[0] == kinds[1]
    words = [re.sub(r"-?\d[\d,.]*(e[-+]\d+)?", "#", " ".join(text.split())) for text in (said, printed(kept))]
    assert words[0] == words[1]

    constant, *elbos = map(float, re.findall(r"(?:image:|test ELBO) (-[\d.]+)", said))
    assert len(elbos) == 5 and constant + 2 < elbos[-1] and elbos[0] + 1 < elbos[-1]
    rows = re.findall(r"^ *(\d+) +(-[\d.]+) +(-[\d.]+)$", said, re.MULTILINE)
    guided, blind = ({int(row[0]): float(row[i]) for row in rows} for i in (1, 2))
    assert guided[1] < guided[10] < guided[100] + 0.05 and guided[1000] - guided[100] < 0.05
    assert guided[1000] - guided[1] < 1
    assert blind[100] < guided[10] and guided[1000] - blind[1000] < 0.3
    longer = float(re.findall(r"^ELBO +(-[\d.]+)", said, re.MULTILINE)[0])
    assert longer > elbos[-1] + 1
    assert "PyTorch is loaded: False" in said
    digit, moved, turned, noise, bar = map(float, re.findall(r"percentile +([\d.]+)", said))
    assert moved == turned == noise < 1 < digit < bar
    assert re.findall(r"p = [\d.]+, (\w+)", said) == ["normal", "odd", "odd", "odd", "odd"]


def test_its_outputs_are_small_and_of_no_machine() -> None:
    """Every cell has been run, in order, without a warning; no path, process, time or name of a person is kept."""
    text = NOTEBOOK.read_text()
    cells = code_cells(json.loads(text))
    assert len(text) < 600_000
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell["metadata"] == {} for cell in cells)
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 6
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}  # and nothing on stderr
    plain = printed(cells) + "".join("".join(output.get("data", {}).get("text/plain", "")) for output in outputs)
    assert not re.findall(r"/tmp|/home|/root|/Users|ipykernel|\b\d\d:\d\d\b|20\d\d-\d\d", plain)


if __name__ == "__main__":
    import nbformat

    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(executed(Path(folder)), NOTEBOOK)
