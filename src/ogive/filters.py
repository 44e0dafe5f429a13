"""Filters: velocity in, velocity out. They only *add* flag bits; where a bit is not a warning, vx, vy, v become NaN.

The science is `neighbour_test`, a pure function on one stack of displacement fields. The lazy part adds as many cells
around each block as the widest test reaches, so the bits do not depend on the chunks. The raw store keeps everything.
"""

from typing import Any, Literal, cast

import dask.array as da
import numpy as np
import xarray as xr
from numba import njit
from numpy.typing import NDArray

from . import flags, grid
from ._median import median
from .errors import ParameterError
from .provenance import record

Form = Literal["normalised", "mad"]

THRESHOLDS: dict[Form, float] = {"normalised": 2.0, "mad": 4.0}
"""Usual thresholds: 2 in particle image velocimetry (Westerweel & Scarano 2005), 4 unscaled MAD in glacier tracking."""


def local_median(
    velocity: xr.Dataset,
    *,
    window: int = 5,
    form: Form = "normalised",
    threshold: float | None = None,
    noise: float = 1.0,
    min_neighbours: int = 5,
    max_stride: int = 4,
) -> xr.Dataset:
    """Flag vectors that do not fit their neighbours: the normalised median test.

    Parameters
    ----------
    velocity : xr.Dataset
        dims (mid_date, y, x) with `vx`, `vy`, `flag`, the acquisition dates and, for the stride, `chip_size_width`.
    window : int
        Side of the neighbourhood, odd. 5: 24 witnesses, a majority of which survives two bad rows.
    form : {"normalised", "mad"}
        `normalised`: |d - median| / (MAD + noise) > threshold. `mad`: |d - median| > max(threshold MAD, noise).
    threshold : float, optional
        Default 2 (normalised) or 4 (mad).
    noise : float
        Displacement between the images that is within the error of a match [m]. 1: 0.1 px of a 10 m image.
    min_neighbours : int
        With fewer valid neighbours the vector stays and is flagged FEW_NEIGHBOURS. 5: a median of less is one vote.
    max_stride : int
        Widest spacing of neighbours [cells]. Overlapping chips see the same cloud edge and are wrong together, so
        neighbours are taken max(1, chip / 2 cells) apart. 4: a chip of 64 px with vectors every 8 px.

    Returns
    -------
    xr.Dataset
        The input with OUTLIER and FEW_NEIGHBOURS added to `flag`. Lazy if the input is.

    Raises
    ------
    ParameterError
        Even window, a threshold that is not positive, an unknown form.

    Notes
    -----
    Per component, centre excluded, on displacements. Westerweel & Scarano (2005), doi:10.1007/s00348-005-0016-6.

    Examples
    --------
    >>> from ogive.testing.velocity_cubes import velocity_cube
    >>> velocity, _ = velocity_cube("100")
    >>> velocity["vx"][0, 5, 5] = 5000.0
    >>> flags.explain(local_median(velocity)["flag"].values[0, 5, 5])
    ['local_median_outlier']
    """
    if window < 3 or window % 2 == 0:
        raise ParameterError("window", rule="must be odd and at least 3", value=window, fix="use 5")
    if form not in THRESHOLDS:
        raise ParameterError("form", rule=f"must be one of {', '.join(THRESHOLDS)}", value=repr(form))
    threshold = THRESHOLDS[form] if threshold is None else threshold
    for name, value in (("threshold", threshold), ("max_stride", max_stride), ("min_neighbours", min_neighbours)):
        if not value > 0:
            raise ParameterError(name, rule="must be positive", value=value)
    if not noise >= 0:
        raise ParameterError("noise", rule="must not be negative [m]", value=noise)
    dx, dy = _displacements(velocity)
    stride = _strides(velocity, max_stride)
    options: dict[str, Any] = {
        "half": window // 2,
        "scaled": form == "normalised",
        "threshold": float(threshold),
        "noise": float(noise),
        "min_neighbours": int(min_neighbours),
    }
    said = {**options, "window": window, "form": form, "max_stride": max_stride}
    out = record(velocity, "filters.local_median", **said)
    if dx.chunks is None and dy.chunks is None:
        return _add(out, dx.copy(data=neighbour_test(dx.values, dy.values, stride.values, **options)))
    reach = window // 2 * max_stride
    chunks = dx.chunks or dy.chunks
    data = [a.chunk(dict(zip(("mid_date", "y", "x"), cast(Any, chunks), strict=True))).data for a in (dx, dy, stride)]
    bits = da.map_overlap(
        neighbour_test, *data, depth={0: 0, 1: reach, 2: reach}, boundary="none", dtype=np.uint16,
        meta=np.empty((0, 0, 0), np.uint16), **options,
    )  # fmt: skip
    return _add(out, dx.copy(data=bits.rechunk(chunks)))


def correlation(velocity: xr.Dataset, minimum: float) -> xr.Dataset:
    """Flag LOW_CORRELATION where `corr` is below a minimum.

    Raises
    ------
    ParameterError
        No `corr`, or a minimum outside -1 ... 1.

    Examples
    --------
    >>> one = {"vx": ("x", [1.0, 2.0]), "vy": ("x", [0.0, 0.0]), "v": ("x", [1.0, 2.0]), "corr": ("x", [0.9, 0.1])}
    >>> correlation(xr.Dataset({**one, "flag": ("x", np.zeros(2, np.uint16))}), 0.3)["vx"].values
    array([ 1., nan])
    """
    if "corr" not in velocity:
        raise ParameterError("velocity", rule="needs a variable 'corr'", fix="track with a correlating kernel")
    if not -1 <= minimum <= 1:
        raise ParameterError("minimum", rule="a correlation lies between -1 and 1", value=minimum)
    low = velocity["corr"] < minimum
    velocity = record(velocity, "filters.correlation", minimum=float(minimum))
    return _add(velocity, (low & np.isfinite(velocity["vx"])) * np.uint16(flags.LOW_CORRELATION))


