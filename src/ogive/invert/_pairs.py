"""What a velocity says about its pairs: dates, which image each is made of, satellite groups, data sources."""

from typing import Any, cast

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from ..errors import ParameterError
from ._windows import utc

GROUPS = {
    "L4": "L4_L5", "L5": "L4_L5", "L7": "L7", "L8": "L8_L9", "L9": "L8_L9", "S1": "S1A_S1B", "S2": "S2A_S2B",
}  # fmt: skip
"""Satellite groups as in the ITS_LIVE composites, by mission and first digit of the satellite."""
SAME_IMAGE = np.timedelta64(120, "s")
"""Acquisitions of one satellite closer than this are one image: tiles of the same overpass share their errors."""

_OPEN = "open it with ogive.open_velocity"


def pairs_of(velocity: xr.Dataset) -> tuple[dict[str, Any], NDArray[np.datetime64], NDArray[np.datetime64]]:
    """Fields of `Observations` that belong to the pairs, and the dates of both images.

    Raises
    ------
    ParameterError
        A variable is missing or malformed, there is no pair or no cell, or an image 2 is not later than its image 1.
    """
    _check_layout(velocity)
    t1, t2 = (_acquired(velocity, f"acquisition_date_img{k}") for k in (1, 2))
    wrong = ~(t2 > t1)
    if wrong.any():
        rule = "image 2 must be later than image 1"
        raise ParameterError("velocity", rule=rule, value=f"{int(wrong.sum())} pairs", fix="swap or drop these pairs")
    one, two = (_satellites(velocity, k, t1.size) for k in (1, 2))
    image1, image2 = _images(t1, t2, one, two)
    group, groups = _numbered(np.array([GROUPS.get(name[:2], name) for name in one]))
    source, sources = _numbered(velocity["source"].values.astype(str) if "source" in velocity else np.full(t1.size, ""))
    fields = {
        "t1": _days(t1), "t2": _days(t2), "image1": image1, "image2": image2, "group": group, "groups": groups,
        "source": source, "sources": sources,
    }  # fmt: skip
    return fields, t1, t2


def _check_layout(velocity: xr.Dataset) -> None:
    """All variables are there, in numbers, on (mid_date, y, x); errors may be on mid_date alone."""
    if not isinstance(cast(object, velocity), xr.Dataset):
        raise ParameterError("velocity", rule="must be an xarray.Dataset", value=type(velocity).__name__, fix=_OPEN)
    # A map must know where it lies; the pairs of one point need not.
    place = ("y", "x", "mapping") if velocity.sizes.get("y", 0) * velocity.sizes.get("x", 0) > 1 else ()
    for name in ("vx", "vy", "acquisition_date_img1", "acquisition_date_img2", *place):
        if name not in velocity.variables:
            raise ParameterError("velocity", rule=f"needs a variable {name!r}", fix=_OPEN)
    for name in ("vx_error", "vy_error"):
        if name not in velocity.variables:
            fix = "run ogive.correct.stable_ground, or add 1-sigma errors [meter/year] on mid_date"
            raise ParameterError("velocity", rule=f"an inversion weights pairs and needs {name!r}", fix=fix)
    for name in ("vx", "vy", "vx_error", "vy_error"):
        dims, dtype = set(velocity[name].dims), velocity[name].dtype
        if dims != {"mid_date", "y", "x"} and not (name.endswith("error") and dims == {"mid_date"}):
            fix = "select with lists, isel(y=[3], x=[5])" if len(dims) < 3 else "select one layer"
            rule = "must lie on (mid_date, y, x)" + ", or on mid_date" * name.endswith("error")
            raise ParameterError(name, rule=rule, value=velocity[name].dims, fix=fix)
        if dtype.kind not in "fiu":
            raise ParameterError(name, rule="must be numbers [meter/year]", value=f"dtype {dtype}", fix=_OPEN)
    for name, thing in (("mid_date", "pair"), ("y", "cell along y"), ("x", "cell along x")):
        if velocity.sizes[name] < 1:
            fix = "loosen the selection"
            raise ParameterError("velocity", rule=f"needs at least one {thing}", value=0, fix=fix)


def _acquired(velocity: xr.Dataset, name: str) -> NDArray[np.datetime64]:
    try:
        return utc(velocity[name].values)
    except (ValueError, TypeError, OverflowError) as error:
        rule, fix = f"must be dates of all pairs: {error}", "drop pairs without dates, or correct them"
        raise ParameterError(name, rule=rule, value=f"dtype {velocity[name].dtype}", fix=fix) from error


def _satellites(velocity: xr.Dataset, k: int, count: int) -> NDArray[np.str_]:
    """Mission and satellite of image k of every pair, e.g. "L8", "S2A"; empty where unknown."""
    if f"satellite_img{k}" not in velocity:
        return np.full(count, "")
    satellite = velocity[f"satellite_img{k}"].values.astype(str)
    # Codes of Landsat are digits alone, of the Sentinels a digit and a letter ("1", "2" in old cubes).
    return np.array([s and ("L" if s in {"4", "5", "7", "8", "9"} else "S") + s for s in satellite], str)


def _images(
    t1: NDArray[np.datetime64], t2: NDArray[np.datetime64], one: NDArray[np.str_], two: NDArray[np.str_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number of the first and the second image of every pair."""
    table = pd.DataFrame({"satellite": np.concatenate([one, two]), "time": np.concatenate([t1, t2])})
    table = table.sort_values(["satellite", "time"], kind="stable")
    starts = (table["satellite"] != table["satellite"].shift()) | ~(table["time"].diff() <= SAME_IMAGE)
    numbers = np.empty(len(table), np.int64)
    numbers[table.index.to_numpy()] = starts.cumsum().to_numpy() - 1
    return numbers[: t1.size], numbers[t1.size :]


def _numbered(names: NDArray[np.str_]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    found, numbers = np.unique(names, return_inverse=True)
    return numbers.astype(np.int64), tuple(map(str, found))


def _days(dates: NDArray[np.datetime64]) -> NDArray[np.float64]:
    days: NDArray[np.float64] = (dates - np.datetime64("1970-01-01", "ns")) / np.timedelta64(86400 * 10**9, "ns")
    return days
