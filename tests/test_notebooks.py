"""The notebooks are kept without outputs, run from a clean kernel without a network, and show what they promise."""

import base64
import functools
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from matplotlib import image
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
DATA = Path(os.environ.get("OGIVE_DATA", Path(__file__).parents[2] / "shared" / "data")).resolve()
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MINE = ("annual_velocities", "mapping_ice_flow", "quickstart", "reading_stores", "spring_speed")
"""Those that this file runs."""


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_outputs_are_not_kept(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert code(notebook)
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code(notebook))


@pytest.mark.parametrize("name", MINE)
def test_the_web_is_one_switch_away(name: str) -> None:
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    switches = [
        line for cell in code(notebook)[:2] for line in cell.source.splitlines() if re.match(r"ONLINE = ", line)
    ]
    assert len(switches) == 1
    assert switches[0].startswith("ONLINE = False  # True: ")


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Name -> the notebook with its outputs; each is run once."""

    @functools.cache
    def run(name: str) -> Any:
        notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
        folder = tmp_path_factory.mktemp("notebook")
        resources = {"metadata": {"path": str(folder)}}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TMPDIR", str(folder))  # the notebook's own temporary folder goes with the test's
            patch.setenv("OGIVE_DATA", str(DATA))
            NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
        return notebook

    return run


def outputs(notebook: Any, start: str) -> list[Any]:
    """The outputs of the cell that contains a text."""
    (cell,) = [cell for cell in code(notebook) if start in cell.source]
    return list(cell.outputs)


def text(notebook: Any, start: str) -> str:
    return "".join(o.get("text") or o.get("data", {}).get("text/plain", "") for o in outputs(notebook, start))


def numbers(notebook: Any, start: str, pattern: str) -> list[float]:
    """The groups of the one line of a cell's text that matches."""
    (found,) = re.findall(pattern, text(notebook, start))
    return [float(part) for part in (found if isinstance(found, tuple) else (found,))]


@pytest.mark.slow
@pytest.mark.parametrize("name", MINE)
def test_runs_without_error_or_warning(executed: Callable[[str], Any], name: str) -> None:
    notebook = executed(name)
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    for cell in code(notebook):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.get("text")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("quickstart", "og.view.speed_map"),
        ("quickstart", "og.view.plot_series"),
        ("spring_speed", "axis.errorbar"),
        ("annual_velocities", "og.view.pair_network"),
        ("annual_velocities", "og.view.speed_map"),
        ("annual_velocities", "og.view.stakes_scatter"),
        ("reading_stores", "axis.legend"),
        ("mapping_ice_flow", "og.view.pair_network"),
        ("mapping_ice_flow", "og.view.tile_map"),
        ("mapping_ice_flow", "og.view.speed_map"),
    ],
)
def test_draws(executed: Callable[[str], Any], name: str, start: str) -> None:
    found = outputs(executed(name), start)
    (picture,) = [o["data"]["image/png"] for o in found if "image/png" in o.get("data", {})]
    pixels = image.imread(io.BytesIO(base64.b64decode(picture)))[..., :3]
    assert float((pixels.min(-1) < 0.95).mean()) > 0.02
    assert np.unique(pixels.reshape(-1, 3), axis=0).shape[0] > 50


@pytest.mark.slow
def test_quickstart_tells_what_it_found(executed: Callable[[str], Any]) -> None:
    notebook = executed("quickstart")
    assert text(notebook, "og.scene_table").count("S2") >= 7
    assert "pairs of" in text(notebook, "og.explain")
    assert "'failed': 0" in text(notebook, "og.status")
    assert "no_data_or_masked" in text(notebook, "og.flags.MEANINGS")
    assert "scene_unreadable" not in text(notebook, "og.flags.MEANINGS")
    assert "vx_nmad" in text(notebook, "og.validate")


@pytest.mark.slow
def test_quickstart_is_right(executed: Callable[[str], Any]) -> None:
    rmse, vectors = numbers(executed("quickstart"), "RMSE", r"RMSE ([\d.]+) px, (\d+) vectors")
    assert 0 < rmse < 0.15
    assert vectors > 1000


@pytest.mark.slow
def test_buttons_and_functions_make_the_same(executed: Callable[[str], Any]) -> None:
    notebook = executed("mapping_ice_flow")
    scenes, theirs = numbers(notebook, "og.search(", r"(\d+) scenes, the application has (\d+)")
    assert scenes == theirs == 7
    pairs, theirs, usable = numbers(notebook, "og.scene_cover(", r"(\d+) pairs, the application has (\d+); (\d+)% of")
    assert pairs == theirs >= 10
    assert 0 < usable <= 100
    assert "the same bits as the application: True" in text(notebook, "og.filters.fill(")
    rmse, vectors = numbers(notebook, "RMSE", r"RMSE ([\d.]+) px, (\d+) vectors on ice")
    assert 0 < rmse < 0.15
    assert vectors > 1000
    assert "['map.tif', 'places.csv', 'run.yaml', 'session.py']" in text(notebook, "away.written")