def speed_limit(velocity: xr.Dataset, maximum: float) -> xr.Dataset:
    """Flag OUTLIER where the speed exceeds what ice there can do [meter/year].

    Raises
    ------
    ParameterError
        The maximum is not positive.

    Examples
    --------
    >>> one = {"vx": ("x", [3.0, 300.0]), "vy": ("x", [4.0, 400.0]), "v": ("x", [5.0, 500.0])}
    >>> speed_limit(xr.Dataset({**one, "flag": ("x", np.zeros(2, np.uint16))}), 100.0)["flag"].values.tolist()
    [0, 256]
    """
    if not maximum > 0:
        raise ParameterError("maximum", rule="must be positive [meter/year]", value=maximum)
    fast = velocity["vx"] ** 2 + velocity["vy"] ** 2 > maximum**2
    velocity = record(velocity, "filters.speed_limit", maximum=float(maximum))
    return _add(velocity, fast * np.uint16(flags.OUTLIER))


def _add(velocity: xr.Dataset, bits: xr.DataArray) -> xr.Dataset:
    """Add flag bits and drop the values that they make invalid."""
    bits = bits.astype(np.uint16)
    out = velocity.copy()
    out["flag"] = (velocity["flag"] | bits).assign_attrs(velocity["flag"].attrs)
    good = ~flags.invalid(bits)
    for name in ("vx", "vy", "v"):
        out[name] = velocity[name].where(good).assign_attrs(velocity[name].attrs)
    return out


def _displacements(velocity: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """vx, vy as displacements between the images [m]: pairs of any baseline then share one noise."""
    days = (velocity["acquisition_date_img2"] - velocity["acquisition_date_img1"]) / np.timedelta64(86400, "s")
    years = (days / grid.YEAR_DAYS).astype(np.float64)
    dx, dy = ((velocity[name] * years).transpose("mid_date", "y", "x") for name in ("vx", "vy"))
    return dx, dy


def _strides(velocity: xr.Dataset, max_stride: int) -> xr.DataArray:
    if "chip_size_width" not in velocity:
        return xr.ones_like(velocity["vx"], np.int64).transpose("mid_date", "y", "x")
    cell = abs(grid.geobox_of(velocity).resolution.x)
    stride = (velocity["chip_size_width"].fillna(0) / (2 * cell)).round().clip(1, max_stride)
    return stride.astype(np.int64).transpose("mid_date", "y", "x")


def neighbour_test(
    dx: NDArray[np.float64],
    dy: NDArray[np.float64],
    stride: NDArray[np.int64],
    *,
    half: int = 2,
    scaled: bool = True,
    threshold: float = 2.0,
    noise: float = 1.0,
    min_neighbours: int = 5,
) -> NDArray[np.uint16]:
    """Flag bits of the local median test.

    Parameters
    ----------
    dx, dy : (M, y, x) float64
        Displacements [m], NaN where not valid.
    stride : (M, y, x) int64
        Spacing of the neighbours [cells].
    half : int
        Neighbours on each side: 2 is a 5 x 5 window.
    scaled : bool
        True: |d - median| / (MAD + noise) > threshold; False: |d - median| > max(threshold MAD, noise).
    threshold, noise, min_neighbours
        As in `local_median`.

    Returns
    -------
    (M, y, x) uint16
        OUTLIER, FEW_NEIGHBOURS or 0; 0 where there is no vector to test.

    Examples
    --------
    >>> d = np.zeros((1, 5, 5)); d[0, 2, 2] = 10.0
    >>> neighbour_test(d, d, np.ones((1, 5, 5), np.int64))[0, 2].tolist()
    [0, 0, 256, 0, 0]
    """
    bits = np.zeros(dx.shape, np.uint16)
    values = [np.ascontiguousarray(a, np.float64) for a in (dx, dy)]
    steps = np.ascontiguousarray(stride, np.int64)
    _test(values[0], values[1], steps, half, scaled, threshold, noise, min_neighbours, bits)
    return bits


@njit(nogil=True, cache=True)
def _test(
    dx: Any, dy: Any, stride: Any, half: Any, scaled: Any, threshold: Any, noise: Any, few: Any, bits: Any
) -> Any:
    pairs, height, width = dx.shape
    size = (2 * half + 1) ** 2
    near, scratch = np.empty((2, size)), np.empty(size)
    for m in range(pairs):
        for y in range(height):
            for x in range(width):
                if not (np.isfinite(dx[m, y, x]) and np.isfinite(dy[m, y, x])):
                    continue
                count, s = 0, stride[m, y, x]
                for a in range(-half, half + 1):
                    for b in range(-half, half + 1):
                        i, j = y + a * s, x + b * s
                        if (a == 0 and b == 0) or i < 0 or j < 0 or i >= height or j >= width:
                            continue
                        if np.isfinite(dx[m, i, j]) and np.isfinite(dy[m, i, j]):
                            near[0, count], near[1, count] = dx[m, i, j], dy[m, i, j]
                            count += 1
                if count < few:
                    bits[m, y, x] = flags.FEW_NEIGHBOURS
                    continue
                for c in range(2):
                    scratch[:count] = near[c, :count]
                    middle = median(scratch, count)
                    for k in range(count):
                        scratch[k] = abs(near[c, k] - middle)
                    spread = median(scratch, count)
                    away = abs((dx if c == 0 else dy)[m, y, x] - middle)
                    limit = threshold * (spread + noise) if scaled else max(threshold * spread, noise)
                    if away > limit:
                        bits[m, y, x] = flags.OUTLIER
