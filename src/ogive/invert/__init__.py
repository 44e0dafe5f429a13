"""Inversion: velocity of image pairs in, regular time series out.

An estimator is a pure function on arrays (`Estimator`); this file gives it labels, windows and laziness. A block of
the result is a block of the spatial chunks with all pairs of it, so chunk velocities over the whole of `mid_date`.
One estimator call per block fills all variables.
"""

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Protocol, cast

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from .. import flags, grid
from ..errors import ParameterError
from ._observations import Observations
from .adaptive import AdaptiveOptions, adaptive

__all__ = ["METHODS", "AdaptiveOptions", "Estimator", "Observations", "invert", "windows"]

_DAY = np.timedelta64(86400 * 10**9, "ns")
_RATE = {"units": "meter/year", "grid_mapping": "mapping"}
_ONE = {"units": "1", "grid_mapping": "mapping"}
_SIGMA = "one standard deviation of the window mean; errors shared by the pairs of one image are not included"

VARIABLES: dict[str, tuple[str, type, dict[str, Any]]] = {
    "vx": (
        "t",
        np.float32,
        {**_RATE, "standard_name": "land_ice_surface_x_velocity", "long_name": "window mean of vx"},
    ),
    "vy": (
        "t",
        np.float32,
        {**_RATE, "standard_name": "land_ice_surface_y_velocity", "long_name": "window mean of vy"},
    ),
    "v": ("t", np.float32, {**_RATE, "standard_name": "land_ice_surface_velocity", "long_name": "norm of vx and vy"}),
    "vx_error": ("t", np.float32, {**_RATE, "long_name": "error of vx", "description": _SIGMA}),
    "vy_error": ("t", np.float32, {**_RATE, "long_name": "error of vy", "description": _SIGMA}),
    "v_error": (
        "t",
        np.float32,
        {**_RATE, "long_name": "error of v, propagated from vx and vy", "description": _SIGMA},
    ),
    "count": ("t", np.float32, {**_ONE, "long_name": "effective number of pairs: sum of the robust weights"}),
    "flag": ("t", np.uint16, {**flags.attributes(), "grid_mapping": "mapping"}),
    "kappa": ("", np.float32, {**_ONE, "long_name": "relative change of velocity per square root of 30 days"}),
    "residual": ("", np.float32, {**_ONE, "long_name": "robust scale of the residuals in units of the given errors"}),
    "n_pairs": ("", np.uint32, {**_ONE, "long_name": "number of valid pairs"}),
    "n_rejected": ("", np.uint32, {**_ONE, "long_name": "number of pairs with robust weight 0"}),
}
"""Variables of a series: `t` where they have a time, dtype, attributes."""


class Estimator(Protocol):
    """What `METHODS` holds: observations of P pixels and W windows [day] in, one array per variable out."""

    def __call__(
        self, observations: Observations, edges: NDArray[np.float64], options: Any
    ) -> dict[str, NDArray[np.generic]]:
        """Return `VARIABLES` less `v` and `v_error`, (W, P) or (P,)."""
        ...


METHODS: dict[str, tuple[Estimator, Callable[[], Any]]] = {"adaptive": (adaptive, AdaptiveOptions)}
"""Name: the estimator and its options with default values."""


