"""What a run found, as tables and figures: the body of its report."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.base
import geopandas as gpd
import numpy as np
import pandas as pd
import rioxarray
import xarray as xr
from rasterio.errors import RasterioIOError
from rioxarray.exceptions import NoDataInBounds, OneDimensionalRaster

from . import flags, validate, view
from . import grid as grids
from .errors import ParameterError
from .export import median_valid
from .report import write_report

if TYPE_CHECKING:
    from .run import RunConfig

FILTERS = ("outliers", "local_median", "agreement", "vector_median", "correlation", "speed_limit", "fill", "median")
"""Filters that a run file may name."""


def tables(
    raw: xr.Dataset, corrected: xr.Dataset, stable: xr.DataArray | None, ice: xr.DataArray | None
) -> dict[str, pd.DataFrame]:
    """Figures of a velocity cube.

    Parameters
    ----------
    raw, corrected : xr.Dataset
        The matches, and the same after correction and filters.
    stable, ice : xr.DataArray (y, x) bool, optional

    Returns
    -------
    dict of DataFrame
        "Stable ground" before and after correction (with a mask), "Pairs" one row each, "Flags" share of each reason.
    """
    out: dict[str, pd.DataFrame] = {}
    days = raw["date_dt"].values
    metre = float(abs(raw["x"][1] - raw["x"][0])) / _step(raw)
    pairs = pd.DataFrame(
        {
            "pair": raw["pair_id"].values,
            "date 1": pd.DatetimeIndex(raw["acquisition_date_img1"].values).strftime("%Y-%m-%d"),
            "date 2": pd.DatetimeIndex(raw["acquisition_date_img2"].values).strftime("%Y-%m-%d"),
            "days": np.round(days, 1),
            "sensor": [
                f"{m}{s}" for m, s in zip(raw["mission_img1"].values, raw["satellite_img1"].values, strict=True)
            ],
        }
    )
    valid = corrected["vx"].notnull()
    for name, mask in (("on ice", ice), ("on stable ground", stable)):
        if mask is not None and bool(mask.any()):
            pairs[f"valid {name}"] = (valid & mask).sum(("y", "x")).values / int(mask.sum())
    if stable is not None:
        before, after = (validate.static_ground(v, stable) for v in (raw, corrected))
        for axis in ("x", "y"):
            pairs[f"shift v{axis}"] = corrected[f"v{axis}_stable_shift"].values
        scale = days / 365.0 / metre
        rows = []
        for name, t in (("before correction", before), ("after correction", after)):
            row: dict[str, Any] = {"stable ground": name, "vectors": int(t["count"].sum())}
            for c in ("vx_median", "vy_median"):
                # Over several pairs the size of the shift counts, not its mean.
                row[c] = float(t[c].iloc[0]) if len(t) == 1 else _median(t[c].abs())
            for c in ("vx_nmad", "vy_nmad"):
                row[c] = _median(t[c])
                row[f"{c} px"] = _median(t[c] * scale)
            rows.append(row)
        ground = pd.DataFrame(rows)
        ground.attrs["units"] = dict.fromkeys(("vx_median", "vy_median", "vx_nmad", "vy_nmad"), "m/yr")
        out["Stable ground"] = ground
    pairs.attrs["units"] = {"days": "d", "shift vx": "m/yr", "shift vy": "m/yr"}
    out["Pairs"] = pairs
    share = dask.base.compute(*(flags.has(corrected["flag"], reason).mean().data for reason in flags.MEANINGS))
    reasons = pd.DataFrame({"reason": list(flags.MEANINGS.values()), "share of cells": [float(v) for v in share]})
    out["Flags"] = reasons[reasons["share of cells"] > 0].reset_index(drop=True)
    return out


def _median(values: "pd.Series[float]") -> float:
    """NaN where no pair has a vector there."""
    return float(values.median()) if values.notna().any() else math.nan


def write(
    output: Path, config: "RunConfig", raw: xr.Dataset, corrected: xr.Dataset, series: xr.Dataset | None,
    found: dict[str, pd.DataFrame],
) -> Path:  # fmt: skip
    """Draw the figures, save map and series as PNG beside the report, and write the report.

    Returns
    -------
    Path
        `report.html` in the run's folder.
    """
    outline = None
    if config.stable.ice is not None:
        outline = gpd.read_file(config.stable.ice)
        outline = outline.set_crs(config.stable.crs) if outline.crs is None else outline
    where = config.points or {"fastest well-measured cell": fastest(corrected)}
    shown = series if series is not None else corrected
    single = shown.sizes["mid_date" if series is None else "time"] == 1
    under = None if config.background is None else background(config.background, corrected)
    figures = {
        "Surface speed" if single else "Surface speed, median over time": view.speed_map(
            shown, outlines=outline, background=under, path=output / "map.png"
        ),
        "Why vectors are missing" if single else "Why vectors are missing, most frequent reason": view.flag_map(
            corrected
        ),
    }
    if not single:
        figures["Pairs in time"] = view.pair_network(raw)
    if series is not None:
        figures = {
            "Speed through time": view.plot_series(series, where, pairs=corrected, path=output / "series.png"),
            **figures,
        }
    if config.profile:
        figure, values = view.speed_profile(corrected, config.profile, path=output / "profile.png")
        figures["Speed along the profile"] = figure
        step = max(1, len(values) // 12)
        profile = values.iloc[::step].reset_index(drop=True)
        profile.attrs["units"] = {c: "m" if c in ("distance", "x", "y") else "m/yr" for c in profile.columns}
        found["Profile"] = profile
    provenance = json.loads(raw.attrs["provenance"])
    return write_report(
        output / "report.html", title=config.title, summary=sentences(raw, corrected, series, found),
        tables=found, figures=figures, provenance={**provenance, "run": config.model_dump()},
    )  # fmt: skip


def background(path: str, grid: xr.Dataset) -> xr.DataArray:
    """A raster for the map, cut to the grid with a margin, in the grid's coordinate system.

    Raises
    ------
    ParameterError
        No raster at that path, or it does not reach the grid.
    """
    geobox = grids.geobox_of(grid)
    left, bottom, right, top = geobox.boundingbox
    margin = 0.05 * max(right - left, top - bottom)
    try:
        raster = rioxarray.open_rasterio(path, masked=True)
        assert isinstance(raster, xr.DataArray)
        near = raster.rio.clip_box(left - margin, bottom - margin, right + margin, top + margin, crs=str(geobox.crs))
        image: xr.DataArray = near.isel(band=0, drop=True)
        return image if near.rio.crs == str(geobox.crs) else image.rio.reproject(str(geobox.crs))
    except (RasterioIOError, NoDataInBounds, OneDimensionalRaster) as error:
        raise ParameterError(
            "background", rule="must be a raster that reaches the area", value=f"{path}: {error}"
        ) from None


def sentences(
    raw: xr.Dataset, corrected: xr.Dataset, series: xr.Dataset | None, found: dict[str, pd.DataFrame]
) -> list[str]:
    """The findings, one sentence each; `found` are the tables of `tables`."""
    first, last = (pd.Timestamp(f(raw[f"acquisition_date_img{k}"].values)) for f, k in ((np.min, 1), (np.max, 2)))
    scenes = set(raw["image_id1"].values) | set(raw["image_id2"].values)
    cell = abs(float(raw["x"][1] - raw["x"][0]))
    valid = float(np.isfinite(corrected["vx"]).mean())
    count = raw.sizes["mid_date"]
    out = [
        f"{count} pair{'s' if count > 1 else ''} of {len(scenes)} scenes from {first:%Y-%m-%d} to {last:%Y-%m-%d}, "
        f"{raw.sizes['y']} x {raw.sizes['x']} cells of {cell:.0f} m.",
        f"{100 * valid:.1f} % of the vectors are valid after correction and filters; every other one has a reason.",
    ]
    if "valid on ice" in found["Pairs"]:
        out.append(f"On ice {100 * float(found['Pairs']['valid on ice'].mean()):.1f} % of them are valid.")
    if "Stable ground" in found:
        before, after = (row for _, row in found["Stable ground"].iterrows())
        over = " (median over the pairs)" if count > 1 else ""
        out.append(
            f"On stable ground the medians of vx and vy are off zero by {abs(before.vx_median):.1f} and "
            f"{abs(before.vy_median):.1f} m/yr before the correction{over}, by {abs(after.vx_median):.1f} and "
            f"{abs(after.vy_median):.1f} m/yr after it; the NMAD that remains is {after.vx_nmad:.1f} and "
            f"{after.vy_nmad:.1f} m/yr, that is {after['vx_nmad px']:.3f} and {after['vy_nmad px']:.3f} px."
        )
    if series is not None:
        good = np.isfinite(series["v"])
        out.append(
            f"The series has {series.sizes['time']} windows; {100 * float(good.mean()):.1f} % of its values are valid, "
            f"with a mean error of {float(series['vx_error'].where(good).mean()):.1f} m/yr per component."
        )
    return out


def fastest(velocity: xr.Dataset) -> tuple[float, float]:
    """A telling place for a series: the fastest cell among those measured at least as often as nine tenths of all."""
    vx, vy = (median_valid(velocity[n].transpose("y", "x", "mid_date").values) for n in ("vx", "vy"))
    count = velocity["vx"].notnull().sum("mid_date").values
    often = count >= max(1, np.quantile(count, 0.9))
    speed = np.where(often & np.isfinite(vx + vy), np.hypot(vx, vy), -1.0)
    # A high quantile, not the maximum: the very fastest cell is the one that is wrong.
    target = np.quantile(speed[speed >= 0], 0.98) if (speed >= 0).any() else 0.0
    i, j = np.unravel_index(int(np.abs(speed - target).argmin()), speed.shape)
    return float(velocity["x"][j]), float(velocity["y"][i])


def _step(velocity: xr.Dataset) -> float:
    """Grid step [px], from the provenance."""
    return float(json.loads(velocity.attrs["provenance"])["kernel"].get("step", 1))
