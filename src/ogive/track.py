"""Cube and pairs to a lazy velocity cube: pixels become meter/year here, and only here."""

import json
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr

from . import blocks as block_layer
from . import flags
from . import grid as grids
from .correct import modelled_error
from .errors import GridError, PairError
from .kernels import NCC, Custom, Kernel


def track(
    cube: xr.Dataset,
    pairs: pd.DataFrame,
    kernel: Kernel | Callable[..., Any] | None = None,
    *,
    tile: int | None = None,
    batch: int | None = None,
) -> xr.Dataset:
    """Match the pairs of a cube; lazy, nothing is read before `write` or `compute`.

    Parameters
    ----------
    cube : xr.Dataset
        From `open_cube`.
    pairs : pd.DataFrame
        From `make_pairs(cube)`.
    kernel : Kernel or callable, optional
        Default `NCC()`. A plain function is wrapped in `ogive.kernels.Custom` with its defaults.
    tile, batch : int, optional
        Cells along a block's side, pairs in a block. They change speed and memory, never the result.

    Returns
    -------
    xr.Dataset
        Dimensions (mid_date, y, x) with ITS_LIVE names: `vx`, `vy`, `v` [meter/year, year of 365 days], `corr`, `snr`,
        `peak_ratio`, `chip_size_width`, `chip_size_height` [m], `interp_mask`, `flag`; per pair the dates, sensors and
        the modelled error `vx_error`, `vy_error`.

    Raises
    ------
    PairError
        No pairs, or pairs that were made for another cube.
    ParameterError
        The chip does not fit into the image.
    """
    kernel = NCC() if kernel is None else kernel
    if not isinstance(kernel, Kernel):
        kernel = Custom(kernel)
    if len(pairs) == 0:
        raise PairError("pairs", rule="at least one pair is needed", value=0, fix="relax the rules of make_pairs")
    if int(pairs[["i1", "i2"]].to_numpy().max()) >= cube.sizes["time"]:
        raise PairError(
            "pairs", rule=f"positions must lie in the cube's {cube.sizes['time']} scenes",
            value=int(pairs[["i1", "i2"]].to_numpy().max()), fix="make the pairs from this cube",
        )  # fmt: skip
    if not np.array_equal(cube["time"].values[pairs["i1"].to_numpy()], pairs["t1"].to_numpy("datetime64[ns]")):
        raise PairError("pairs", rule="must be made from this cube (dates differ)", fix="make_pairs(cube, ...)")
    geobox = grids.geobox_of(cube)
    if not np.isclose(abs(geobox.resolution.x), abs(geobox.resolution.y)):
        raise GridError("cube", rule="pixels must be square", value=tuple(geobox.resolution.xy))
    blocks = block_layer.plan(cube, pairs, kernel, tile, batch)
    arrays = block_layer.map_overlapping(cube, pairs, kernel, blocks)
    return _label(arrays, cube, pairs, kernel, geobox, blocks)


def _label(
    arrays: dict[str, da.Array], cube: xr.Dataset, pairs: pd.DataFrame, kernel: Kernel, geobox: Any, blocks: Any
) -> xr.Dataset:
    metre = abs(geobox.resolution.x)
    days = pairs["date_dt"].to_numpy()
    # Pixels per pair to meter per year; float32 once, so that every block multiplies by the same number.
    factor = (metre * grids.YEAR_DAYS / days).astype(np.float32)[:, None, None]
    factor = da.from_array(factor, chunks=(blocks.chunks[0], 1, 1))
    vx, vy = arrays["dx"] * factor, arrays["dy"] * -factor
    dims = ("mid_date", "y", "x")
    size = np.uint16(min(65535, round(kernel.chip * metre)))
    shape, chunks = vx.shape, vx.chunks
    data = {
        "vx": vx,
        "vy": vy,
        "v": da.hypot(vx, vy),
        "corr": arrays["corr"],
        "snr": arrays["snr"],
        "peak_ratio": arrays["peak_ratio"],
        "chip_size_width": da.full(shape, size, dtype=np.uint16, chunks=chunks),
        "chip_size_height": da.full(shape, size, dtype=np.uint16, chunks=chunks),
        "interp_mask": da.zeros(shape, dtype=np.uint8, chunks=chunks),
        "flag": arrays["flag"],
    }
    error = modelled_error(days, metre).astype(np.float32)
    output = grids.coarsen(geobox, kernel.step)
    velocity = xr.Dataset(
        {
            name: xr.Variable(dims, array, {**ATTRIBUTES[name], "grid_mapping": "mapping"})
            for name, array in data.items()
        }
        | {name: ("mid_date", error, ATTRIBUTES[name]) for name in ("vx_error", "vy_error")},
        coords={
            **_pair_coordinates(cube, pairs),
            **grids.coordinates(output),
            "mapping": grids.mapping(output),
        },
        attrs=_attributes(cube, pairs, kernel, output),
    )
    velocity["flag"].attrs |= flags.attributes()
    return velocity


