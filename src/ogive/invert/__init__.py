"""Inversion: velocity of image pairs in, time series out.

An estimator is a pure function on arrays (`Estimator`); this file gives it labels, windows and laziness. A block of
the result is a block of the spatial chunks with all pairs of it, so chunk velocities over the whole of `mid_date`.
One estimator call per block fills all variables.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal, cast

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .. import grid
from ..errors import ParameterError
from ._guide import guided
from ._observations import Estimator, Method, Observations, Variable
from ._pairs import pairs_of
from ._screen import screen
from ._windows import season, windows
from .adaptive import ADAPTIVE, AdaptiveOptions
from .annual import ANNUAL, AnnualOptions
from .screening import Screening, check_groups
from .ticoi import TICOI, TicoiOptions

__all__ = [
    "METHODS", "AdaptiveOptions", "AnnualOptions", "Estimator", "Method", "Observations", "Screening",
    "TicoiOptions", "Variable", "invert", "screen", "season", "windows",
]  # fmt: skip

_DAY = np.timedelta64(86400 * 10**9, "ns")

METHODS: dict[str, Method] = {"adaptive": ADAPTIVE, "annual": ANNUAL, "ticoi": TICOI}
"""The estimators by name."""


def invert(
    velocity: xr.Dataset,
    *,
    method: str = "adaptive",
    every: str | Sequence[Any] | NDArray[Any] | None = None,
    length: str | None = None,
    start: Any = None,
    end: Any = None,
    options: Any = None,
    screening: Screening | Literal["default"] | None = "default",
    guide: xr.Dataset | None = None,
) -> xr.Dataset:
    """Time series from the velocities of image pairs.

    Parameters
    ----------
    velocity : xr.Dataset
        dims (mid_date, y, x): `vx`, `vy` [meter/year], NaN where invalid; `vx_error`, `vy_error` on mid_date or on
        (mid_date, y, x), and where they are there `vx_error_px`, `vy_error_px` instead; the acquisition dates. From
        `open_velocity`, or several of them from `fuse`.
    method : str
        A key of `METHODS`.
    every : str, sequence of dates, or (W, 2) array of dates, optional
        Step of the windows as a pandas offset (`"30D"`, `"MS"`), the edges of contiguous windows, or the start and the
        end of each window. Default: that of the method.
    length : str, optional
        Length of the windows where it is not their step: `every="5D", length="30D"`.
    start, end : date, optional
        First and last edge; default the whole days around the first and the last image.
    options : dataclass, optional
        Of the method; default its own, e.g. `AdaptiveOptions()`.
    screening : Screening, "default" or None
        Which pairs may enter at a pixel. "default": `Screening()`, or what belongs to the method; None lets all enter.
    guide : xr.Dataset, optional
        Series of a first pass on the same grid, for a second one in which each cell takes its smoothness and the phase
        of its season from the cells around, as the first pass found them there; only method "adaptive".

    Returns
    -------
    xr.Dataset
        The series, dims (time, y, x); lazy if the input is. A window that reaches beyond the data, or that no
        accepted pair overlaps, is NaN with flag GAP; a pixel with too few pairs is NaN with flag TOO_FEW_PAIRS, or
        SCREENED where it had enough before screening.

    Raises
    ------
    ParameterError
        Unknown method, no errors, no pair, image 2 not later than image 1, windows that make no sense, a guide of
        another grid.

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
    chosen = METHODS[method]
    options = chosen.options() if options is None else options
    if type(options) is not type(chosen.options()):
        rule = f"must be {type(chosen.options()).__name__} for method {method!r}"
        raise ParameterError("options", rule=rule, value=options)
    if screening == "default":
        screening = chosen.screening(options)
    elif not isinstance(screening, Screening | None):
        raise ParameterError("screening", rule='must be a Screening, "default" or None', value=screening)
    if guide is not None and not chosen.guided:
        raise ParameterError("guide", rule=f"method {method!r} takes none", fix="use method 'adaptive'")
    pairs, t1, t2 = pairs_of(velocity)
    check_groups(screening, pairs["groups"])
    every = chosen.every if every is None else every
    bounds = windows(t1, t2, every=every, length=length, start=start, end=end)
    arrays = [velocity[name] for name in ("vx", "vy")] + [_error(velocity, name) for name in ("vx_error", "vy_error")]
    arrays = [a.transpose("mid_date", ...) for a in arrays]
    lazy = any(a.chunks is not None for a in arrays[:2])
    if guide is not None:
        arrays += guided(guide, velocity)
    fixed = (chosen, pairs, (bounds - np.datetime64("1970-01-01", "ns")) / _DAY, options, screening)
    data = _lazy_block(arrays, fixed) if lazy else _block(*(a.values for a in arrays), fixed=fixed)
    spatial = ("y", "x")
    centre = bounds[:, 0] + (bounds[:, 1] - bounds[:, 0]) // 2
    named = {"standard_name": "time", "long_name": "centre of the window", "bounds": "time_bnds"}
    series = xr.Dataset(
        {
            name: (("time", *spatial) if dims else spatial, data[name], dict(attrs))
            for name, (dims, _, attrs) in chosen.variables.items()
        },
        {
            "time": ("time", centre, named),
            "time_bnds": (("time", "bnds"), bounds),
            **{name: velocity[name] for name in ("y", "x", "mapping") if name in velocity.variables},
        },
    )
    if "dx" in series:
        since = {"standard_name": "time", "long_name": "when dx and dy are zero"}
        series = series.assign_coords(reference_date=((), bounds[0, 0], since))
    parameters = {
        "every": every if isinstance(every, str) else [[str(b) for b in bound] for bound in bounds],
        "length": length,
        **asdict(options),
        "screening": None if screening is None else asdict(screening),
        "guided": guide is not None,
    }
    series.attrs = {
        "Conventions": "CF-1.11",
        "title": "Glacier surface velocity, time series",
        "kind": "series",
        "schema_version": grid.SCHEMA_VERSION,
        "method": method,
        "parameters": json.dumps(parameters),
        "year_length_days": grid.YEAR_DAYS,
        "provenance": velocity.attrs.get("provenance", "{}"),
    }
    return series


