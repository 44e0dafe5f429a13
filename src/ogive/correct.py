"""Corrections from ground that does not move: the shift of every pair, and its error as seen, not as modelled.

Two images are registered to each other only to a fraction of a pixel, and that offset is in every vector of the
pair. Where the ground is stable the velocity must be zero, so its median there *is* the offset, and its scatter there
is the error of one vector. The raw store is never changed: this is a function of what was read back from it.
"""

import zlib

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from . import grid
from .errors import GridError, MaskError, ParameterError
from .provenance import record

Float = NDArray[np.float64]

NMAD = 1.4826
"""Turns a median absolute deviation into the sigma of a normal distribution."""
CLIP = 3.0
"""Vectors beyond so many robust sigmas are not stable ground: mismatches, snow, shadows."""
ROUNDS = 10
"""Most rounds of clipping; two or three are enough where the mask is right."""
PAIRS_AT_ONCE = 64
"""Pairs whose stable vectors are in memory together: 64 x 20 000 x 3 x 4 B = 15 MB."""

_SEEN = (
    "1.4826 MAD of stable ground and the error of the shift, in quadrature, where stable_shift_flag is 1; "
    "else the modelled error"
)

_SCALED = "; scaled to the scatter of stable ground, with the error of the shift in quadrature"


def modelled_error(
    date_dt: ArrayLike, resolution: float, *, matching_px: float = 0.1, registration_px: float = 0.2
) -> NDArray[np.float32]:
    """Error of one velocity component that a pair gets before any stable ground is looked at.

    Parameters
    ----------
    date_dt : array_like, any shape
        Days between the images.
    resolution : float
        Pixel size of the images [m].
    matching_px : float
        1 sigma of the sub-pixel match [px]. 0.1: what good matchers reach on ice with texture.
    registration_px : float
        1 sigma of the registration of two images [px]. 0.2: multi-temporal Sentinel-2 and Landsat without refinement.

    Returns
    -------
    array of float32, as `date_dt`
        1 sigma [meter/year].

    Raises
    ------
    ParameterError
        A baseline or the resolution is not positive.

    Examples
    --------
    >>> modelled_error([365.0, 36.5], 10.0, matching_px=0.3, registration_px=0.4).tolist()
    [5.0, 50.0]
    """
    days = np.asarray(date_dt, np.float64)
    if not resolution > 0:
        raise ParameterError("resolution", rule="must be positive [m]", value=resolution)
    if not (days > 0).all():
        fix = "order the images of a pair by time"
        raise ParameterError("date_dt", rule="must be positive [day]", value=float(np.min(days)), fix=fix)
    error = resolution * np.hypot(matching_px, registration_px) * grid.YEAR_DAYS / days
    return np.asarray(error, np.float32)


