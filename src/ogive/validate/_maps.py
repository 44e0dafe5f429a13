"""Maps against each other, and maps of several methods against stakes: the tables of a comparison of methods."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from .. import grid
from ..errors import GridError, ParameterError
from ..export import map_at
from ..mosaic import mosaic
from ._scores import mean, nmad, rms
from ._stakes import read_stakes

Float = NDArray[np.float64]
Place = Literal["start", "middle", "path"]
Sampling = Literal["bilinear", "3x3", "point"]

_SPREADS = ("vx_std", "vy_std", "vx_nmad", "vy_nmad")


def map_scores(first: xr.Dataset, second: xr.Dataset, where: ArrayLike | None = None) -> dict[str, float]:
    """Differences of speed between two maps, second minus first, over the ice say.

    Parameters
    ----------
    first, second : xr.Dataset
        `vx`, `vy` (y, x) on one grid; in a comparison with a reference, this is the first.
    where : array_like of bool (y, x), optional
        What is scored; default everything.

    Returns
    -------
    dict
        `count`; of the differences of speed `rmse`, `bias`, `nmad` and `q95`, which 95 % of them do not exceed in size;
        `vector_rmse` of the vectors. All [meter/year], NaN where the maps share no cell.

    Raises
    ------
    GridError
        The maps, or `where`, lie on different grids.

    Examples
    --------
    >>> from ogive.testing.velocity_cubes import velocity_cube
    >>> one = mosaic(velocity_cube("100")[0])
    >>> two = one.assign(vx=one["vx"] * 1.1, vy=one["vy"] * 1.1)
    >>> score = map_scores(one, two)
    >>> bool(score["bias"] > 0), bool(abs(score["rmse"] / score["vector_rmse"] - 1) < 1e-6)
    (True, True)
    """
    box, other = grid.geobox_of(first), grid.geobox_of(second)
    if box != other:
        fix = "put it there first: ogive.regrid(second, first)"
        raise GridError("second", rule=f"must lie on the grid of first, {box}", value=other, fix=fix)
    scored = np.ones(box.shape, bool) if where is None else np.asarray(where, bool)
    if scored.shape != tuple(box.shape):
        raise GridError("where", rule=f"must have the shape {tuple(box.shape)} of the maps", value=scored.shape)
    a, b = (
        np.stack([m[c].transpose("y", "x").values.astype(np.float64) for c in ("vy", "vx")]) for m in (first, second)
    )
    good = scored & np.isfinite(a + b).all(0)
    faster = (np.hypot(*b) - np.hypot(*a))[good]
    return {
        "count": float(good.sum()), "rmse": rms(faster), "bias": mean(faster), "nmad": nmad(faster),
        "q95": float(np.quantile(np.abs(faster), 0.95)) if faster.size else float("nan"),
        "vector_rmse": rms(np.hypot(*(b - a))[good]),
    }  # fmt: skip


def stake_table(
    stakes: str | Path | pd.DataFrame, maps: Mapping[str, xr.Dataset], *, at: Place = "path",
    how: Sampling = "bilinear",
) -> pd.DataFrame:  # fmt: skip
    """Maps of several methods beside what was measured at stakes.

    Parameters
    ----------
    stakes : path or pd.DataFrame
        As in `validate.stakes`: `x`, `y` or `lon`, `lat`, two dates, and `x1`, `y1` (`lon1`, `lat1`) or a velocity.
    maps : mapping of str to xr.Dataset
        The methods by name: `ogive.mosaic` of their pairs, a velocity (of which the mean is taken), or any map with
        `vx`, `vy` (y, x). In one coordinate system, that of `x`, `y`.
    at : {"start", "middle", "path"}
        Where the map is looked at: the first position, the middle, or the mean of the straight way between both. A
        stake with one position is looked at there.
    how : {"bilinear", "3x3", "point"}
        Components between the four cells around, their mean over the valid ones of nine, or the cell itself.

    Returns
    -------
    pd.DataFrame
        One row for each stake: `name`, `x`, `y`, `t1`, `t2`, `v_gps` [meter/year]; and for each method M `v_M`,
        `diff_M` (method minus measured), `rel_M` (its share of the measured), and from mosaics `n_M` (fewest pairs),
        `std_M` and `nmad_M` (scatter of the pairs' vectors). NaN off the grid, or where the map has no velocity.

    Raises
    ------
    ParameterError
        No map, an unknown `at` or `how`, or a table as in `validate.stakes`.
    GridError
        The maps are in different coordinate systems.

    Examples
    --------
    >>> from ogive.testing.velocity_cubes import velocity_cube
    >>> one = mosaic(velocity_cube("100")[0], "median")
    >>> x, y = float(one["x"][6]), float(one["y"][6])
    >>> stake = {"id": "A", "x": x, "y": y, "date0": "2017-06-01", "date1": "2018-06-01", "v": 200}
    >>> stake_table(pd.DataFrame([stake]), {"ncc": one}, how="point")[["v_gps", "v_ncc", "n_ncc"]].round(2)
       v_gps   v_ncc  n_ncc
    0  200.0  235.05   93.0
    """
    if not maps or at not in ("start", "middle", "path") or how not in ("bilinear", "3x3", "point"):
        rule = 'needs a map, at "start", "middle" or "path" and how "bilinear", "3x3" or "point"'
        raise ParameterError("stake_table", rule=rule, value=(list(maps), at, how))
    crs = {str(grid.geobox_of(m).crs) for m in maps.values()}
    if len(crs) > 1:
        raise GridError("maps", rule="must be in one coordinate system", value=sorted(crs), fix="use ogive.regrid")
    read = read_stakes(stakes, crs.pop())
    out = read[["name", "x", "y", "t1", "t2"]].assign(v_gps=read["v"])
    for name, given in maps.items():
        found = _sampled(given, read, at, how)
        speed = np.hypot(found["vx"], found["vy"])
        out[f"v_{name}"], out[f"diff_{name}"] = speed, speed - read["v"]
        out[f"rel_{name}"] = out[f"diff_{name}"] / read["v"]
        if "count" in found:
            out[f"n_{name}"] = found["count"]
        for spread in ("std", "nmad"):
            if f"vx_{spread}" in found:
                out[f"{spread}_{name}"] = np.hypot(found[f"vx_{spread}"], found[f"vy_{spread}"])
    return out


def stake_scores(table: pd.DataFrame) -> pd.DataFrame:
    """Errors of each method of a table with `v_gps` and a column `v_M` for every method M.

    Returns
    -------
    pd.DataFrame
        One row for each method: `count`, `mae`, `rmse`, `bias` [meter/year], `rel_bias` (mean of the relative
        differences).

    Raises
    ------
    ParameterError
        The table lacks `v_gps`, or any method.

    Examples
    --------
    >>> stake_scores(pd.DataFrame({"v_gps": [10.0, 20.0], "v_ncc": [9.0, 18.0]}))
         count  mae      rmse  bias  rel_bias
    ncc    2.0  1.5  1.581139  -1.5      -0.1
    """
    methods = [str(c)[2:] for c in table.columns if str(c).startswith("v_") and c != "v_gps"]
    if "v_gps" not in table or not methods:
        fix = "pass what validate.stake_table returns"
        raise ParameterError("table", rule="needs v_gps and a column v_<method>", value=list(table.columns), fix=fix)
    measured = table["v_gps"].to_numpy(np.float64)
    rows = {}
    for method in methods:
        d = table[f"v_{method}"].to_numpy(np.float64) - measured
        good = np.isfinite(d)
        relative = mean(d[good] / measured[good])
        score = {"mae": mean(np.abs(d[good])), "rmse": rms(d[good]), "bias": mean(d[good]), "rel_bias": relative}
        rows[method] = {"count": float(good.sum()), **score}
    return pd.DataFrame.from_dict(rows, orient="index")


def _sampled(given: xr.Dataset, read: pd.DataFrame, at: Place, how: Sampling) -> dict[str, Float]:
    """What a map says at each stake; the mean of it over the places of a path, and the fewest pairs of all of them."""
    one = mosaic(given) if "mid_date" in given.dims else given
    names = ["vx", "vy", *(n for n in ("count", *_SPREADS) if n in one and set(one[n].dims) == {"y", "x"})]
    maps = map_at(one, names)
    box, layers = grid.geobox_of(maps), np.stack([maps[n].values.astype(np.float64) for n in names])
    found = np.full((len(names), len(read)), np.nan)
    for k, stake in enumerate(read.to_dict("records")):
        columns, rows = ~box.affine @ _way(stake, at, abs(box.resolution.x))
        places = list(zip(rows - 0.5, columns - 0.5, strict=True))
        samples = np.stack([_sample(layers, *place, how) for place in places])
        seen = np.isfinite(samples[:, :2]).all(1)
        if seen.any():
            found[:, k] = samples[seen].mean(0)
            if "count" in names:
                # Between cells there are no pairs: the cells themselves are asked.
                counted = [_sample(layers, *place, "point")[names.index("count")] for place in places]
                found[names.index("count"), k] = min(counted)
    return dict(zip(names, found, strict=True))


def _way(stake: Mapping[Any, Any], at: Place, cell: float) -> tuple[Float, Float]:
    """x and y of the places at which a stake is compared, half a cell apart on a path."""
    if at == "middle" or "x0" not in stake:
        return np.array([stake["x"]]), np.array([stake["y"]])
    if at == "start":
        return np.array([stake["x0"]]), np.array([stake["y0"]])
    length = np.hypot(stake["x1"] - stake["x0"], stake["y1"] - stake["y0"])
    part = np.linspace(0, 1, 2 + int(2 * length / cell) if np.isfinite(length) else 2)
    x, y = (stake[f"{c}0"] + part * (stake[f"{c}1"] - stake[f"{c}0"]) for c in ("x", "y"))
    return x, y


def _sample(layers: Float, row: float, column: float, how: Sampling) -> Float:
    """Layers (n, y, x) at one place in cells from the centre of the first; NaN off the grid.

    Examples
    --------
    >>> layers = np.arange(16.0).reshape(1, 4, 4)
    >>> [float(_sample(layers, 1.25, 1.5, how)[0]) for how in ("bilinear", "3x3", "point")]
    [6.5, 6.0, 6.0]
    """
    nothing, (_, height, width) = np.full(len(layers), np.nan), layers.shape
    if not (-0.5 <= row < height - 0.5 and -0.5 <= column < width - 0.5):
        return nothing
    if how == "bilinear":
        # Beyond the outermost centres the map goes on as it ends.
        row, column = min(max(row, 0.0), height - 1.0), min(max(column, 0.0), width - 1.0)
        r, c = min(int(row), max(height - 2, 0)), min(int(column), max(width - 2, 0))
        four = layers[:, r : r + 2, c : c + 2]
        weights = np.outer([1 - row + r, row - r][: four.shape[1]], [1 - column + c, column - c][: four.shape[2]])
        return np.asarray((np.where(weights > 0, four, 0.0) * weights).sum((1, 2)))
    r, c = int(row + 0.5), int(column + 0.5)
    if how == "point":
        return layers[:, r, c]
    near = layers[:, max(r - 1, 0) : r + 2, max(c - 1, 0) : c + 2]
    seen = near[:, np.isfinite(near[:2]).all(0)]
    return seen.mean(1) if seen.size else nothing
