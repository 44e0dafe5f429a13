"""One map of all pairs: `mosaic`, the mean or median of their components, with what the pairs say of each other.

The plain way to a velocity map where every pair measures the same motion, as pairs a year apart do. It weighs no
errors that pairs share and finds no season: that is what `invert` is for.
"""

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from . import grid
from .correct import NMAD
from .errors import ParameterError
from .export import median_valid
from .provenance import record

METHODS = ("mean", "median", "weighted")
_MAPS = ("vx", "vy", "vx_std", "vy_std", "vx_nmad", "vy_nmad")
_RATE = {"units": "meter/year", "grid_mapping": "mapping"}
_PAIRS = ("mid_date",)


def mosaic(velocity: xr.Dataset, method: str = "mean") -> xr.Dataset:
    """The mean, median or weighted mean of all pairs, cell by cell; lazy if the velocity is.

    Components are averaged, never speeds: the mean of speeds is too large wherever there is noise.

    Parameters
    ----------
    velocity : xr.Dataset
        dims (mid_date, y, x) with `vx`, `vy` and the acquisition dates.
    method : {"mean", "median", "weighted"}
        `weighted`: each component by 1 / error², the error of the vector where it has one, else that of its pair; a
        vector without either has no part.

    Returns
    -------
    xr.Dataset
        dims (y, x): `vx`, `vy`, `v` [meter/year, `v` of the mean vector]; `count`, the vectors used; `vx_std`, `vy_std`
        and the robust `vx_nmad`, `vy_nmad` between the pairs [meter/year, NaN for a single one]; `first_date`,
        `last_date`, the period from the earliest to the latest image that contributes.

    Raises
    ------
    ParameterError
        An unknown method, no pairs, or no errors to weigh with.

    Examples
    --------
    >>> from ogive.testing.velocity_cubes import velocity_cube
    >>> velocity, _ = velocity_cube("100")
    >>> one = mosaic(velocity, "median")
    >>> one["v"].dims, int(one["count"].max()), str(one["last_date"].values.max())[:4]
    (('y', 'x'), 99, '2018')
    """
    if method not in METHODS:
        raise ParameterError("method", rule=f"must be one of {', '.join(METHODS)}", value=repr(method))
    if not velocity.sizes.get("mid_date"):
        raise ParameterError("velocity", rule="needs pairs along mid_date", value=dict(velocity.sizes))
    inputs: list[Any] = [velocity[name].transpose("y", "x", "mid_date") for name in ("vx", "vy")]
    inputs += [velocity[f"acquisition_date_img{k}"].variable for k in (1, 2)]
    if method == "weighted":
        inputs += [vector_errors(velocity, name).transpose(..., "mid_date") for name in ("vx", "vy")]
    whole = [a.chunk({"mid_date": -1}) if a.chunks is not None else a for a in inputs]
    found = xr.apply_ufunc(
        _mosaic, *whole, kwargs={"method": method}, input_core_dims=[_PAIRS] * len(whole), dask="parallelized",
        output_core_dims=[()] * 9, output_dtypes=[*[np.float32] * 6, np.uint16, "M8[ns]", "M8[ns]"],
    )  # fmt: skip
    out = xr.Dataset(dict(zip((*_MAPS, "count", "first_date", "last_date"), found, strict=True)))
    out["v"] = np.hypot(out["vx"], out["vy"])
    for name in ("v", *_MAPS):
        out[name].attrs = _RATE
    out = out[["v", *_MAPS, "count", "first_date", "last_date"]].reset_coords(drop=True)
    box = grid.geobox_of(velocity)
    out = out.assign_coords({**grid.coordinates(box), "mapping": grid.mapping(box)})
    return record(out.assign_attrs(velocity.attrs, kind="mosaic"), "mosaic", method=method)


def vector_errors(velocity: xr.Dataset, name: str) -> xr.DataArray:
    """1 sigma of every vector's component `name`: its own where it has one, else that of its pair [meter/year].

    Raises
    ------
    ParameterError
        The velocity has neither.
    """
    own, pair = (velocity.get(f"{name}_error{kind}") for kind in ("_px", ""))
    if own is None and pair is None:
        fix = "pass what track or open_velocity gives"
        raise ParameterError("velocity", rule=f"needs {name}_error or {name}_error_px", fix=fix)
    if own is None or pair is None:
        return own if pair is None else pair  # type: ignore[return-value]
    return own.where(np.isfinite(own), pair)


def _mosaic(vx: Any, vy: Any, first: Any, last: Any, *errors: Any, method: str) -> tuple[NDArray[Any], ...]:
    """All maps (y, x) of vectors (y, x, pairs)."""
    valid = np.isfinite(vx) & np.isfinite(vy)
    weights = [np.ones((), np.float64)] * 2
    if errors:
        with np.errstate(divide="ignore", invalid="ignore"):
            weights = [1.0 / np.asarray(e, np.float64) ** 2 for e in errors]
        valid &= np.isfinite(weights[0]) & np.isfinite(weights[1])
    count = valid.sum(-1)
    components = [np.where(valid, c, np.nan).astype(np.float64) for c in (vx, vy)]
    if method == "median":
        middles = [median_valid(c) for c in components]
    else:
        used = [np.where(valid, w, 0.0) for w in weights]
        sums = [np.where(valid, c * w, 0.0).sum(-1) for c, w in zip(components, used, strict=True)]
        with np.errstate(invalid="ignore"):
            middles = [s / w.sum(-1) for s, w in zip(sums, used, strict=True)]
    spreads = [_spread(c, count) for c in components]
    maps = [*middles, *(s for s, _ in spreads), *(r for _, r in spreads)]
    nothing = np.datetime64("NaT", "ns")
    dates = [np.fmin.reduce(np.where(valid, first, nothing), -1), np.fmax.reduce(np.where(valid, last, nothing), -1)]
    return *(m.astype(np.float32) for m in maps), count.astype(np.uint16), *dates


def _spread(values: NDArray[np.float64], count: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Standard deviation and NMAD along the last axis; NaN with fewer than two values.

    Examples
    --------
    >>> std, robust = _spread(np.array([[1.0, 3.0, np.nan]]), np.array([2]))
    >>> float(std[0].round(4)), float(robust[0])
    (1.4142, 1.4826)
    """
    several = count > 1
    mean = np.nansum(values, -1) / np.maximum(count, 1)
    squares = np.nansum((values - mean[..., None]) ** 2, -1)
    std = np.where(several, np.sqrt(squares / np.maximum(count - 1, 1)), np.nan)
    robust = NMAD * median_valid(np.abs(values - median_valid(values)[..., None]))
    return std, np.where(several, robust, np.nan)
