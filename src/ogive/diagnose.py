"""Diagnosis: why a velocity is missing or uncertain, and what the pairs say about each other.

`why` answers in words, for one place. The others are figures for whole datasets: do pairs flow one way (`coherence`),
do displacements add up round triangles of images (`closure`), where is the series silent (`gaps`), and how far is
every pair from the series (`residuals`).
"""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from . import grid
from ._why import why
from .errors import GridError, ParameterError
from .invert._pairs import pairs_of

__all__ = ["closure", "coherence", "gaps", "residuals", "why"]

Float = NDArray[np.float64]

_DAY = np.timedelta64(86400 * 10**9, "ns")


def coherence(data: xr.Dataset) -> xr.DataArray:
    """Velocity vector coherence: do the vectors of a pixel flow one way?

    Length of the mean unit vector: 1 = all in one direction, about 1 / sqrt(n) = at random
    (Mardia & Jupp 1999, doi:10.1002/9780470316979).

    Parameters
    ----------
    data : xr.Dataset
        A velocity (mid_date, y, x) or a series (time, y, x).

    Returns
    -------
    xr.DataArray
        (y, x), 0 to 1; NaN without any vector. Missing vectors do not count. Lazy if the input is.

    Examples
    --------
    >>> from ogive.testing.velocity_cubes import velocity_cube
    >>> round(float(coherence(velocity_cube("100")[0])[5, 5]), 2)
    0.88
    """
    dim = "mid_date" if "mid_date" in data.dims else "time"
    vx, vy = (data[name].astype(np.float64) for name in ("vx", "vy"))
    speed = xr.ufuncs.hypot(vx, vy)
    speed = speed.where(speed > 0)
    count = speed.notnull().sum(dim)
    out: xr.DataArray = xr.ufuncs.hypot((vx / speed).sum(dim), (vy / speed).sum(dim)) / count.where(count > 0)
    out.attrs = {"long_name": "velocity vector coherence", "units": "1", "grid_mapping": "mapping"}
    return out.rename("coherence")


def gaps(series: xr.Dataset) -> xr.DataArray:
    """Longest time without a velocity, per pixel [day].

    Parameters
    ----------
    series : xr.Dataset
        Result of `ogive.invert`; windows may overlap.

    Returns
    -------
    xr.DataArray
        (y, x): within the span of all windows, its ends included; the whole span without any velocity. Lazy if the
        input is.

    Examples
    --------
    >>> from ogive.invert import invert
    >>> from ogive.testing.velocity_cubes import velocity_cube
    >>> series = invert(velocity_cube("100")[0].isel(y=[5], x=[5]), every="30D")
    >>> series["vx"][5:8] = np.nan
    >>> float(gaps(series)[0, 0])
    90.0
    """
    bounds = (series["time_bnds"].values - np.datetime64("1970-01-01", "ns")) / _DAY
    known = series["vx"].notnull() & series["vy"].notnull()
    out: xr.DataArray = xr.apply_ufunc(
        _longest_gap, _whole(known, "time"), kwargs={"bounds": bounds}, input_core_dims=[["time"]],
        dask="parallelized", output_dtypes=[np.float32],
    )  # fmt: skip
    out.attrs = {"long_name": "longest time without a velocity", "units": "days", "grid_mapping": "mapping"}
    return out.rename("gap")


def _longest_gap(known: NDArray[np.bool_], bounds: Float) -> NDArray[np.float32]:
    """(..., W) validity and (W, 2) windows -> (...) days."""
    reach = np.full(known.shape[:-1], bounds[:, 0].min())
    longest = np.zeros(known.shape[:-1])
    for w in np.argsort(bounds[:, 0], kind="stable"):
        longest = np.where(known[..., w], np.maximum(longest, bounds[w, 0] - reach), longest)
        reach = np.where(known[..., w], np.maximum(reach, bounds[w, 1]), reach)
    out: NDArray[np.float32] = np.maximum(longest, bounds[:, 1].max() - reach).astype(np.float32)
    return out