def _error(velocity: xr.Dataset, name: str) -> xr.DataArray:
    """The error of every vector; that of its pair where it has none of its own."""
    if f"{name}_px" not in velocity:
        return velocity[name]
    own = velocity[f"{name}_px"]
    return own.where(own.notnull(), velocity[name].astype(own.dtype))


def _block(
    vx: NDArray[Any], vy: NDArray[Any], ex: NDArray[Any], ey: NDArray[Any], *near: Any, fixed: tuple[Any, ...]
) -> dict[str, NDArray[Any]]:
    """All variables of one block, from (N, y, x) velocities, and (y, x) kappa and season if there is a guide."""
    method, pairs, edges, options, screening = fixed
    count, height, width = vx.shape
    flat = [np.ascontiguousarray(a, np.promote_types(a.dtype, np.float32)).reshape(count, -1) for a in (vx, vy, ex, ey)]
    known: dict[str, Any] = dict(zip(("kappa", "season"), map(np.ravel, near), strict=False))
    observations = Observations(vx=flat[0], vy=flat[1], ex=flat[2], ey=flat[3], **pairs, **known)
    out = method.estimate(observations, edges, options, screening)
    return {
        name: out[name].astype(dtype, copy=False).reshape(*out[name].shape[:-1], height, width)
        for name, (_, dtype, _) in method.variables.items()
    }


def memory(fixed: tuple[Any, ...], read: int) -> int:
    """Upper bound of the memory of a block for each of its pixels [bytes], of which `read` are velocities and errors.

    These are there as they are read and once more, all pairs together; answers in double and single precision, and as
    they are written. `fixed` as in `_block`.
    """
    method, _, edges = fixed[:3]
    answers = sum(
        (len(edges) if dims else 1) * np.dtype(dtype).itemsize for dims, dtype, _ in method.variables.values()
    )
    return int(2 * read + 4 * answers)


def _lazy_block(arrays: list[xr.DataArray], fixed: tuple[Any, ...]) -> dict[str, da.Array]:
    """One `_block` task for each spatial chunk, then one cheap task per variable and chunk that picks its array."""
    chunks = arrays[0].chunksizes or arrays[1].chunksizes
    sizes: dict[Any, Any] = {**chunks, "mid_date": -1}
    operands: list[Any] = []
    for a in arrays:
        whole = a.chunk({name: size for name, size in sizes.items() if name in a.dims})
        operands += [whole.data, "".join({"mid_date": "m"}.get(str(d), str(d)) for d in whole.dims)]
    blocks = da.blockwise(
        _block, "yx", *operands, fixed=fixed, dtype=object, concatenate=True, meta=np.empty((0, 0), object)
    )
    times = len(fixed[2])
    return {
        name: cast(
            da.Array,
            da.blockwise(
                _pick, dims + "yx", blocks, "yx", name, None, new_axes={"t": times} if dims else {}, dtype=dtype,
                meta=np.empty((0,) * (2 + len(dims)), dtype),
            ),
        )
        for name, (dims, dtype, _) in fixed[0].variables.items()
    }  # fmt: skip


def _pick(block: dict[str, NDArray[Any]], name: str) -> NDArray[Any]:
    return block[name]
