"""The layout of an ITS_LIVE version 2 datacube: names, units, attributes, integer codes, chunks.

Pure re-labelling of a lazy velocity; `export.to_itslive` writes it. Two deliberate differences from the original
cubes: integers carry `_FillValue` as well as `missing_value` (GDAL and unwritten chunks know no other), and the missing
value of `interp_mask` is 255, because with 0 every measured pixel decodes to NaN.

Source: Gardner, A. S., et al., ITS_LIVE Regional Glacier and Ice Sheet Surface Velocities, version 2 (NSIDC), layout
as found in the public cubes.
"""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pyproj
import xarray as xr
from numpy.typing import NDArray

from . import flags, grid
from .errors import ParameterError

MISSING = -32767
_CHUNK = (20000, 10, 10)
_BLOCK_BYTES = 64 * 2**20
"""One variable of a block in memory; about ten times that at the peak."""
_SPEED = "meter/year"
_VELOCITIES = {
    "vx": ("land_ice_surface_x_velocity", "velocity component in x direction"),
    "vy": ("land_ice_surface_y_velocity", "velocity component in y direction"),
    "v": ("land_ice_surface_velocity", "velocity magnitude"),
    "v_error": ("velocity_error", "velocity magnitude error, 1 sigma"),
}
_PER_PAIR = {
    "vx_error": "best estimate of x_velocity error, 1 sigma of one vector of the pair",
    "vy_error": "best estimate of y_velocity error, 1 sigma of one vector of the pair",
    "vx_stable_shift": "applied vx shift calibrated using pixels over stable surfaces",
    "vy_stable_shift": "applied vy shift calibrated using pixels over stable surfaces",
}
_DATES = {
    "acquisition_date_img1": ("image1_acquition_date", "acquisition date and time of image 1"),
    "acquisition_date_img2": ("image2_acquition_date", "acquisition date and time of image 2"),
    "date_center": ("image_pair_center_date", "midpoint of image 1 and image 2 acquisition date"),
    "mid_date": (
        "image_pair_center_date_with_time_separation",
        "midpoint of image 1 and image 2 acquisition date, plus the date of image 1 (YYMMDD) as microseconds",
    ),
}
_WIDTHS = {"mission": 1, "satellite": 2, "sensor": 3}


def token_date(center: NDArray[Any], first: NDArray[Any]) -> NDArray[Any]:
    """Middle date with the date of image 1 (YYMMDD) added as microseconds, as ITS_LIVE labels its pairs.

    Parameters
    ----------
    center, first : datetime64 array (mid_date)
        Middle of the two acquisitions; acquisition of image 1.

    Returns
    -------
    datetime64[ns] array (mid_date)

    Examples
    --------
    >>> days = np.array(["2020-01-01", "1986-07-25"], "datetime64[ns]")
    >>> str(token_date(days[:1], days[1:])[0])
    '2020-01-01T00:00:00.860725000'
    """
    dates = pd.DatetimeIndex(first)
    token = (dates.year % 100 * 10_000 + dates.month * 100 + dates.day).to_numpy()
    out: NDArray[Any] = center.astype("datetime64[ns]") + token.astype("timedelta64[us]")
    return out


def layout(velocity: xr.Dataset, author: str) -> tuple[xr.Dataset, dict[str, dict[str, Any]]]:
    """Rename, label and re-chunk a velocity.

    Parameters
    ----------
    velocity : xr.Dataset
        dims (mid_date, y, x), lazy or in memory.
    author : str
        Global attribute.

    Returns
    -------
    xr.Dataset
        Lazy, in memory blocks that are whole numbers of chunks.
    dict
        Encoding for `to_zarr(zarr_format=2)`.

    Raises
    ------
    ParameterError
        No pairs, a missing variable, or a sensor code that does not fit.
    """
    needed = ("vx", "vy", "vx_error", "vy_error", "acquisition_date_img1", "acquisition_date_img2")
    missing = [n for n in needed if n not in velocity.variables]
    if missing or velocity.sizes.get("mid_date", 0) < 1:
        rule = f"needs {missing}" if missing else "needs at least one pair on mid_date"
        raise ParameterError("velocity", rule=rule, value=dict(velocity.sizes), fix="pass the result of open_velocity")
    geobox = grid.geobox_of(velocity)
    out = xr.Dataset(_maps(velocity) | _pairs(velocity), coords=grid.coordinates(geobox))
    out = out.assign_coords(mid_date=_dates(velocity)["mid_date"])
    for name in ("x", "y"):
        out[name].attrs["description"] = f"{name} coordinate of projection"
    out["mapping"] = grid.mapping(geobox)
    out.attrs = _attributes(velocity, geobox, author)
    return out, _encoding(out)


