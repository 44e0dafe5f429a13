"""A guide: smoothness and phase of the season at a cell, from what a first pass has found at the cells around.

Both change little from cell to cell, much less than the pairs of one cell can tell them. Each value comes from the
5 x 5 cells around, at fixed offsets and summed in one order, so the bits do not depend on how the grid is cut. A cell
that the first pass could not invert says nothing, and none is asked beyond it: two glaciers share nothing across a
ridge.
"""

from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..errors import ParameterError
from ._season import OMEGA

Float = NDArray[np.float64]
Complex = NDArray[np.complex128]

REACH = 2
"""Cells on each side: on a grid of 120 m, as far as the thickness of a glacier smooths its flow."""
OFFSETS = [(j, i) for j in range(-REACH, REACH + 1) for i in range(-REACH, REACH + 1)]
WEIGHTS = np.array([(REACH + 1 - abs(j)) * (REACH + 1 - abs(i)) for j, i in OFFSETS])
"""Less for cells farther away; whole numbers, so that their sums are exact."""
NEAR = 2.0
"""A kappa this many times that of the cells around is another regime."""
SLOPE = 0.05
"""Size of the change of phase from cell to cell [radian]: three days."""
SEASON = ("v_amp", "v_phase", "v_amp_error")


def guided(guide: xr.Dataset, velocity: xr.Dataset) -> list[xr.DataArray]:
    """`smoothness` and `timing` of a series, (y, x) each; lazy if the velocity is.

    Raises
    ------
    ParameterError
        The guide has no smoothness or season, or lies on another grid.
    """
    missing = [name for name in ("kappa", *SEASON) if name not in guide]
    if missing:
        fix = "use a series of method 'adaptive'"
        raise ParameterError("guide", rule=f"needs {', '.join(missing)}", value=guide.attrs.get("method"), fix=fix)
    if not _same_grid(guide, velocity):
        shapes = [" x ".join(str(d.sizes[name]) for name in ("y", "x")) for d in (guide, velocity)]
        raise ParameterError(
            "guide", rule=f"must lie on the grid of the velocity, {shapes[1]} cells",
            value=f"{shapes[0]} cells, or others", fix="invert this velocity without a guide first",
        )  # fmt: skip
    chunks = {name: c for name, c in velocity["vx"].chunksizes.items() if name != "mid_date"}
    fields = guide[["kappa", *SEASON]].transpose("y", "x", ...)
    fields = fields.chunk(chunks) if chunks else fields
    arrays = [fields[name].data for name in ("kappa", *SEASON)]
    return [
        xr.DataArray(_overlapping(function, arrays[:count], dtype), dims=("y", "x"))
        for function, count, dtype in ((smoothness, 1, float), (timing, 4, complex))
    ]


def _same_grid(guide: xr.Dataset, velocity: xr.Dataset) -> bool:
    systems = [d["mapping"].attrs.get("crs_wkt") for d in (guide, velocity) if "mapping" in d.variables]
    places = (np.array_equal(guide[name].values, velocity[name].values) for name in ("y", "x"))
    return len(set(systems)) < 2 and all(places)


def _overlapping(function: Callable[..., NDArray[Any]], arrays: list[Any], dtype: type) -> Any:
    """A function of (y, x) arrays, block by block with `REACH` more cells on each side if they are lazy."""
    first = arrays[0]
    if not isinstance(first, da.Array):
        return function(*(np.asarray(a) for a in arrays))
    # Dask allows no overlap wider than the array, and merges chunks that are narrower than it.
    depth = {axis: min(REACH, size) for axis, size in enumerate(first.shape)}
    meta: NDArray[Any] = np.empty((0, 0), dtype)
    found = da.map_overlap(function, *arrays, depth=depth, boundary="none", dtype=dtype, meta=meta)
    return found.rechunk(first.chunks)


def smoothness(kappa: NDArray[Any]) -> Float:
    """Robust mean of kappa over 5 x 5 cells; NaN where the cell itself has none.

    The weighted median of the logarithms, then the weighted mean of those within a factor of `NEAR`: a median alone
    would be one of the few candidates.

    Parameters
    ----------
    kappa : (y, x) float
        NaN where a cell could not be inverted.

    Examples
    --------
    >>> kappa = np.full((5, 5), 0.25); kappa[2, 2] = 2.0; kappa[:, 3] = np.nan
    >>> smoothness(kappa)[2].tolist()
    [0.25, 0.25, 0.25, nan, 0.25]
    """
    near = np.log2(_around(kappa, kappa))
    order = np.argsort(near, axis=0)
    weights = np.where(np.isfinite(near), WEIGHTS[:, None, None], 0)
    sums = np.cumsum(np.take_along_axis(weights, order, 0), axis=0)
    middle = np.argmax(2 * sums >= sums[-1], axis=0)[None]
    median = np.take_along_axis(near, np.take_along_axis(order, middle, 0), 0)[0]
    weights = np.where(np.abs(near - median) <= np.log2(NEAR), weights, 0)
    with np.errstate(invalid="ignore"):
        mean: Float = np.exp2(_total(weights * np.nan_to_num(near)) / _total(weights))
    return mean


