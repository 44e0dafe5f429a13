"""`screen`: what screening would leave out, as a variable of the velocity."""

from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numba import njit
from numpy.typing import NDArray

from ..errors import ParameterError
from ._observations import Observations
from ._pairs import pairs_of
from .screening import MEANINGS, Screening, check_groups, gather, rules_of

_DEFAULT = Screening()


def screen(velocity: xr.Dataset, screening: Screening = _DEFAULT) -> xr.Dataset:
    """Mark the pairs that an inversion would leave out, pixel by pixel; nothing is deleted.

    Parameters
    ----------
    velocity : xr.Dataset
        dims (mid_date, y, x), as for `ogive.invert`.
    screening : Screening

    Returns
    -------
    xr.Dataset
        The velocity with `screened` (mid_date, y, x) uint8: CF flags, 0 = may enter. Lazy if the velocity is; a block
        holds all pairs.

    Raises
    ------
    ParameterError
        As `ogive.invert`; or `screening` is none.

    Examples
    --------
    >>> from ogive.testing.velocity_cubes import velocity_cube
    >>> velocity, _ = velocity_cube("100")
    >>> screened = screen(velocity, Screening(dt_max=180))["screened"]
    >>> int((screened[:, 5, 5] == 2).sum()), screened.attrs["flag_meanings"].split()[1]
    (18, 'baseline_too_long')
    """
    if not isinstance(screening, Screening):
        raise ParameterError("screening", rule="must be a Screening", value=screening)
    pairs, _, _ = pairs_of(velocity)
    check_groups(screening, pairs["groups"])
    arrays = [velocity[name].transpose("mid_date", ...) for name in ("vx", "vy", "vx_error", "vy_error")]
    fixed = (pairs, screening)
    data: Any
    if all(a.chunks is None for a in arrays[:2]):
        data = _block(*(a.values for a in arrays), fixed=fixed)
    else:
        chunks = {**arrays[0].chunksizes, **arrays[1].chunksizes}
        operands: list[Any] = []
        for a in arrays:
            whole = a.chunk({name: -1 if name == "mid_date" else chunks[name] for name in a.dims})
            operands += [whole.data, tuple(map(str, whole.dims))]
        data = da.blockwise(
            _block, ("mid_date", "y", "x"), *operands, fixed=fixed, dtype=np.uint8, concatenate=True,
            meta=np.empty((0, 0, 0), np.uint8),
        )  # fmt: skip
    attrs = {
        "long_name": "reason why screening leaves the pair out, 0 = may enter an inversion",
        "standard_name": "status_flag",
        "flag_masks": np.array(list(MEANINGS), np.uint8),
        "flag_meanings": " ".join(MEANINGS.values()),
        "grid_mapping": "mapping",
    }
    return velocity.assign(screened=(("mid_date", "y", "x"), data, attrs))


def _block(
    vx: NDArray[Any], vy: NDArray[Any], ex: NDArray[Any], ey: NDArray[Any], *, fixed: tuple[dict[str, Any], Screening]
) -> NDArray[np.uint8]:
    """Reasons of one block, (N, y, x)."""
    pairs, screening = fixed
    count = vx.shape[0]
    flat = [np.ascontiguousarray(a, np.promote_types(a.dtype, np.float32)).reshape(count, -1) for a in (vx, vy)]
    errors = [np.ascontiguousarray(a, np.float64).reshape(count, -1) for a in (ex, ey)]
    observations = Observations(vx=flat[0], vy=flat[1], ex=errors[0], ey=errors[1], **pairs)
    return reasons_of(observations, screening).reshape(vx.shape)


def reasons_of(observations: Observations, screening: Screening | None) -> NDArray[np.uint8]:
    """Bits of `screening.MEANINGS` for N pairs at P pixels, (N, P)."""
    reasons = np.empty(observations.vx.shape, np.uint8)
    _pixels(observations.arrays, rules_of(screening, observations), reasons)
    return reasons


@njit(nogil=True, cache=True)
def _pixels(data: Any, rules: Any, out: Any) -> Any:
    pairs, pixels = out.shape
    reasons, scratch = np.empty(pairs, np.uint8), np.empty(pairs)
    for pixel in range(pixels):
        gather(data, pixel, rules, reasons, scratch)
        out[:, pixel] = reasons
