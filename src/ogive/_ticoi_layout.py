"""The layout that TICOI's loader for cubes of unknown authors opens: names, dates, sensors, attributes.

float32 velocities, because that loader deletes every value with a component of exactly 0; such a component is written
as 1 mm/yr. Layout as read by TICOI 0.1.2: Charrier, L., et al. (2022), doi:10.1109/TGRS.2021.3099214.
"""

from typing import Any

import numpy as np
import xarray as xr

from . import flags, grid
from .errors import ParameterError

AT_REST = np.float32(1e-3)
"""Stands for a component of 0 [meter/year]."""
CHUNK = (20000, 10, 10)
_BLOCK_BYTES = 64 * 2**20
_ERRORS = {"errorx": "vx_error", "errory": "vy_error"}


def layout(dataset: xr.Dataset, author: str) -> tuple[xr.Dataset, dict[str, dict[str, Any]]]:
    """A velocity or a series under TICOI's names, lazy, and chunk sizes for `to_zarr` and `to_netcdf`.

    Raises
    ------
    ParameterError
        No pairs or windows, or a missing variable.
    """
    series = "time" in dataset.dims
    dates = ("time_bnds",) if series else ("acquisition_date_img1", "acquisition_date_img2")
    missing = [n for n in ("vx", "vy", *_ERRORS.values(), *dates) if n not in dataset.variables]
    dim = "time" if series else "mid_date"
    if missing or dataset.sizes.get(dim, 0) < 1:
        rule = f"needs {missing}" if missing else f"needs at least one entry on {dim}"
        raise ParameterError("dataset", rule=rule, value=dict(dataset.sizes), fix="pass a velocity or a series")
    geobox = grid.geobox_of(dataset)
    count = dataset.sizes[dim]
    side = max(1, int((_BLOCK_BYTES / (4 * count)) ** 0.5) // CHUNK[1]) * CHUNK[1]
    blocks = {"mid_date": -1, "y": side, "x": side}
    rate = {"units": "m/y", "grid_mapping": "mapping"}
    good = dataset["vx"].notnull() & dataset["vy"].notnull()
    if "flag" in dataset:
        good &= ~flags.invalid(dataset["flag"])
    cubes: dict[str, xr.DataArray] = {}
    for name in ("vx", "vy"):
        values = dataset[name].where(dataset[name] != 0, AT_REST).where(good)
        cubes[name] = values.assign_attrs(standard_name=f"{name[1]}_velocity")
    cubes |= {name: dataset[given] for name, given in _ERRORS.items()}
    out: dict[str, Any] = {}
    for name, cube in cubes.items():
        variable = cube.variable.transpose(dim, ...).astype(np.float32)
        names = ("mid_date", *map(str, variable.dims[1:]))
        data = xr.Variable(names, variable.data, {**cube.attrs, **rate})
        data.attrs.pop("coordinates", None)
        out[name] = data.chunk({d: blocks[d] for d in names}) if data.ndim == 3 else data
    if series:
        one, two = (dataset["time_bnds"].values[:, k] for k in (0, 1))
        middle = one + (two - one) // 2
        sensor = np.full(count, "series")
    else:
        one, two = (dataset[n].values for n in dates)
        middle = dataset["mid_date"].values if "mid_date" in dataset.coords else one + (two - one) // 2
        codes = [
            dataset[f"{k}_img1"].values.astype(object).astype(str)
            for k in ("mission", "satellite")
            if f"{k}_img1" in dataset
        ]
        sensor = np.strings.add(*codes) if len(codes) == 2 else np.full(count, "Unknown")
    given = (
        dataset["source"].values.astype(object).astype(str) if "source" in dataset.coords else np.full(count, "ogive")
    )
    out |= {"date1": ("mid_date", one), "date2": ("mid_date", two)}
    out |= {"sensor": ("mid_date", sensor), "source": ("mid_date", given)}
    result = xr.Dataset(out, {"mid_date": middle, **grid.coordinates(geobox)})
    result["mapping"] = grid.mapping(geobox)
    result.attrs = {
        "Conventions": "CF-1.8",
        "title": str(dataset.attrs.get("title", "Glacier surface velocity")),
        "author": author,
        "source": ", ".join(sorted(set(given.tolist()))),
        "proj4": str(result["mapping"].attrs["proj4text"]),
        "provenance": str(dataset.attrs.get("provenance", "{}")),
    }
    return result, _encoding(result)


def _encoding(out: xr.Dataset) -> dict[str, dict[str, Any]]:
    encoding: dict[str, dict[str, Any]] = {}
    for name in map(str, out.variables):
        variable = out[name].variable
        code: dict[str, Any] = {"_FillValue": None}
        if variable.dtype.kind == "M":
            code |= {"dtype": "float64", "units": "days since 1970-01-01", "calendar": "proleptic_gregorian"}
        elif variable.dtype == np.float32:
            code["_FillValue"] = np.float32(np.nan)
        elif variable.dtype.kind == "U":
            code = {}
        if variable.ndim == 3:
            code["chunks"] = tuple(min(n, c) for n, c in zip(variable.shape, CHUNK, strict=True))
        elif variable.dims == ("mid_date",):
            code["chunks"] = variable.shape
        encoding[name] = code
    return encoding