def stable_ground(
    velocity: xr.Dataset, mask: xr.DataArray, *, min_count: int = 50, max_count: int = 20_000, floor: float = 0.1
) -> xr.Dataset:
    """Subtract the median velocity of stable ground from every pair, and take the errors from its scatter.

    Parameters
    ----------
    velocity : xr.Dataset
        dims (mid_date, y, x), with `vx_error`, `vy_error` on mid_date.
    mask : xr.DataArray
        bool (y, x) on the grid of the velocity, True on stable ground (`ogive.masks.stable`).
    min_count : int
        Fewer valid stable vectors give no shift. 50: the median is then known to 0.2 of the error of one vector.
    max_count : int
        Most stable vectors used for a pair. If there are more, every k-th of them in raster order is used; they
        overlap anyway. 20 000: bounds the memory, and the median to 0.01 of the error of one vector.
    floor : float
        Smallest error, as a displacement between the two images [m]. 0.1: a hundredth of a 10 m pixel.

    Returns
    -------
    xr.Dataset
        `vx`, `vy`, `v` corrected. On mid_date: `vx_stable_shift`, `vy_stable_shift` (subtracted) and their errors
        [meter/year], `stable_count_stationary`, `stable_shift_flag` (1 stationary ground, 0 none: nothing is
        subtracted and the given errors stay), `vx_error`, `vy_error` = 1.4826 MAD of stable ground and the error of
        the shift, in quadrature. Errors of single vectors, `vx_error_px` and `vy_error_px`, are multiplied by
        `vx_error_scale`, `vy_error_scale` so that they are those of the vectors on stable ground (`scale`; never by
        less than 1), and the error of the shift is added in quadrature. The velocities stay lazy if they were; stable
        ground is read once, now: a block of the result then needs no other block.

    Raises
    ------
    MaskError
        No stable pixel, or a mask that is not boolean.
    GridError
        The mask lies on another grid.
    ParameterError
        The velocity has no errors to fall back on.

    Notes
    -----
    Median and MAD are iterated with a cut at 3 robust sigmas in either component. The error of the median is
    1.2533 sigma / sqrt(n_eff); overlapping chips are not independent, so n_eff = n min(1, a / c), a = area of the cells
    behind one vector, c = area of a chip (`chip_size_width`).

    Examples
    --------
    >>> from ogive.testing.velocity_cubes import velocity_cube
    >>> velocity, _ = velocity_cube("100")
    >>> mask = xr.ones_like(velocity["vx"].isel(mid_date=0), bool)
    >>> corrected = stable_ground(velocity, mask)
    >>> bool(abs(corrected["vx"].median(("y", "x"))).max() < abs(velocity["vx"].median(("y", "x"))).max())
    True
    """
    for name in ("vx_error", "vy_error"):
        if name not in velocity.variables:
            fix = "add the error of modelled_error(date_dt, resolution)"
            raise ParameterError("velocity", rule=f"needs {name!r} for pairs without stable ground", fix=fix)
    points, area = _points(velocity, mask, max_count)
    seen = _reduce(velocity, points, area=area, floor=floor)
    stationary = seen["count"] >= min_count
    out = velocity.copy()
    for name in ("vx", "vy"):
        shift = seen[f"{name}_shift"].where(stationary, 0.0).astype(np.float32)
        attrs = velocity[name].attrs
        out[name] = (velocity[name] - shift).astype(velocity[name].dtype)
        out[name].attrs = attrs
        error = seen[f"{name}_error"].where(stationary, velocity[f"{name}_error"])
        shift_error = seen[f"{name}_shift_error"].where(stationary)
        out[f"{name}_error"] = _rate(error, f"error of {name}, 1 sigma of one vector", _SEEN)
        out[f"{name}_stable_shift"] = _rate(shift, f"shift subtracted from {name}: median of stable ground")
        out[f"{name}_stable_shift_error"] = _rate(shift_error, f"standard error of {name}_stable_shift")
        if f"{name}_error_px" in velocity:
            factor = seen[f"{name}_scale"].where(stationary, 1.0).astype(np.float32)
            single, attrs = velocity[f"{name}_error_px"], velocity[f"{name}_error_px"].attrs
            out[f"{name}_error_px"] = np.hypot(single * factor, shift_error.fillna(0)).astype(single.dtype)
            out[f"{name}_error_px"].attrs = attrs | {"description": attrs.get("description", "") + _SCALED}
            text = f"by what the errors of single vectors of {name} were multiplied to fit stable ground"
            out[f"{name}_error_scale"] = factor.assign_attrs(units="1", long_name=text)
    out["v"] = np.hypot(out["vx"], out["vy"])
    out["v"].attrs = velocity["v"].attrs if "v" in velocity else {"units": "meter/year", "grid_mapping": "mapping"}
    out["stable_count_stationary"] = seen["count"].astype(np.uint16)
    out["stable_count_stationary"].attrs = {"units": "count", "long_name": "number of stable vectors used"}
    out["stable_shift_flag"] = stationary.astype(np.uint8)
    out["stable_shift_flag"].attrs = {
        "long_name": "what the stable shift was taken from",
        "flag_values": np.array([0, 1], np.uint8),
        "flag_meanings": "no_correction stationary_ground",
    }
    return record(
        out, "correct.stable_ground", min_count=min_count, max_count=max_count, floor=floor,
        stable_cells=int(mask.sum()), mask_crc=zlib.crc32(np.ascontiguousarray(mask.values).tobytes()),
    )  # fmt: skip