def _whole(array: xr.DataArray, dim: str) -> xr.DataArray:
    return array if array.chunks is None else array.chunk({dim: -1})


def residuals(velocity: xr.Dataset, series: xr.Dataset) -> xr.Dataset:
    """Difference of every pair to the series: measured minus predicted displacement [m].

    The series predicts by its cumulative displacements `dx`, `dy` where it has them, else by its windows put end to
    end; in between it is taken as linear. Short windows predict short pairs better.

    Parameters
    ----------
    velocity : xr.Dataset
        The pairs, on the grid of the series.
    series : xr.Dataset
        From `ogive.invert`.

    Returns
    -------
    xr.Dataset
        `x_residual`, `y_residual` (mid_date, y, x) float32 [m]; NaN where the pair is missing, or reaches into a gap or
        beyond the series. Lazy if the velocity is.

    Raises
    ------
    GridError
        Other cells than the series has.
    ParameterError
        No `dx`, `dy`, and windows that do not lie end to end.

    Examples
    --------
    >>> from ogive.invert import invert
    >>> from ogive.testing.velocity_cubes import velocity_cube
    >>> velocity, _ = velocity_cube("100")
    >>> away = residuals(velocity, invert(velocity, every="10D"))
    >>> bool(abs(away["x_residual"]).median() < 3)
    True
    """
    for name in ("y", "x"):
        if not np.array_equal(velocity[name].values, series[name].values):
            fix = "invert this velocity, or select the same cells of both"
            raise GridError(f"coordinate {name!r}", rule="must be the same in velocity and series", fix=fix)
    _, t1, t2 = pairs_of(velocity)
    nodes, rows, given = _nodes(series)
    kwargs = {"t1": _days(t1), "t2": _days(t2), "nodes": _days(nodes), "rows": rows, "given": given}
    out = {}
    for component in ("x", "y"):
        known = series[f"d{component}" if given else f"v{component}"].drop_vars("reference_date", errors="ignore")
        out[f"{component}_residual"] = xr.apply_ufunc(
            _away, _whole(velocity[f"v{component}"], "mid_date"), _whole(known, "time"), kwargs=kwargs,
            input_core_dims=[["mid_date"], ["time"]], output_core_dims=[["mid_date"]],
            dask="parallelized", output_dtypes=[np.float32],
        ).transpose("mid_date", "y", "x")  # fmt: skip
        long_name = f"measured minus predicted displacement along {component}"
        out[f"{component}_residual"].attrs = {"long_name": long_name, "units": "metre", "grid_mapping": "mapping"}
    return xr.Dataset(out)


def _days(dates: NDArray[np.datetime64]) -> Float:
    days: Float = (dates - np.datetime64("1970-01-01", "ns")) / _DAY
    return days


def _nodes(series: xr.Dataset) -> tuple[NDArray[np.datetime64], NDArray[np.int64], bool]:
    """Dates between which the series is linear, the windows that give them, and whether as displacements."""
    bounds = series["time_bnds"].values.astype("M8[ns]")
    if "dx" in series and "dy" in series:
        rows = np.argsort(bounds[:, 1], kind="stable")
        reference = series["reference_date"].values.astype("M8[ns]")
        rows = rows[bounds[rows, 1] > reference]
        return np.concatenate([[reference], bounds[rows, 1]]), rows, True
    chain = [int(np.argmin(bounds[:, 0]))]
    while (following := np.flatnonzero(bounds[:, 0] == bounds[chain[-1], 1])).size:
        chain.append(int(following[0]))
    if bounds[chain[-1], 1] + (bounds[0, 1] - bounds[0, 0]) <= bounds[:, 1].max():
        fix = "invert again with windows end to end, or with a method that gives dx and dy"
        raise ParameterError("series", rule="needs windows end to end, or variables dx and dy", fix=fix)
    return np.concatenate([bounds[chain[:1], 0], bounds[chain, 1]]), np.array(chain), False


