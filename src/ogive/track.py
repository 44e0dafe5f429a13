"""Cube and pairs to a lazy velocity cube: pixels become meter/year here, and only here."""

import json
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from . import blocks as block_layer
from . import flags
from . import grid as grids
from .correct import modelled_error
from .errors import GridError, PairError, ParameterError
from .kernels import GRADIENT, KERNELS, NCC, Custom, Guided, Kernel


def track(
    cube: xr.Dataset,
    pairs: pd.DataFrame,
    kernel: Kernel | Callable[..., Any] | None = None,
    *,
    prior: xr.Dataset | tuple[float, float] | None = None,
    stack: str | Sequence[Sequence[int]] | None = None,
    unreadable: str = "flag",
    tile: int | None = None,
    batch: int | None = None,
    offset: int = 0,
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
    prior : xr.Dataset or (float, float), optional
        Velocity to search round [meter/year]: `vx` and `vy` on dims (y, x) in the cube's coordinate system, or two
        numbers for everywhere. `NCC.search` is then the largest difference from it.
    stack : str or list of lists of int, optional
        Ensemble correlation: average the correlation surfaces of several pairs before the peak is looked for. "30D"
        stacks the pairs whose middles lie in the same 30 days and whose time spans differ by at most 10 %; lists give
        the rows of `pairs` of each stack. One layer of the result is then one stack: its dates are those of the first
        image 1 and last image 2, `date_dt` is the mean time span, and `stack_count` counts its pairs.
    unreadable : {"flag", "fail"}
        What becomes of pairs of a scene that can never be read (missing, damaged, refused; see docs/reading.md):
        "flag" marks them `scene_unreadable` and warns, "fail" ends their blocks with the error. A cube in Dask chunks
        always fails. A fault that may pass always ends the block, and the next `write` tries it again.
    tile, batch : int, optional
        Cells along a block's side, pairs in a block. They change speed and memory, never the result.
    offset : int
        Pairs that the first block lacks, because a store to which `append` adds these pairs holds them already.

    Returns
    -------
    xr.Dataset
        Dimensions (mid_date, y, x) with ITS_LIVE names: `vx`, `vy`, `v` [meter/year, year of 365 days], `corr`, `snr`,
        `peak_ratio`, `valid_fraction`, `chip_size_width`, `chip_size_height` [m], `interp_mask`, `flag`, the error of
        every vector `vx_error_px`, `vy_error_px` and, from a kernel that fits it, the strain rate `exx`, `eyy`, `exy`
        [1/year]; per pair the dates, sensors and the modelled error `vx_error`, `vy_error`.

    Raises
    ------
    PairError
        No pairs, or pairs that were made for another cube.
    ParameterError
        The chip does not fit into the image, a prior or stack is asked of a kernel that knows none, or several bands of
        one that compares one, `unreadable` is neither "flag" nor "fail", or the offset is no part of a batch.
    GridError
        Pixels are not square, or the prior is in another coordinate system.

    Examples
    --------
    >>> stack_rows(pd.DataFrame({"t1": pd.to_datetime(["2020-01-08", "2020-01-13", "2020-03-01"]),
    ...                          "date_dt": [10.0, 10.0, 10.0]}), "30D")
    [[0, 1], [2]]
    """
    if kernel is None:
        kernel = NCC()
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
    if (prior is not None or stack is not None) and not isinstance(kernel, Guided):
        raise ParameterError(
            "kernel", rule="must know priors and stacks", value=type(kernel).__name__, fix="kernel=NCC(...)"
        )
    if prior is not None and stack is not None:
        raise ParameterError("prior and stack", rule="exclude each other", fix="leave one out")
    if unreadable not in ("flag", "fail"):
        raise ParameterError("unreadable", rule='must be "flag" or "fail"', value=repr(unreadable), fix='use "flag"')
    rows = [[k] for k in range(len(pairs))] if stack is None else stack_rows(pairs, stack)
    scenes = pairs[["i1", "i2"]].to_numpy(np.int64)
    around = None
    if prior is not None:
        kernel, around = _prior(prior, pairs, kernel, geobox)
    assert isinstance(kernel, Kernel)
    blocks = block_layer.plan(cube, len(rows), kernel, tile, batch)
    if not 0 <= offset < blocks.batch:
        raise ParameterError("offset", rule=f"must lie in 0 ... {blocks.batch - 1}, below the batch", value=offset)
    blocks = replace(blocks, offset=offset)
    arrays = block_layer.map_overlapping(cube, [scenes[row] for row in rows], kernel, blocks, around, unreadable)
    said: dict[str, Any] = {"unreadable": unreadable}
    if "band" in cube.dims:
        said["bands"] = [str(name) for name in cube["band"].values]
    if stack is not None:
        said["stack"] = stack if isinstance(stack, str) else rows
    if around is not None:
        said["prior_crc"] = zlib.crc32(around.rate.tobytes())
    return _label(arrays, cube, _layers(pairs, rows), kernel, geobox, blocks, said)


def stack_rows(pairs: pd.DataFrame, stack: str | Sequence[Sequence[int]]) -> list[list[int]]:
    """Which rows of `pairs` are stacked together.

    Parameters
    ----------
    pairs : pd.DataFrame
        `t1`, `date_dt`.
    stack : str or list of lists of int
        As in `track`.

    Raises
    ------
    ParameterError
        No time span, an empty list, or rows that do not exist.
    """
    if not isinstance(stack, str):
        rows = [list(map(int, group)) for group in stack]
        if not rows or any(not group or min(group) < 0 or max(group) >= len(pairs) for group in rows):
            raise ParameterError("stack", rule=f"must list rows 0 ... {len(pairs) - 1} of the pairs", value=stack)
        return rows
    try:
        window = pd.Timedelta(stack)
    except ValueError:
        window = pd.Timedelta(0)
    if not window > pd.Timedelta(0):
        raise ParameterError("stack", rule="must be a time span", value=repr(stack), fix="'30D'")
    days = pairs["date_dt"].to_numpy(np.float64)
    middle = pairs["t1"].to_numpy("datetime64[ns]") + (days * 43200e9).astype("timedelta64[ns]")
    slot = (middle - np.datetime64(0, "ns")) // window.to_timedelta64()
    groups: list[list[int]] = []
    for k in np.lexsort((days, slot)):
        group = groups[-1] if groups else []
        # Displacement grows with time: spans within 10 % of the shortest keep a peak of 5 px within half a pixel.
        if group and slot[group[0]] == slot[k] and days[k] <= STACK_SPANS * days[group[0]]:
            group.append(int(k))
        else:
            groups.append([int(k)])
    return [sorted(group) for group in groups]


def _layers(pairs: pd.DataFrame, rows: list[list[int]]) -> pd.DataFrame:
    """One row for each layer of the output: a pair as it is, or a stack from its first to its last image."""
    first = pairs.iloc[[row[0] for row in rows]].reset_index(drop=True)
    t1, t2 = pairs["t1"].to_numpy("datetime64[ns]"), pairs["t2"].to_numpy("datetime64[ns]")
    one, two = ([int(f(t[row])) for row in rows] for f, t in ((np.argmin, t1), (np.argmax, t2)))
    for names, at in ((("i1", "t1"), one), (("i2", "t2"), two)):
        for name in names:
            first[name] = [pairs[name].iloc[row[k]] for row, k in zip(rows, at, strict=True)]
    first["date_dt"] = [pairs["date_dt"].iloc[row].mean() for row in rows]
    first["stack_count"] = [len(row) for row in rows]
    first.attrs = pairs.attrs
    return first


def _prior(
    prior: xr.Dataset | tuple[float, float], pairs: pd.DataFrame, kernel: Any, geobox: Any
) -> tuple[Any, block_layer.Prior]:
    """The kernel that knows how far the prior goes, and the prior as displacement of each cell and pair."""
    output = grids.coarsen(geobox, kernel.step)
    if isinstance(prior, xr.Dataset):
        if grids.geobox_of(prior).crs != geobox.crs:
            raise GridError(
                "prior", rule=f"must be in the cube's coordinate system, EPSG:{geobox.crs.epsg}",
                value=str(grids.geobox_of(prior).crs), fix="reproject it, components and grid",
            )  # fmt: skip
        where = {name: np.asarray(values) for name, values in grids.coordinates(output).items() if name in ("y", "x")}
        vx, vy = (_on_cells(prior[name], where) for name in ("vx", "vy"))
    else:
        vx, vy = (np.full(output.shape, value, np.float32) for value in prior)
    metre = abs(geobox.resolution.x)
    factors = pairs["date_dt"].to_numpy(np.float64) / (grids.YEAR_DAYS * metre)
    rate = np.stack([-vy, vx])
    farthest = float(np.nanmax(np.abs(rate), initial=0.0)) * float(np.abs(factors).max())
    if not farthest < min(geobox.shape):
        raise ParameterError(
            "prior", rule=f"must stay inside the image of {geobox.shape[0]} x {geobox.shape[1]} px",
            value=f"{farthest:.0f} px between the images of a pair", fix="give meter/year, or leave out long pairs",
        )  # fmt: skip
    kernel = replace(kernel, prior=math.ceil(farthest))
    rate = np.pad(rate, ((0, 0), *[(kernel.margin, kernel.margin)] * 2), mode="edge")
    return kernel, block_layer.Prior(rate, factors, kernel.margin)


def _on_cells(values: xr.DataArray, where: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    """A map at the cells: between its values, or, beside gaps and edges, the nearest one."""
    values = values.transpose("y", "x")
    between, nearest = (values.interp(where, method=method).to_numpy() for method in ("linear", "nearest"))
    return np.where(np.isfinite(between), between, nearest).astype(np.float32)


def _label(
    arrays: dict[str, da.Array],
    cube: xr.Dataset,
    pairs: pd.DataFrame,
    kernel: Kernel,
    geobox: Any,
    blocks: Any,
    said: dict[str, Any],
) -> xr.Dataset:
    metre = abs(geobox.resolution.x)
    days = pairs["date_dt"].to_numpy()
    # Pixels per pair to meter per year; float32 once, so that every block multiplies by the same number.
    factor = (metre * grids.YEAR_DAYS / days).astype(np.float32)[:, None, None]
    factor = da.from_array(factor, chunks=(blocks.chunks[0], 1, 1))
    vx, vy = arrays["dx"] * factor, arrays["dy"] * -factor
    dims = ("mid_date", "y", "x")
    size = da.minimum(da.rint(arrays["chip"] * np.float32(metre)), 65535).astype(np.uint16)
    per_year = da.from_array(
        (grids.YEAR_DAYS / days).astype(np.float32)[:, None, None], chunks=(blocks.chunks[0], 1, 1)
    )
    data = {
        "vx": vx,
        "vy": vy,
        "v": da.hypot(vx, vy),
        "corr": arrays["corr"],
        "snr": arrays["snr"],
        "peak_ratio": arrays["peak_ratio"],
        "valid_fraction": arrays["valid_fraction"],
        "vx_error_px": arrays["dx_error"] * factor,
        "vy_error_px": arrays["dy_error"] * factor,
        "chip_size_width": size,
        "chip_size_height": size,
        # A dense kernel may keep what its neighbours say.
        "interp_mask": (arrays["flag"] & np.uint16(flags.INTERPOLATED) != 0).astype(np.uint8),
        "flag": arrays["flag"],
    }
    if set(GRADIENT) <= set(kernel.extras):
        # Both axes along y point the other way on the map.
        data |= {"exx": arrays["dxdx"] * per_year, "eyy": arrays["dydy"] * per_year}
        data["exy"] = (arrays["dxdy"] + arrays["dydx"]) * (per_year * np.float32(-0.5))
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
        attrs=_attributes(cube, pairs, kernel, output, said),
    )
    velocity["flag"].attrs |= flags.attributes()
    if "stack" in said:
        count = pairs["stack_count"].to_numpy(np.int32)
        velocity["stack_count"] = ("mid_date", count, {"long_name": "pairs whose correlation surfaces were averaged"})
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


def _attributes(
    cube: xr.Dataset, pairs: pd.DataFrame, kernel: Kernel, output: Any, said: dict[str, Any]
) -> dict[str, Any]:
    used = np.unique(pairs[["i1", "i2"]].to_numpy())
    provenance = {
        "versions": {name: version(name) for name in ("ogive", "numpy", "numba", "xarray", "zarr")},
        "kernel": described(kernel),
        **said,
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


def described(kernel: Kernel) -> dict[str, Any]:
    """Name and parameters of a kernel, as provenance notes them.

    Examples
    --------
    >>> described(NCC(chip=24))["name"], described(NCC(chip=24))["chip"]
    ('ncc', 24)
    """
    made: Any = kernel
    # A user's function has no parameters to list, only a name.
    parameters = _function(kernel) if isinstance(kernel, Custom) else asdict(made)
    name = next((key for key, cls in KERNELS.items() if cls is type(kernel)), type(kernel).__name__)
    # Of a learned one: which weights.
    return {"name": name, **parameters, **getattr(kernel, "origin", {})}


def _function(kernel: Custom) -> dict[str, Any]:
    """A user's function by its name: its place in memory would make every process another kernel."""
    function = kernel.function
    name = getattr(function, "__qualname__", type(function).__qualname__)
    module = getattr(function, "__module__", type(function).__module__)
    return {"function": f"{module}.{name}", "step": kernel.step, "chip": kernel.chip, "margin": kernel.margin}


STACK_SPANS = 1.1
"""Longest / shortest time span of the pairs of one stack."""
ATTRIBUTES: dict[str, dict[str, Any]] = {
    "vx": {"units": "meter/year", "standard_name": "land_ice_surface_x_velocity", "description": "velocity along x"},
    "vy": {"units": "meter/year", "standard_name": "land_ice_surface_y_velocity", "description": "velocity along y"},
    "v": {"units": "meter/year", "standard_name": "land_ice_surface_velocity", "description": "magnitude of (vx, vy)"},
    "corr": {"units": "1", "long_name": "correlation at the peak"},
    "snr": {"units": "1", "long_name": "correlation peak divided by the mean absolute correlation"},
    "peak_ratio": {"units": "1", "long_name": "second correlation peak divided by the first"},
    "valid_fraction": {"units": "1", "long_name": "share of the chip's pixels in image 1 that are not masked"},
    "vx_error_px": {
        "units": "meter/year",
        "description": "1-sigma error of this vector along x, from the residual of the match and the texture of the "
        "chip; the shift of the whole pair is not in it. NaN where the match was not refined",
    },
    "vy_error_px": {"units": "meter/year", "description": "as vx_error_px, along y"},
    "exx": {"units": "1/year", "long_name": "strain rate along x, d(vx)/dx"},
    "eyy": {"units": "1/year", "long_name": "strain rate along y, d(vy)/dy"},
    "exy": {"units": "1/year", "long_name": "shear strain rate, (d(vx)/dy + d(vy)/dx) / 2"},
    "chip_size_width": {
        "units": "m",
        "long_name": "width of the matched chip, or effective resolution of dense flow; 0 = none",
    },
    "chip_size_height": {
        "units": "m",
        "long_name": "height of the matched chip, or effective resolution of dense flow; 0 = none",
    },
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