def stable_statistics(
    vx: Float, vy: Float, error_x: Float, error_y: Float, chip: Float, days: Float, *, area: float, floor: float
) -> Float:
    """Shift, its error, the error of one vector and the scale of given errors, from the stable vectors of each pair.

    Parameters
    ----------
    vx, vy : (M, n) float
        Velocities of n stable cells [meter/year], NaN where not valid.
    error_x, error_y : (M, n) float
        Their given errors, 1 sigma [meter/year], NaN where there is none.
    chip : (M, n)
        Chip side [m], 0 where unknown.
    days : (M,)
        Days between the images.
    area : float
        Area behind one of the n cells [m2].
    floor : float
        Smallest error, as a displacement [m].

    Returns
    -------
    (M, 9) float64
        vx: shift, error of the shift, error of one vector; the same for vy; count of vectors used; scale of the given
        errors of vx and vy (`scale`), 1 where there are none. NaN without any vector.

    Examples
    --------
    >>> v = np.array([[1.0, 2.0, 3.0, 2.0, 500.0]])
    >>> none = np.full(v.shape, np.nan)
    >>> stable_statistics(v, v, none, none, 0 * v, np.array([365.0]), area=1.0, floor=0.1)[0, [0, 6]].tolist()
    [2.0, 4.0]
    """
    out = np.full((len(vx), 9), np.nan)
    out[:, 7:] = 1.0
    for row, (x, y, side, dt) in enumerate(zip(vx, vy, chip, days, strict=True)):
        used = np.isfinite(x) & np.isfinite(y)
        vectors = np.stack([x[used], y[used]]).astype(np.float64)
        sizes = side[used]
        for _ in range(ROUNDS):
            if vectors.shape[1] == 0:
                break
            away = np.abs(vectors - np.median(vectors, 1, keepdims=True))
            # A sharp peak of equal values has MAD 0: the floor keeps its neighbours.
            limit = CLIP * np.maximum(NMAD * np.median(away, 1, keepdims=True), floor * grid.YEAR_DAYS / dt)
            keep = (away <= limit).all(0)
            if keep.all():
                break
            vectors, sizes = vectors[:, keep], sizes[keep]
        count = vectors.shape[1]
        out[row, 6] = count
        if count:
            middle = np.median(vectors, 1)
            scatter = NMAD * np.median(np.abs(vectors - middle[:, None]), 1)
            known = sizes[sizes > 0]
            footprint = float(np.median(known)) ** 2 if known.size else area
            independent = max(count * min(1.0, area / footprint), 1.0)
            error = 1.2533 * scatter / np.sqrt(independent)
            one = np.maximum(np.hypot(scatter, error), floor * grid.YEAR_DAYS / dt)
            out[row, :6] = np.stack([middle, error, one], 1).ravel()
            out[row, 7] = scale(x - middle[0], error_x[row])
            out[row, 8] = scale(y - middle[1], error_y[row])
    return out


def scale(values: Float, errors: Float) -> float:
    """By what errors must be multiplied to be those of values that should be zero; never less than 1.

    Four fifths of what brings 68.3 % within one sigma and a fifth of what brings 95 % within 1.96: shadows and snow
    make the tails of a pair heavier than a normal distribution's, and the first alone would not cover them. 1 with
    fewer than 50 values.

    Examples
    --------
    >>> noise = np.random.default_rng(0).standard_normal(10_000)
    >>> round(scale(3 * noise, np.ones(10_000)), 1), scale(0.1 * noise, np.ones(10_000))
    (3.0, 1.0)
    """
    known = np.isfinite(values) & np.isfinite(errors) & (errors > 0)
    if known.sum() < 50:
        return 1.0
    inner, outer = np.quantile(np.abs(values[known]) / errors[known], [0.683, 0.95])
    return max(1.0, float((4 * inner + outer / 1.96) / 5))