def invert(
    velocity: xr.Dataset,
    *,
    method: str = "adaptive",
    every: str | Sequence[Any] = "30D",
    start: Any = None,
    end: Any = None,
    options: Any = None,
) -> xr.Dataset:
    """Regular time series from the velocities of image pairs.

    Parameters
    ----------
    velocity : xr.Dataset
        dims (mid_date, y, x): `vx`, `vy` [meter/year], NaN where invalid; `vx_error`, `vy_error` on mid_date or on
        (mid_date, y, x); the acquisition dates.
    method : str
        A key of `METHODS`.
    every : str or sequence of dates
        Length of the windows as a pandas offset (`"30D"`, `"MS"`), or the edges of contiguous windows.
    start, end : date, optional
        First and last edge; default the whole days around the first and the last image.
    options : dataclass, optional
        Of the method; default its own, e.g. `AdaptiveOptions()`.

    Returns
    -------
    xr.Dataset
        The series, dims (time, y, x); lazy if the input is. A window that reaches beyond the data, or that no
        accepted pair overlaps, is NaN with flag GAP; a pixel with too few pairs is NaN with flag TOO_FEW_PAIRS.

    Raises
    ------
    ParameterError
        Unknown method, no errors, no pair, image 2 not later than image 1, windows that make no sense.

    Examples
    --------
    >>> from ogive.testing.velocity_cubes import velocity_cube
    >>> velocity, _ = velocity_cube("100")
    >>> series = invert(velocity.isel(y=[5], x=[5]), every="30D")
    >>> dict(series.sizes), series["vx"].attrs["units"]
    ({'time': 22, 'y': 1, 'x': 1, 'bnds': 2}, 'meter/year')
    """
    if method not in METHODS:
        raise ParameterError("method", rule=f"must be one of {', '.join(sorted(METHODS))}", value=repr(method))
    estimator, default = METHODS[method]
    options = default() if options is None else options
    if type(options) is not type(default()):
        raise ParameterError("options", rule=f"must be {type(default()).__name__} for method {method!r}", value=options)
    t1, t2 = _dates(velocity)
    bounds = windows(t1, t2, every=every, start=start, end=end)
    arrays = [velocity[name].transpose("mid_date", ...) for name in ("vx", "vy", "vx_error", "vy_error")]
    lazy = any(a.chunks is not None for a in arrays[:2])
    fixed = (estimator, _days(t1), _days(t2), _days(bounds), options)
    data = _lazy_block(arrays, fixed) if lazy else _block(*(a.values for a in arrays), fixed=fixed)
    spatial = ("y", "x")
    centre = bounds[:, 0] + (bounds[:, 1] - bounds[:, 0]) // 2
    series = xr.Dataset(
        {
            name: (("time", *spatial) if dims else spatial, data[name], dict(attrs))
            for name, (dims, _, attrs) in VARIABLES.items()
        },
        {
            "time": (
                "time",
                centre,
                {"standard_name": "time", "long_name": "centre of the window", "bounds": "time_bnds"},
            ),
            "time_bnds": (("time", "bnds"), bounds),
            **{name: velocity[name] for name in ("y", "x", "mapping") if name in velocity.variables},
        },
    )
    parameters = {"every": every if isinstance(every, str) else [str(b) for b in bounds[:, 0]], **asdict(options)}
    series.attrs = {
        "Conventions": "CF-1.11",
        "title": "Glacier surface velocity, regular time series",
        "kind": "series",
        "schema_version": grid.SCHEMA_VERSION,
        "method": method,
        "parameters": json.dumps(parameters),
        "year_length_days": grid.YEAR_DAYS,
        "provenance": velocity.attrs.get("provenance", "{}"),
    }
    return series


def windows(
    t1: NDArray[np.datetime64],
    t2: NDArray[np.datetime64],
    *,
    every: str | Sequence[Any],
    start: Any = None,
    end: Any = None,
) -> NDArray[np.datetime64]:
    """Contiguous windows over the span of the pairs: (W, 2) datetime64[ns].

    Raises
    ------
    ParameterError
        `every` is not an offset nor a list of increasing dates, or no window fits.

    Examples
    --------
    >>> t1, t2 = np.array(["2020-01-01T10:20"], "M8[ns]"), np.array(["2020-03-05T10:20"], "M8[ns]")
    >>> windows(t1, t2, every="MS").astype("M8[D]").tolist()
    [[datetime.date(2020, 1, 1), datetime.date(2020, 2, 1)], [datetime.date(2020, 2, 1), datetime.date(2020, 3, 1)]]
    """
    first, last = pd.Timestamp(t1.min()).floor("D"), pd.Timestamp(t2.max()).ceil("D")
    try:
        first = first if start is None else pd.Timestamp(start)
        last = last if end is None else pd.Timestamp(end)
        if isinstance(every, str):
            with warnings.catch_warnings():
                warnings.simplefilter("error", FutureWarning)  # an outdated offset is not understood either
                edges = pd.date_range(first, last, freq=every)
        else:
            edges = pd.DatetimeIndex(list(every))
    except (ValueError, TypeError, OverflowError, FutureWarning) as error:
        fix = "use a pandas offset such as '30D' or 'MS', or a list of dates"
        raise ParameterError("every", rule=f"not understood: {error}", value=repr(every), fix=fix) from error
    if edges.size > 1 and not (edges[1:] > edges[:-1]).all():
        raise ParameterError("every", rule="edges must increase", value=repr(every), fix="sort the dates")
    if edges.size < 2:
        rule = f"no window fits into {first:%Y-%m-%d} to {last:%Y-%m-%d}"
        raise ParameterError("every", rule=rule, value=repr(every), fix="use shorter windows")
    values = edges.values.astype("M8[ns]")
    return np.stack([values[:-1], values[1:]], 1)