def _maps(velocity: xr.Dataset) -> dict[str, xr.DataArray]:
    vx, vy = velocity["vx"], velocity["vy"]
    valid = vx.notnull() & vy.notnull()
    if "flag" in velocity:
        valid &= ~flags.invalid(velocity["flag"])
    speed = (vx**2 + vy**2) ** 0.5
    ex, ey = velocity["vx_error"], velocity["vy_error"]
    # At rest the direction is unknown: the mean variance of the two components stands in for it.
    safe = speed.where(speed > 0, 1.0)
    variance = ((ex * vx / safe) ** 2 + (ey * vy / safe) ** 2).where(speed > 0, (ex**2 + ey**2) / 2)
    # int16 cannot hold more than 32.7 km/yr, and a cast would wrap around to another plausible speed.
    valid &= speed <= 32766
    maps: dict[str, xr.DataArray] = {}
    for name, values in {"vx": vx, "vy": vy, "v": speed, "v_error": variance**0.5}.items():
        standard_name, description = _VELOCITIES[name]
        maps[name] = values.where(valid).clip(-32766, 32766).astype(np.float32)
        maps[name].attrs = {"standard_name": standard_name, "description": description, "units": _SPEED}
    for name, side in (("chip_size_width", "width"), ("chip_size_height", "height")):
        if name in velocity:
            maps[name] = velocity[name].where(velocity[name] > 0, 0).astype(np.uint16)  # NaN once decoded
            note = "image projection geometry: width = x, height = y"
            text = f"{side} of search template (chip)"
            maps[name].attrs = {"standard_name": name, "description": text, "units": "m", "chip_size_coordinates": note}
    if "interp_mask" in velocity:
        interpolated = velocity["interp_mask"]
        maps["interp_mask"] = interpolated.where(interpolated == 1, 0).astype(np.uint8)
        maps["interp_mask"].attrs = {
            "standard_name": "interpolated_value_mask",
            "description": "light interpolation mask",
            "flag_values": [0, 1],
            "flag_meanings": "measured interpolated",
        }
    return {
        n: a.transpose("mid_date", "y", "x").drop_vars(list(a.coords)).drop_encoding().copy() for n, a in maps.items()
    }


def _dates(velocity: xr.Dataset) -> dict[str, xr.Variable]:
    first, second = (velocity[f"acquisition_date_img{i}"].values.astype("datetime64[ns]") for i in (1, 2))
    center = velocity["date_center"].values if "date_center" in velocity.variables else first + (second - first) // 2
    values = {
        "acquisition_date_img1": first,
        "acquisition_date_img2": second,
        "date_center": center,
        "mid_date": token_date(center, first),
    }
    return {
        name: xr.Variable("mid_date", values[name], {"standard_name": standard_name, "description": description})
        for name, (standard_name, description) in _DATES.items()
    }


def _pairs(velocity: xr.Dataset) -> dict[str, xr.Variable]:
    out = {name: variable for name, variable in _dates(velocity).items() if name != "mid_date"}
    days = (out["acquisition_date_img2"].values - out["acquisition_date_img1"].values) / np.timedelta64(1, "D")
    text = "time separation between acquisition of image 1 and image 2"
    attrs = {"standard_name": "image_pair_time_separation", "description": text, "units": "days"}
    out["date_dt"] = xr.Variable("mid_date", days.astype(np.float32), attrs)
    for name, text in _PER_PAIR.items():
        if name in velocity:
            attrs = {"standard_name": name, "description": text, "units": _SPEED}
            out[name] = xr.Variable("mid_date", velocity[name].values.astype(np.float32), attrs)
    for name, dtype, unit in (("stable_shift_flag", np.uint8, None), ("stable_count_stationary", np.uint16, "count")):
        if name in velocity:
            attrs = {"standard_name": name, "description": str(velocity[name].attrs.get("long_name", name))}
            out[name] = xr.Variable(
                "mid_date", velocity[name].values.astype(dtype), attrs | ({"units": unit} if unit else {})
            )
    for (kind, width), i in ((item, i) for item in _WIDTHS.items() for i in (1, 2)):
        name = f"{kind}_img{i}"
        if name in velocity.variables:
            codes = velocity[name].values.astype(object).astype(str)
            longest = max(codes.tolist(), key=len)
            if len(longest) > width:
                fix = "use the codes of ITS_LIVE: missions L, S; satellites 8, 9, 2A ...; sensors C, MSI ..."
                raise ParameterError(name, rule=f"holds at most {width} characters", value=longest, fix=fix)
            attrs = {"standard_name": f"image{i}_{kind}", "description": f"id of the {kind} that acquired image {i}"}
            out[name] = xr.Variable("mid_date", codes.astype(f"U{width}"), attrs)
    return out


