"""Variables that every series has, and how a speed follows from its components."""

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .. import flags
from ..errors import ParameterError
from ._observations import Variable

RATE: dict[str, Any] = {"units": "meter/year", "grid_mapping": "mapping"}
ONE: dict[str, Any] = {"units": "1", "grid_mapping": "mapping"}
_PAIRS = "number of pairs"

COMMON: dict[str, Variable] = {
    "vx": Variable(
        "t",
        np.float32,
        {**RATE, "standard_name": "land_ice_surface_x_velocity", "long_name": "window mean of vx"},
    ),
    "vy": Variable(
        "t",
        np.float32,
        {**RATE, "standard_name": "land_ice_surface_y_velocity", "long_name": "window mean of vy"},
    ),
    "v": Variable(
        "t", np.float32, {**RATE, "standard_name": "land_ice_surface_velocity", "long_name": "norm of vx and vy"}
    ),
    "vx_error": Variable("t", np.float32, {**RATE, "long_name": "error of vx, 1 sigma of the window mean"}),
    "vy_error": Variable("t", np.float32, {**RATE, "long_name": "error of vy, 1 sigma of the window mean"}),
    "v_error": Variable("t", np.float32, {**RATE, "long_name": "error of v, propagated from vx and vy"}),
    "count": Variable("t", np.float32, {**ONE, "long_name": "effective number of pairs: sum of the robust weights"}),
    "flag": Variable("t", np.uint16, {**flags.attributes(), "grid_mapping": "mapping"}),
    "n_pairs": Variable("", np.uint32, {**ONE, "long_name": f"{_PAIRS} with a velocity and an error"}),
    "n_screened": Variable("", np.uint32, {**ONE, "long_name": f"{_PAIRS} that screening left out"}),
    "n_rejected": Variable("", np.uint32, {**ONE, "long_name": f"{_PAIRS} with robust weight 0"}),
    "dt_max": Variable(
        "", np.float32, {"units": "days", "grid_mapping": "mapping", "long_name": "longest baseline let in; inf = any"}
    ),
}
"""Variables of every method: `t` where they have a time, dtype, attributes."""


def speed(
    vx: NDArray[Any], vy: NDArray[Any], vx_error: NDArray[Any], vy_error: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Norm of a mean velocity, and its error. Components are averaged before, never speeds: noise makes those larger.

    Examples
    --------
    >>> v, error = speed(np.array([3.0, 0.0]), np.array([4.0, 0.0]), np.array([1.0, 2.0]), np.array([2.0, 2.0]))
    >>> v.tolist(), error.round(3).tolist()
    ([5.0, 0.0], [1.709, 2.0])
    """
    x, y, sx, sy = (np.asarray(a, np.float64) for a in (vx, vy, vx_error, vy_error))
    norm = np.hypot(x, y)
    with np.errstate(invalid="ignore", divide="ignore"):
        # Ice that does not move has no direction: its speed is as uncertain as one component.
        error = np.where(norm > 0, np.hypot(x * sx, y * sy) / norm, np.hypot(sx, sy) / np.sqrt(2))
    return norm, error


def with_speed_error(velocity: xr.Dataset) -> xr.Dataset:
    """The same with `v_error` [meter/year], lazily where it is lazy: of each vector, of its pair where it has none.

    Raises
    ------
    ParameterError
        There is no error in it.

    Examples
    --------
    >>> from ogive.testing.velocity_cubes import velocity_cube
    >>> with_speed_error(velocity_cube("100")[0])["v_error"].dims
    ('mid_date', 'y', 'x')
    """
    if "v_error" in velocity:
        return velocity
    errors = []
    for name in ("vx_error", "vy_error"):
        known = [velocity[n] for n in (f"{name}_px", name) if n in velocity]
        if not known:
            raise ParameterError("dataset", rule=f"needs {name} or v_error", fix="show another layer")
        errors.append(known[0] if len(known) == 1 else known[0].fillna(known[1]))
    vectors = (velocity["vx"], velocity["vy"], *errors)
    error = xr.apply_ufunc(_speed_error, *vectors, dask="parallelized", output_dtypes=[np.float32])
    attrs = {**RATE, "long_name": "error of v, propagated from vx and vy"}
    return velocity.assign(v_error=error.transpose(*velocity["vx"].dims).assign_attrs(attrs))


def _speed_error(*vectors: NDArray[Any]) -> NDArray[np.float32]:
    return np.where(np.isfinite(vectors[0]), speed(*vectors)[1], np.nan).astype(np.float32)