def _dates(velocity: xr.Dataset) -> tuple[NDArray[np.datetime64], NDArray[np.datetime64]]:
    for name in ("vx", "vy", "acquisition_date_img1", "acquisition_date_img2"):
        if name not in velocity.variables:
            raise ParameterError("velocity", rule=f"needs a variable {name!r}", fix="open it with ogive.open_velocity")
    for name in ("vx_error", "vy_error"):
        if name not in velocity.variables:
            fix = "run ogive.correct.stable_ground, or add 1-sigma errors [meter/year] on mid_date"
            raise ParameterError("velocity", rule=f"an inversion weights pairs and needs {name!r}", fix=fix)
    if velocity.sizes["mid_date"] < 1:
        raise ParameterError("velocity", rule="needs at least one pair", value=0, fix="loosen the selection of pairs")
    t1, t2 = (velocity[f"acquisition_date_img{k}"].values.astype("M8[ns]") for k in (1, 2))
    wrong = ~(t2 > t1)
    if wrong.any():
        rule = "image 2 must be later than image 1"
        raise ParameterError("velocity", rule=rule, value=f"{int(wrong.sum())} pairs", fix="swap or drop these pairs")
    return t1, t2


def _days(dates: NDArray[np.datetime64]) -> NDArray[np.float64]:
    return (dates - np.datetime64("1970-01-01", "ns")) / _DAY


def _block(
    vx: NDArray[Any], vy: NDArray[Any], ex: NDArray[Any], ey: NDArray[Any], *, fixed: tuple[Any, ...]
) -> dict[str, NDArray[Any]]:
    """All variables of one block, from (N, y, x) velocities."""
    estimator, t1, t2, edges, options = fixed
    pairs, height, width = vx.shape
    flat = [np.ascontiguousarray(a, np.promote_types(a.dtype, np.float32)).reshape(pairs, -1) for a in (vx, vy)]
    errors = [np.ascontiguousarray(a, np.float64).reshape(pairs, -1) for a in (ex, ey)]
    out = estimator(Observations(t1, t2, flat[0], flat[1], errors[0], errors[1]), edges, options)
    x, y, sx, sy = (out[name].astype(np.float64) for name in ("vx", "vy", "vx_error", "vy_error"))
    speed = np.hypot(x, y)
    with np.errstate(invalid="ignore", divide="ignore"):
        # Ice that does not move has no direction: its speed is as uncertain as one component.
        error = np.where(speed > 0, np.hypot(x * sx, y * sy) / speed, np.hypot(sx, sy) / np.sqrt(2))
    out = {**out, "v": speed, "v_error": error}
    return {
        name: out[name].astype(dtype, copy=False).reshape(*out[name].shape[:-1], height, width)
        for name, (_, dtype, _) in VARIABLES.items()
    }


def _lazy_block(arrays: list[xr.DataArray], fixed: tuple[Any, ...]) -> dict[str, da.Array]:
    """One `_block` task for each spatial chunk, then one cheap task per variable and chunk that picks its array."""
    chunks = arrays[0].chunksizes or arrays[1].chunksizes
    spatial = {name: size for name, size in chunks.items() if name != "mid_date"}
    operands: list[Any] = []
    for a in arrays:
        whole = a.chunk({"mid_date": -1} | {name: size for name, size in spatial.items() if name in a.dims})
        operands += [whole.data, "".join({"mid_date": "m"}.get(str(d), str(d)) for d in whole.dims)]
    blocks = da.blockwise(
        _block, "yx", *operands, fixed=fixed, dtype=object, concatenate=True, meta=np.empty((0, 0), object)
    )
    times = len(fixed[3])
    return {
        name: cast(
            da.Array,
            da.blockwise(
                _pick,
                dims + "yx",
                blocks,
                "yx",
                name,
                None,
                new_axes={"t": times} if dims else {},
                dtype=dtype,
                meta=np.empty((0,) * (2 + len(dims)), dtype),
            ),
        )
        for name, (dims, dtype, _) in VARIABLES.items()
    }


def _pick(block: dict[str, NDArray[Any]], name: str) -> NDArray[Any]:
    return block[name]
