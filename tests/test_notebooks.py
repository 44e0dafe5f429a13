"""The notebooks are kept without outputs, run from a clean kernel, and show what they promise."""

import base64
import io
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from matplotlib import image
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_outputs_are_not_kept(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert code(notebook)
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code(notebook))


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Any:
    notebook = nbformat.read(FOLDER / "quickstart.ipynb", as_version=4)
    folder = tmp_path_factory.mktemp("notebook")
    resources = {"metadata": {"path": str(folder)}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))  # the notebook's own temporary folder goes with the test's
        NotebookClient(notebook, timeout=120, kernel_name="python3", resources=resources).execute()
    return notebook


def outputs(notebook: Any, start: str) -> list[Any]:
    """The outputs of the cell that contains a text."""
    (cell,) = [cell for cell in code(notebook) if start in cell.source]
    return list(cell.outputs)


def text(notebook: Any, start: str) -> str:
    return "".join(o.get("text") or o.get("data", {}).get("text/plain", "") for o in outputs(notebook, start))


@pytest.mark.slow
def test_quickstart_runs_without_error_or_warning(quickstart: Any) -> None:
    assert [cell.execution_count for cell in code(quickstart)] == list(range(1, len(code(quickstart)) + 1))
    for cell in code(quickstart):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.get("text")


@pytest.mark.slow
def test_quickstart_tells_what_it_found(quickstart: Any) -> None:
    assert text(quickstart, "og.scene_table").count("S2") >= 7
    assert "pairs of" in text(quickstart, "og.explain")
    assert "'failed': 0" in text(quickstart, "og.status")
    assert "no_data_or_masked" in text(quickstart, "og.flags.MEANINGS")
    assert "vx_nmad" in text(quickstart, "og.validate")


@pytest.mark.slow
@pytest.mark.parametrize("start", ["og.view.speed_map", "og.view.plot_series"])
def test_quickstart_draws(quickstart: Any, start: str) -> None:
    (picture,) = [o["data"]["image/png"] for o in outputs(quickstart, start) if "image/png" in o.get("data", {})]
    pixels = image.imread(io.BytesIO(base64.b64decode(picture)))[..., :3]
    assert float((pixels.min(-1) < 0.95).mean()) > 0.02
    assert np.unique(pixels.reshape(-1, 3), axis=0).shape[0] > 50


@pytest.mark.slow
def test_quickstart_is_right(quickstart: Any) -> None:
    said = text(quickstart, "RMSE").split()
    assert 0 < float(said[1]) < 0.15
    assert int(said[3]) > 1000