def _away(
    measured: NDArray[Any],
    known: NDArray[Any],
    *,
    t1: Float,
    t2: Float,
    nodes: Float,
    rows: NDArray[np.int64],
    given: bool,
) -> NDArray[np.float32]:
    """(..., N) velocities and (..., W) velocities or cumulative displacements -> (..., N) displacements away [m]."""
    steps = np.asarray(known, np.float64)[..., rows]
    if given:
        total = np.concatenate([np.zeros((*steps.shape[:-1], 1)), steps], -1)
        lost = np.zeros_like(total)
    else:
        length = np.diff(nodes)
        total = _summed(np.nan_to_num(steps) * length / grid.YEAR_DAYS)
        lost = _summed(~np.isfinite(steps) * length)
    predicted = _at(total, nodes, t2) - _at(total, nodes, t1)
    predicted[_at(lost, nodes, t2) - _at(lost, nodes, t1) > 1e-6] = np.nan
    return (measured * (t2 - t1) / grid.YEAR_DAYS - predicted).astype(np.float32)


def _summed(steps: Float) -> Float:
    return np.concatenate([np.zeros((*steps.shape[:-1], 1)), np.cumsum(steps, -1)], -1)


def _at(values: Float, nodes: Float, t: Float) -> Float:
    """(..., K) values at K nodes, linear in between; NaN outside. A node itself needs no neighbour."""
    i = np.clip(np.searchsorted(nodes, t, side="right") - 1, 0, nodes.size - 2)
    f = (t - nodes[i]) / (nodes[i + 1] - nodes[i])
    before, after = values[..., i], values[..., i + 1]
    out = np.where(f == 0, before, np.where(f == 1, after, before + f * (after - before)))
    return np.where((f >= 0) & (f <= 1), out, np.nan)


def closure(velocity: xr.Dataset, *, triangles: int = 10_000, pixels: int = 400) -> xr.Dataset:
    """Do displacements add up? A to B plus B to C minus A to C, for images A, B, C that are matched three times.

    What is left is the error of the matches and of the ground between them. An error of an image that all its
    matches share, as of its geolocation, cancels: look for that in `residuals`.

    Parameters
    ----------
    velocity : xr.Dataset
        dims (mid_date, y, x).
    triangles, pixels : int
        At most so many of each, evenly chosen. 10 000 and 400: the median of a triangle is then known to a
        fifteenth of its spread, and 50 000 pairs take 160 MB.

    Returns
    -------
    xr.Dataset
        For each `triangle`: positions `ab`, `bc`, `ac` on mid_date, dates `t_a`, `t_b`, `t_c`, `count` of pixels,
        `x_median`, `y_median`, `x_nmad`, `y_nmad` over the pixels [m]. For each `image` in one: `date`, `triangles`
        it is in, `offset` (median length of their median vectors) and `spread` (median NMAD) [m]: an image with a
        large one spoils its pairs.

    Raises
    ------
    ParameterError
        A limit below 1.

    Examples
    --------
    >>> from ogive.testing.velocity_cubes import velocity_cube
    >>> closed = closure(velocity_cube("100")[0])
    >>> closed.sizes["triangle"] > 20, bool(abs(closed["x_median"]).median() < 3)
    (True, True)
    """
    for name, value in (("triangles", triangles), ("pixels", pixels)):
        if value < 1:
            raise ParameterError(name, rule="must be at least 1", value=value)
    fields, t1, t2 = pairs_of(velocity)
    step = max(int(np.ceil(np.sqrt(velocity.sizes["y"] * velocity.sizes["x"] / pixels))), 1)
    sample = velocity[["vx", "vy"]].isel(y=slice(None, None, step), x=slice(None, None, step)).compute()
    moved = np.stack([sample[name].transpose("mid_date", "y", "x").values for name in ("vx", "vy")])
    moved = moved.reshape(2, t1.size, sample.sizes["y"] * sample.sizes["x"])
    moved = moved * (grid.pair_days(velocity).values / grid.YEAR_DAYS).astype(moved.dtype)[:, None]
    seen = np.flatnonzero(np.isfinite(moved).all(0).any(1))
    found = seen[triangles_of(fields["image1"][seen], fields["image2"][seen])]
    found = found[_evenly(len(found), triangles)]
    stats = triangle_statistics(moved, found)
    rows = ("triangle",)
    metre = {"units": "metre"}
    table = xr.Dataset(
        {name: (rows, values, {} if name == "count" else metre) for name, values in stats.items()},
        {name: (rows, found[:, k]) for k, name in enumerate(("ab", "bc", "ac"))}
        | {"t_a": (rows, t1[found[:, 0]]), "t_b": (rows, t2[found[:, 0]]), "t_c": (rows, t2[found[:, 1]])},
    )
    return table.merge(_per_image(table, fields["image1"], fields["image2"]))