def _attributes(velocity: xr.Dataset, geobox: Any, author: str) -> dict[str, Any]:
    crs = pyproj.CRS.from_user_input(str(geobox.crs))
    to_degrees = pyproj.Transformer.from_crs(crs, 4326, always_xy=True)
    box = geobox.boundingbox
    corners = [(box.left, box.bottom), (box.right, box.bottom), (box.right, box.top), (box.left, box.top)]
    corners.append(corners[0])
    degrees = [tuple(round(float(v), 6) for v in to_degrees.transform(*corner)) for corner in corners]
    lon, lat = to_degrees.transform((box.left + box.right) / 2, (box.bottom + box.top) / 2)
    now = datetime.now(UTC).strftime("%d-%b-%Y %H:%M:%S")
    kept = ("provenance", "institution", "year_length_days", "schema_version")
    return {
        "Conventions": "CF-1.8",
        "GDAL_AREA_OR_POINT": "Area",
        "title": "Datacube of image pair velocities in the layout of ITS_LIVE",
        "author": author,
        "projection": str(crs.to_epsg() or ""),
        "url": "",
        "latitude": round(float(lat), 2),
        "longitude": round(float(lon), 2),
        "geo_polygon": str([list(c) for c in degrees]),
        "proj_polygon": str([list(c) for c in corners]),
        "time_standard_img1": "UTC",
        "time_standard_img2": "UTC",
        "date_created": now,
        "date_updated": now,
        **{k: velocity.attrs[k] for k in kept if k in velocity.attrs},
    }


def _encoding(out: xr.Dataset) -> dict[str, dict[str, Any]]:
    from numcodecs import Blosc  # type: ignore[import-untyped]  # comes with zarr; version 2 stores know no other

    codec = (Blosc(cname="zlib", clevel=2, shuffle=1),)
    pairs = out.sizes["mid_date"]
    chunk = tuple(min(n, c) for n, c in zip((pairs, out.sizes["y"], out.sizes["x"]), _CHUNK))
    # Blocks in memory are whole chunks, as many as fit: each chunk is then written once, by one task.
    tile = max(1, int((_BLOCK_BYTES / (4 * chunk[0])) ** 0.5) // _CHUNK[1]) * _CHUNK[1]
    fills = {"vx": ("int16", MISSING), "vy": ("int16", MISSING), "v": ("int16", MISSING), "v_error": ("int16", MISSING)}
    fills |= {"chip_size_width": ("uint16", 0), "chip_size_height": ("uint16", 0), "interp_mask": ("uint8", 255)}
    encoding: dict[str, dict[str, Any]] = {}
    for name in map(str, out.variables):
        variable = out[name]
        if name in fills:
            dtype, fill = fills[name]
            code: dict[str, Any] = {"dtype": dtype, "_FillValue": fill, "missing_value": fill, "chunks": chunk}
            code |= {"compressors": codec, "grid_mapping": "mapping"}
            out[name] = variable.chunk({"mid_date": chunk[0], "y": tile, "x": tile})
        elif variable.dtype.kind == "M":
            code = {"dtype": "float64", "units": "days since 1970-01-01", "calendar": "proleptic_gregorian"}
        elif name in _PER_PAIR:
            code = {"dtype": "float32", "_FillValue": float(MISSING)}
        elif name == "date_dt":
            code = {"dtype": "float32", "_FillValue": np.float32(np.nan)}
        else:
            code = {"_FillValue": None} if variable.dtype.kind == "f" else {}
        if variable.dims == ("mid_date",):
            code["chunks"] = (min(pairs, 200_000),)
        encoding[name] = code
    return encoding