def timing(kappa: NDArray[Any], amplitude: NDArray[Any], phase: NDArray[Any], error: NDArray[Any]) -> Complex:
    """What the cells around say about when the season has its maximum: a complex number of that phase.

    Its size says how surely [1/radian^2]; 0 where nothing is known. The phase is that of a plane through the cells
    around, weighted by (amplitude / error)^2, at the cell itself, which is not asked. Its variance is that of the
    plane plus what is left beyond the errors from cell to cell (moment estimate of DerSimonian & Laird 1986,
    doi:10.1016/0197-2456(86)90046-2).

    Parameters
    ----------
    kappa : (y, x) float
        NaN where a cell could not be inverted.
    amplitude, error : (y, x) float
        Amplitude of the season along flow and its 1 sigma [meter/year]; NaN where there is none.
    phase : (y, x) float
        Day of its maximum.

    Examples
    --------
    >>> ones = np.ones((1, 3))
    >>> said = timing(ones, 2 * ones, np.array([[360.25, 100.0, 10.0]]), ones)[0, 1]
    >>> print(f"day {np.angle(said) / OMEGA:.2f}, {np.abs(said):.1f}")
    day 2.50, 8.0
    """
    outer = np.multiply.outer
    others = [k for k, offset in enumerate(OFFSETS) if offset != (0, 0)]
    rows = np.array([(1, *OFFSETS[k]) for k in others])
    products = rows[:, :, None] * rows[:, None, :]
    angle = OMEGA * phase.astype(np.float64)
    fields = (np.square(amplitude.astype(np.float64) / error), np.cos(angle), np.sin(angle))
    weight, a, b = (np.nan_to_num(_around(field, kappa)[others]) for field in fields)
    total, east, north = _total(weight), _total(weight * a), _total(weight * b)
    late = np.arctan2(b * east - a * north, a * east + b * north)  # than the mean of all
    normal = _total(map(outer, weight, products)) + np.diag([0, 1, 1]) / SLOPE**2
    normal[total == 0] = np.eye(3)
    inverse, right = np.linalg.inv(normal), _total(map(outer, weight * late, rows))
    plane = (inverse * right[..., None, :]).sum(-1)
    # With slopes of variance SLOPE^2 the misfit of n cells that differ by their errors is n - 1 on average.
    excess = _total(weight * late**2) - (plane * right).sum(-1) - (np.count_nonzero(weight, axis=0) - 1)
    gain = total - (inverse * _total(map(outer, weight**2, products))).sum(-1).sum(-1)
    beyond = np.divide(excess, gain, out=np.zeros_like(total), where=(excess > 0) & (gain > 1e-9 * total))
    said = np.exp(1j * (np.arctan2(north, east) + plane[..., 0])) / (inverse[..., 0, 0] + beyond)
    return np.where(total > 0, said, 0)


def _around(field: NDArray[Any], kappa: NDArray[Any]) -> Float:
    """The neighbours of every cell: (25, y, x), NaN where the cell itself, or one on the way, has no kappa."""
    height, width = field.shape
    wide, passable = (np.pad(a.astype(np.float64), REACH, constant_values=np.nan) for a in (field, kappa))

    def shifted(a: Float, j: int, i: int) -> Float:
        return a[REACH + j : REACH + j + height, REACH + i : REACH + i + width]

    near = np.full((len(OFFSETS), height, width), np.nan)
    for k, (j, i) in enumerate(OFFSETS):
        halfway = shifted(passable, int(j / 2), int(i / 2))
        np.copyto(near[k], shifted(wide, j, i), where=np.isfinite(kappa) & np.isfinite(halfway))
    return near


def _total(terms: Iterable[Any]) -> Any:
    """Sum of arrays, one by one: the order of numpy's own sums depends on the shape."""
    return reduce(np.add, terms)


def together(waves: Float, season: Complex) -> Float:
    """The season of a cell by what its own pairs and the cells around say; the latter about its phase only.

    Parameters
    ----------
    waves : (9, P) float64
        Cosine and sine of x and of y; variance of the cosine, covariance, variance of the sine; flow direction x, y.
    season : (P,) complex128
        From `timing`.

    Returns
    -------
    (9, P) float64

    Examples
    --------
    >>> waves = np.array([[3.0], [4.0], [0.0], [0.0], [1.0], [0.0], [1.0], [1.0], [0.0]])
    >>> together(waves, np.array([25 + 0j]))[:7, 0].tolist()
    [3.0, 2.0, 0.0, 0.0, 1.0, 0.0, 0.5]
    """
    variance_a, covariance, variance_b, east, north = waves[4:]
    out = waves.copy()
    u, v = -np.sin(np.angle(season)), np.cos(np.angle(season))
    with np.errstate(invalid="ignore", divide="ignore"):
        along = (east * waves[:2] + north * waves[2:4]) / np.hypot(east, north)
        # The cells around say that the part in quadrature is zero, to within their error times the amplitude.
        pa, pb = variance_a * u + covariance * v, covariance * u + variance_b * v
        variance = u * pa + v * pb + np.square(along).sum(0) / np.abs(season)
        for k in (0, 2):
            off = (u * waves[k] + v * waves[k + 1]) / variance
            out[k] -= pa * off
            out[k + 1] -= pb * off
        out[4:7] -= np.stack([pa * pa, pa * pb, pb * pb]) / variance
    return out