@pytest.mark.slow
def test_spring_speed_is_right(executed: Callable[[str], Any]) -> None:
    """Every April against the exact mean of that April, in published years and in the own one."""
    line = r"{}: RMSE ([\d.]+) m/yr, bias ([+-][\d.]+)% along the flow, (\d+)% inside"
    for source, worst in (("ITS_LIVE", 6), ("ogive", 3)):
        rmse, bias, inside = numbers(executed("spring_speed"), "RMSE", line.format(source))
        assert rmse < 8
        assert abs(bias) < worst
        assert inside >= 75
    table = text(executed("spring_speed"), 'table["inside_95"] =')
    assert len(re.findall(r"20(?:16|17|18|19|20|21|22) ", table)) == 14


@pytest.mark.slow
def test_a_mean_of_pairs_is_worse_than_the_inversion(executed: Callable[[str], Any]) -> None:
    rows = re.findall(r"^\d+ +(20\d\d) +([\d.]+) +([\d.]+) +([\d.]+)$", text(executed("spring_speed"), "naive"), re.M)
    naive, inverted, truth = np.array(rows, float).T[1:]
    assert len(truth) == 7
    assert np.abs(inverted - truth).max() < np.abs(naive - truth).mean()


@pytest.mark.slow
@pytest.mark.real
def test_spring_speed_finds_the_slowdown_of_jakobshavn(data: Path, executed: Callable[[str], Any]) -> None:
    """Published by others, too: the glacier slowed by about a third between 2016 and 2018."""
    rows = re.findall(r"^(20\d\d) +(\S+) +(\S+)$", text(executed("spring_speed"), "itslive_v2_point"), re.M)
    jakobshavn = {int(year): float(speed) for year, _, speed in rows}
    assert sorted(jakobshavn) == list(range(2014, 2022))
    assert 0.6 < jakobshavn[2018] / jakobshavn[2016] < 0.8


@pytest.mark.slow
def test_annual_velocities_are_right(executed: Callable[[str], Any]) -> None:
    """Bias, mean and root of squares at the stakes; every scene of one summer with every one of the next."""
    notebook = executed("annual_velocities")
    first, second, pairs, low, high = numbers(
        notebook, "og.view.pair_network", r"(\d+) x (\d+) scenes, (\d+) pairs of (\d+) to (\d+) days"
    )
    assert pairs == first * second >= 30
    assert 200 < low < 260
    assert 440 < high < 500
    score = r"bias (-?[\d.]+), MAE ([\d.]+), RMSE ([\d.]+) m/yr"
    assert numbers(notebook, 'table["mapped"]', score)[2] < 2.5
    bias, mae, rmse, inside = numbers(notebook, "og.validate.stakes(", score + r", (\d+)% inside")
    assert abs(bias) < 0.5
    assert mae < rmse < 1.0
    assert inside >= 80
    for name, worst in (("mean of pairs", 2.5), ("inversion", 2.0)):
        rmse, cells = numbers(notebook, "mean of pairs", name + r": RMSE ([\d.]+) m/yr per component, (\d+) cells")
        assert 0 < rmse < worst
        assert cells > 300


@pytest.mark.slow
def test_stores_read_without_ogive_say_the_same(executed: Callable[[str], Any]) -> None:
    notebook = executed("reading_stores")
    assert "complete · meter/year · 32645" in text(notebook, "xr.open_zarr")
    assert "500 bands, EPSG:32645 no data: -32767.0" in text(notebook, "rasterio.open")
    assert "True" in text(notebook, "rasterio.open")
    assert numbers(notebook, "copy = ", r"500 pairs, largest difference ([\d.]+) m/yr")[0] <= 0.5


@pytest.mark.slow
def test_inversions_side_by_side(executed: Callable[[str], Any]) -> None:
    rows = re.findall(r"^(\S.*?)  +([\d.]+) +(-?[\d.]+) +(\S+)$", text(executed("reading_stores"), "RMSE (m/yr)"), re.M)
    score = {name: (float(rmse), float(inside)) for name, rmse, _, inside in rows}
    assert score["adaptive"][0] < 5
    assert score["adaptive"][1] > 0.93
    assert score["adaptive"][0] < score["ticoi, outliers out"][0] < score["ticoi"][0]
    assert score["adaptive"][0] < score["median of pairs"][0] / 3
    last = text(executed("reading_stores"), "AnnualOptions").split("\n")[-1]
    year, robust, itslive, truth = (float(word) for word in last.split())
    assert abs(robust - truth) < 2 < abs(itslive - truth)
    assert year == 2018