def _evenly(count: int, most: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, max(count - 1, 0), min(count, most)).round().astype(np.int64))


def triangles_of(image1: NDArray[np.int64], image2: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of pairs A-B, B-C and A-C, (K, 3); a repeated pair makes triangles of its own.

    Examples
    --------
    >>> triangles_of(np.array([0, 1, 0, 0]), np.array([1, 2, 2, 3])).tolist()
    [[0, 1, 2]]
    """
    pairs = pd.DataFrame({"one": image1, "two": image2, "row": np.arange(len(image1))})
    ab = pairs.rename(columns={"one": "a", "two": "b", "row": "ab"})
    bc = pairs.rename(columns={"one": "b", "two": "c", "row": "bc"})
    ac = pairs.rename(columns={"one": "a", "two": "c", "row": "ac"})
    table = ab.merge(bc, on="b").merge(ac, on=["a", "c"])[["ab", "bc", "ac"]]
    return table.sort_values(["ab", "bc", "ac"]).to_numpy(np.int64)


def triangle_statistics(moved: NDArray[Any], triangles: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Closure of displacements (2, N, P) [m] round triangles (K, 3): count, median and NMAD over the P pixels."""
    out = {"count": np.zeros(len(triangles), np.int64)}
    out |= {f"{c}_{s}": np.full(len(triangles), np.nan) for s in ("median", "nmad") for c in ("x", "y")}
    for k, (ab, bc, ac) in enumerate(triangles):
        left = moved[:, ab] + moved[:, bc] - moved[:, ac]
        left = left[:, np.isfinite(left).all(0)]
        out["count"][k] = left.shape[1]
        if left.shape[1]:
            middle = np.median(left, 1)
            spread = 1.4826 * np.median(np.abs(left - middle[:, None]), 1)
            out["x_median"][k], out["y_median"][k] = middle
            out["x_nmad"][k], out["y_nmad"][k] = spread
    return out


def _per_image(table: xr.Dataset, image1: NDArray[np.int64], image2: NDArray[np.int64]) -> xr.Dataset:
    """The same by image: over all triangles that it is in."""
    ab, bc = table["ab"].values, table["bc"].values
    columns = {"offset": np.hypot(table["x_median"].values, table["y_median"].values),
               "spread": np.sqrt((table["x_nmad"].values ** 2 + table["y_nmad"].values ** 2) / 2)}  # fmt: skip
    corners = [(image1[ab], "t_a"), (image2[ab], "t_b"), (image2[bc], "t_c")]
    parts = [pd.DataFrame({"image": image, "date": table[date].values, **columns}) for image, date in corners]
    by = pd.concat(parts).groupby("image")
    out = by[["offset", "spread"]].median().assign(date=by["date"].first(), triangles=by.size())
    data = out.rename_axis("image").to_xarray()
    for name in ("offset", "spread"):
        data[name].attrs["units"] = "metre"
    return data