def _pair_coordinates(cube: xr.Dataset, pairs: pd.DataFrame) -> dict[str, Any]:
    t1, t2 = (pairs[k].to_numpy("datetime64[ns]") for k in ("t1", "t2"))
    # Whole microseconds, as in the store: half of an odd number of them would be none.
    centre = (t1 + (t2 - t1) // 2).astype("datetime64[us]").astype("datetime64[ns]")
    # ITS_LIVE adds the date of image 1 to mid_date as YYMMDD microseconds: almost unique, and it tells date 1.
    stamp = pd.DatetimeIndex(t1)
    token = (stamp.year % 100 * 10000 + stamp.month * 100 + stamp.day).to_numpy().astype("timedelta64[us]")
    coordinates: dict[str, Any] = {
        "mid_date": centre + token,
        "date_center": centre,
        "acquisition_date_img1": t1,
        "acquisition_date_img2": t2,
        "date_dt": pairs["date_dt"].to_numpy(np.float32),
        "pair_id": pairs["pair_id"].to_numpy(np.int64),
    }
    for k, position in (("1", "i1"), ("2", "i2")):
        at = pairs[position].to_numpy()
        coordinates[f"image_id{k}"] = cube["scene_id"].values[at]
        for ours, theirs in (("mission_code", "mission"), ("satellite_code", "satellite"), ("sensor_code", "sensor")):
            coordinates[f"{theirs}_img{k}"] = cube[ours].values[at]
    return {
        name: xr.Variable("mid_date", values, PAIR_ATTRIBUTES.get(name, {})) for name, values in coordinates.items()
    }


def _attributes(cube: xr.Dataset, pairs: pd.DataFrame, kernel: Kernel, output: Any) -> dict[str, Any]:
    described: Any = kernel
    # A user's function has no parameters to list, only a name.
    parameters = {"function": repr(kernel)} if isinstance(kernel, Custom) else asdict(described)
    used = np.unique(pairs[["i1", "i2"]].to_numpy())
    provenance = {
        "versions": {name: version(name) for name in ("ogive", "numpy", "numba", "xarray", "zarr")},
        "kernel": {"name": type(kernel).__name__, **parameters},
        "pairs": pairs.attrs.get("rules", {}),
        "cube": {**cube.attrs, "pixel_size": abs(output.resolution.x) / kernel.step},
        "items": [str(s) for s in cube["scene_id"].values[used]],
        "resampled": [str(s) for s in cube["scene_id"].values[used][cube["resampled"].values[used]]],
    }
    box = output.geographic_extent.boundingbox
    return {
        "Conventions": "CF-1.11",
        "title": "Glacier surface velocity from pairs of satellite images",
        "kind": "velocity",
        "schema_version": grids.SCHEMA_VERSION,
        "source": "optical feature tracking",
        "GDAL_AREA_OR_POINT": "Area",
        "projection": str(output.crs.epsg),
        "latitude": (box.bottom + box.top) / 2,
        "longitude": (box.left + box.right) / 2,
        "time_standard_img1": "UTC",
        "time_standard_img2": "UTC",
        "year_length_days": grids.YEAR_DAYS,
        "provenance": json.dumps(provenance, sort_keys=True, default=str),
    }


ATTRIBUTES: dict[str, dict[str, Any]] = {
    "vx": {"units": "meter/year", "standard_name": "land_ice_surface_x_velocity", "description": "velocity along x"},
    "vy": {"units": "meter/year", "standard_name": "land_ice_surface_y_velocity", "description": "velocity along y"},
    "v": {"units": "meter/year", "standard_name": "land_ice_surface_velocity", "description": "magnitude of (vx, vy)"},
    "corr": {"units": "1", "long_name": "correlation at the peak"},
    "snr": {"units": "1", "long_name": "correlation peak divided by the mean absolute correlation"},
    "peak_ratio": {"units": "1", "long_name": "second correlation peak divided by the first"},
    "chip_size_width": {"units": "m", "long_name": "width of the matched chip"},
    "chip_size_height": {"units": "m", "long_name": "height of the matched chip"},
    "interp_mask": {
        "long_name": "1 = interpolated",
        "flag_values": np.array([0, 1], np.uint8),
        "flag_meanings": "measured interpolated",
    },
    "flag": {},
    "vx_error": {
        "units": "meter/year",
        "standard_name": "vx_error",
        "description": "1-sigma error of one vector of the pair; modelled from pixel size and time span until "
        "correct.stable_ground replaces it",
    },
    "vy_error": {
        "units": "meter/year",
        "standard_name": "vy_error",
        "description": "as vx_error, for vy",
    },
}
PAIR_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "mid_date": {"long_name": "middle of the pair plus the date of image 1 as YYMMDD microseconds; not unique"},
    "date_center": {"long_name": "middle of the pair"},
    # No CF unit here on purpose: "days" would be decoded to a timedelta by some readers and not by others.
    "date_dt": {"long_name": "time between the images in days"},
    "pair_id": {"long_name": "stable number of the pair"},
    "acquisition_date_img1": {"long_name": "acquisition date and time of image 1, UTC"},
    "acquisition_date_img2": {"long_name": "acquisition date and time of image 2, UTC"},
}
