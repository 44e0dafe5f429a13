"""The demo: the whole line on a synthetic glacier whose motion is known exactly.

Renders an archive of scenes, searches its STAC catalogue, and runs a `run.yaml` like any user's. Then, because the
truth is known, scores every pair and the series against it.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
import yaml

from . import grid as grids
from . import run as runs
from . import store, validate, view
from .invert import invert
from .testing.plan import WorldSpec
from .testing.scenes import World, make_world

log = logging.getLogger("ogive")

SPEC = WorldSpec(n_sentinel2=26, n_landsat=10, start="2021-09-01", end="2022-12-01")
"""Fifteen months with the change of the Sentinel-2 offset in the middle; about 50 pairs of 10 to 60 days."""


def demo(
    folder: str | Path, *, spec: WorldSpec = SPEC, seed: int = 0, client: Any = None, progress: bool = True
) -> runs.RunResult:
    """Render, run, score, report.

    Parameters
    ----------
    folder : path
        Made if missing: `world/` (scenes and catalogue), `run.yaml`, `result/` (stores, figures, report).
    spec : WorldSpec
        What the synthetic archive contains.
    seed : int
        Seed of everything random.
    client : distributed.Client, optional
    progress : bool

    Returns
    -------
    RunResult
        With the tables "Pairs against truth" and "Series against truth".
    """
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    log.info("rendering %d scenes of a synthetic glacier", spec.n_sentinel2 + spec.n_landsat)
    world = make_world(folder / "world", spec, seed=seed)
    (folder / "run.yaml").write_text(run_file(world))
    config = runs.load(folder / "run.yaml")
    result = runs.run(config, client=client, progress=progress)
    corrected = store.open_velocity(result.velocity)
    assert result.series is not None
    series = store.open_velocity(result.series)
    scores = {
        "Pairs against truth": pair_scores(world, corrected),
        "Series against truth": series_scores(world, series, corrected),
    }
    result = runs.report(config.output, extra=scores)
    where = {"centre line": _centre(world)}
    truth = {"centre line": _true_speed(world, series, where["centre line"])}
    view.plot_series(series, where, pairs=corrected, truth=truth, path=Path(config.output) / "series.png")
    return result


def run_file(world: World) -> str:
    """The run file of the demo, as a user would write it."""
    folder = world.catalog.parent
    x, y = _centre(world)
    content = {
        "title": "ogive demo: a synthetic glacier with known motion",
        "output": "result",
        "search": {
            "source": str(world.catalog),
            "aoi": "RGI60-00.00001",
            "outlines": str(world.outlines),
            "max_cloud": 60,
        },
        "cube": {"buffer": 1000},
        "pairs": {"days": [10, 60]},
        # 500 m/yr over 60 days are 82 m, that is 8 px of 10 m.
        "kernel": {"name": "ncc", "chip": 24, "search": 12, "step": 8},
        "stable": {"ice": str(world.outlines), "rock": str(folder / "rock.geojson")},
        "filters": {"local_median": {}, "correlation": {"minimum": 0.6}},
        "invert": {"every": "30D"},
        "points": {"centre line": [round(x, 1), round(y, 1)]},
    }
    return yaml.safe_dump(content, sort_keys=False)


def pair_scores(world: World, velocity: xr.Dataset) -> pd.DataFrame:
    """Every pair against the exact displacement, on ice and on rock, in pixels of the grid.

    The truth of a pair is the displacement of the particle that is at the cell's centre at date 1.
    """
    ice, metre = world.glacier.ice(grids.geobox_of(velocity)), 10.0
    y, x = velocity["y"].values[:, None], velocity["x"].values[None, :]
    parts: dict[str, list[Any]] = {"ice": [], "rock": []}
    for k in range(velocity.sizes["mid_date"]):
        one = velocity.isel(mid_date=k).compute()
        t1, t2 = (one[f"acquisition_date_img{n}"].values for n in (1, 2))
        true_vy, true_vx = world.glacier.mean_velocity(t1, t2, y, x)
        scale = float(one["date_dt"]) / grids.YEAR_DAYS / metre
        for name, where in (("ice", ice), ("rock", ~ice)):
            columns = [one["vx"].values - true_vx, one["vy"].values - true_vy]
            for v in ("vx", "vy"):
                own = one[f"{v}_error_px"].values
                # A vector that could not be refined has the error of its pair.
                columns.append(np.where(np.isfinite(own), own, float(one[f"{v}_error"])))
            parts[name].append(np.stack([values[where] * scale for values in columns]))
    rows = []
    for name, found in parts.items():
        vx, vy, ex, ey = np.concatenate(found, axis=1)
        rows.append({"ground": name, **_score(validate.against_truth(vx, vy, 0.0, 0.0, error_vx=ex, error_vy=ey))})
    table = pd.DataFrame(rows).round(3)
    table.attrs["units"] = dict.fromkeys(("bias x", "bias y", "RMSE", "NMAD"), "px")
    return table


def series_scores(world: World, series: xr.Dataset, velocity: xr.Dataset) -> pd.DataFrame:
    """The series against the exact mean velocity of its windows, in meter/year; and against the best single pair.

    The best pair is chosen knowing the truth, among those that see at least half of the ice (or rock). A mean over its
    60 days is easier than one over 30, so the inversion is also asked for exactly its days, on exactly its cells.
    """
    ice = world.glacier.ice(grids.geobox_of(series))
    rows = []
    for name, where in (("ice", ice), ("rock", ~ice)):
        rows.append({"ground": name, "result": "series, 30 days", **_score(_against_windows(world, series, where))})
        k, score = _best_pair(world, velocity, where)
        days = [velocity[f"acquisition_date_img{n}"].values[k] for n in (1, 2)]
        seen = np.isfinite(velocity["vx"].isel(mid_date=k).values) & where
        same = invert(velocity, every=days).compute()
        rows.append({"ground": name, "result": "best single pair", **_score(score)})
        rows.append({"ground": name, "result": "series, its days", **_score(_against_windows(world, same, seen))})
    table = pd.DataFrame(rows).round(3)
    table.attrs["units"] = dict.fromkeys(("bias x", "bias y", "RMSE", "NMAD"), "m/yr")
    return table


def _against_windows(world: World, series: xr.Dataset, where: Any) -> dict[str, float]:
    y, x = series["y"].values[:, None], series["x"].values[None, :]
    truth = [world.glacier.window_velocity(b[0], b[1], y, x) for b in series["time_bnds"].values]
    true_vy, true_vx = (np.stack([t[k] for t in truth]) for k in (0, 1))
    errors: dict[str, Any] = {f"error_v{a}": series[f"v{a}_error"].values for a in "xy"}
    return validate.against_truth(series["vx"].values, series["vy"].values, true_vx, true_vy, where=where, **errors)


def _best_pair(world: World, velocity: xr.Dataset, where: Any) -> tuple[int, dict[str, float]]:
    """Position and score of the pair with the least RMSE against its own mean velocity."""
    y, x = velocity["y"].values[:, None], velocity["x"].values[None, :]
    scores = []
    for k in range(velocity.sizes["mid_date"]):
        one = velocity.isel(mid_date=k).compute()
        vy, vx = world.glacier.mean_velocity(
            one["acquisition_date_img1"].values, one["acquisition_date_img2"].values, y, x
        )
        errors: dict[str, Any] = {f"error_v{a}": np.full(where.shape, float(one[f"v{a}_error"])) for a in "xy"}
        scores.append(validate.against_truth(one["vx"].values, one["vy"].values, vx, vy, where=where, **errors))
    widest = max(s["valid"] for s in scores)
    eligible = [k for k, s in enumerate(scores) if s["valid"] >= min(0.5, widest)]
    best = min(eligible, key=lambda k: scores[k]["rmse"])
    return best, scores[best]


def _score(score: dict[str, float]) -> dict[str, float]:
    """Per component; `in 68 %`: share of the truth inside the 68 % interval of the stated error."""
    return {
        "valid": score["valid"],
        "bias x": score["vx_bias"],
        "bias y": score["vy_bias"],
        "RMSE": score["rmse"] / np.sqrt(2),
        "NMAD": (score["vx_nmad"] + score["vy_nmad"]) / 2,
        "in 68 %": score["coverage_68"],
        "in 95 %": score["coverage_95"],
    }


def _centre(world: World) -> tuple[float, float]:
    y, x = world.glacier.centre_line(0.4)
    return float(x), float(y)


def _true_speed(world: World, series: xr.Dataset, point: tuple[float, float]) -> pd.Series:
    t = series["time"].values
    vy, vx = (np.array(c) for c in zip(*(world.glacier.velocity(k, point[1], point[0]) for k in t), strict=True))
    return pd.Series(np.hypot(vx, vy).astype(float).ravel(), index=pd.DatetimeIndex(t))