def _points(velocity: xr.Dataset, mask: xr.DataArray, max_count: int) -> tuple[dict[str, xr.DataArray], float]:
    """The stable cells to use, and the area behind each [m2]. They depend on the mask only, not on chunks."""
    if mask.dims != ("y", "x") or any(
        mask.sizes[d] != velocity.sizes[d] or not np.allclose(mask[d].values, velocity[d].values, rtol=0, atol=1e-3)
        for d in ("y", "x")
    ):
        found = f"{dict(mask.sizes)} against y {velocity.sizes['y']}, x {velocity.sizes['x']}"
        fix = "make it with ogive.masks.stable(velocity)"
        raise GridError("mask", rule="must lie on the (y, x) grid of the velocity", value=found, fix=fix)
    if mask.dtype != bool:
        raise MaskError("mask", rule="must be boolean, True on stable ground", value=mask.dtype, fix="compare it first")
    iy, ix = np.nonzero(mask.values)
    if iy.size == 0:
        rule = "a mask that covers everything leaves no stable ground"
        raise MaskError("mask", rule=rule, value=f"0 of {mask.size} cells", fix="use other outlines or less buffer")
    step = -(-iy.size // max_count)
    resolution = grid.geobox_of(velocity).resolution
    points = {name: xr.DataArray(i[::step], dims="stable") for name, i in (("y", iy), ("x", ix))}
    return points, step * abs(resolution.x * resolution.y)


def _reduce(
    velocity: xr.Dataset, points: dict[str, xr.DataArray], *, area: float, floor: float
) -> dict[str, xr.DataArray]:
    """`stable_statistics` of the pairs, read point by point from the blocks that hold stable ground."""
    chip = velocity["chip_size_width"] if "chip_size_width" in velocity else xr.zeros_like(velocity["vx"], np.uint16)
    days = grid.pair_days(velocity)
    nothing = xr.full_like(velocity["vx"], np.nan)
    errors = [velocity.get(f"{name}_error_px", nothing) for name in ("vx", "vy")]
    used = (velocity["vx"], velocity["vy"], *errors, chip)
    arrays = [a.transpose("mid_date", "y", "x").isel(points) for a in used]
    if any(a.chunks is not None for a in arrays):
        data = [a.chunk({"mid_date": PAIRS_AT_ONCE, "stable": -1}).data for a in arrays]
        rows = days.chunk({"mid_date": PAIRS_AT_ONCE}).data
        table = da.blockwise(
            stable_statistics, "mk", *(o for d in data for o in (d, "mn")), rows, "m",
            area=area, floor=floor, concatenate=True, new_axes={"k": 9}, dtype=float, meta=np.empty((0, 0)),
        ).compute()  # fmt: skip
    else:
        vx, vy, error_x, error_y, side = (a.values for a in arrays)
        table = stable_statistics(vx, vy, error_x, error_y, side, days.values, area=area, floor=floor)
    names = [f"{v}_{what}" for v in ("vx", "vy") for what in ("shift", "shift_error", "error")]
    names += ["count", "vx_scale", "vy_scale"]
    coords = {"mid_date": velocity["mid_date"]}
    return {name: xr.DataArray(table[:, k], coords, "mid_date") for k, name in enumerate(names)}


def _rate(values: xr.DataArray, long_name: str, description: str = "") -> xr.DataArray:
    attrs = {"units": "meter/year", "long_name": long_name} | ({"description": description} if description else {})
    return values.astype(np.float32).assign_attrs(attrs)
