"""The demo on a tiny world: the whole line against its known truth, twice, with the same bytes."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image

from ogive import run, store
from ogive.demo import demo
from ogive.testing.plan import WorldSpec

# Slow ice, because a small glacier of the usual speed would shear more than any real one.
SPEC = WorldSpec(
    size_km=(2.2, 2.8), n_sentinel2=7, n_landsat=2, start="2022-06-10", end="2022-08-25",
    cloud=0.0, speed=100.0, wedge=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> run.RunResult:
    return demo(tmp_path_factory.mktemp("demo"), spec=SPEC, progress=False)


def files(folder: Path) -> dict[str, bytes]:
    """All chunks of all stores of a run; `zarr.json` names the folder and is left out."""
    found = {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and ".zarr/" in str(p) and p.name != "zarr.json"
    }
    assert len(found) > 60
    return found


def test_pairs_are_right(result: run.RunResult) -> None:
    table = result.tables["Pairs against truth"].set_index("ground")
    ice, rock = table.loc["ice"], table.loc["rock"]
    assert 0.4 < ice["valid"] <= 1
    assert 0 < ice["RMSE"] <= 0.15
    assert 0 < rock["RMSE"] <= 0.2
    for ground in (ice, rock):
        assert max(abs(ground["bias x"]), abs(ground["bias y"])) < 0.05
        # One error for the whole pair: rough, but of the right size.
        assert 0.5 < ground["in 68 %"] <= 1
        assert 0.7 < ground["in 95 %"] <= 1


def test_series_are_scored_on_the_days_of_the_best_pair(result: run.RunResult) -> None:
    table = result.tables["Series against truth"]
    assert list(table["ground"]) == ["ice"] * 3 + ["rock"] * 3
    assert (table["valid"] > 0.05).all()
    assert table["valid"].max() <= 1
    assert (table["RMSE"] > 0).all()
    assert (table["RMSE"] < 25).all()  # m/yr; the ice moves at up to 100


def test_stable_ground_stands_still_after_the_correction(result: run.RunResult) -> None:
    before, after = result.tables["Stable ground"].to_dict("records")
    for axis in ("vx_median", "vy_median"):
        assert abs(after[axis]) < 0.25 * abs(before[axis])
    assert after["vectors"] > 100


def test_stores_are_complete(result: run.RunResult) -> None:
    assert result.series is not None
    for path in (result.matches, result.velocity, result.series):
        count = store.status(path)
        assert count["done"] == count["blocks"] > 0
        assert store.verify(path).empty
    velocity = store.open_velocity(result.velocity)
    assert velocity.sizes["mid_date"] == len(result.tables["Pairs"]) > 5
    assert {"S2", "L"} & {str(m)[:2].rstrip("89") for m in velocity["mission_img1"].values}
    told = json.loads(result.to_json())
    assert Path(told["report"]).is_file()
    assert "Pairs against truth" in told["tables"]


@pytest.mark.parametrize("name", ["map.png", "series.png"])
def test_pictures_show_something(result: run.RunResult, name: str) -> None:
    pixels = image.imread(result.report.parent / name)[..., :3]
    assert min(pixels.shape[:2]) > 300
    assert np.unique((pixels.reshape(-1, 3) * 255).astype(np.uint8), axis=0).shape[0] > 100
    assert float((pixels.min(-1) < 0.95).mean()) > 0.02


class Links(HTMLParser):
    """What a page would load or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "srcset", "data", "poster")]
        self.loaded += [value or "" for name, value in attrs if name == "href" and tag == "link"]


def test_report_stands_alone(result: run.RunResult) -> None:
    text = result.report.read_text()
    page = Links(text)
    assert page.tags.count("img") >= 3
    assert all(source.startswith("data:") for source in page.loaded)
    assert "script" not in page.tags
    assert not re.search(r"url\((?!['\"]?data:)|@import", text)
    for title in ("Pairs against truth", "Series against truth", "Stable ground", "Flags"):
        assert title in text


def test_a_second_call_matches_nothing_again(
    result: run.RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(result.report.parent)
    computed: list[str] = []
    real = store.run_block

    def counted(key: str, *rest: Any, **how: Any) -> dict[str, Any]:
        computed.append(key)
        return real(key, *rest, **how)

    monkeypatch.setattr(store, "run_block", counted)
    folder = result.report.parents[1]
    again = demo(folder, spec=SPEC, progress=False)
    assert computed == []
    assert files(folder / "result") == before
    assert set(again.tables) == set(result.tables)
    # Elsewhere, from nothing: every chunk of every store has the same bytes.
    demo(tmp_path / "other", spec=SPEC, progress=False)
    assert len(computed) == sum(store.status(p)["blocks"] for p in (again.matches, again.velocity, again.series or ""))
    assert files(tmp_path / "other" / "result") == before


def test_another_seed_is_another_world(result: run.RunResult, tmp_path: Path) -> None:
    config = run.load(result.report.parents[1] / "run.yaml")
    assert config.search.aoi == "RGI60-00.00001"
    from ogive.testing.scenes import make_world

    small = WorldSpec(size_km=(1.2, 1.5), n_sentinel2=1, n_landsat=0)
    one, two, same = (make_world(tmp_path / str(k), small, seed=seed) for k, seed in enumerate((0, 1, 0)))
    images = [Path(w.items[0].assets["nir"].href).read_bytes() for w in (one, two, same)]
    assert images[0] == images[2] != images[1]
