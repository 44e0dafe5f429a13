"""Variables that every series has, and how a speed follows from its components."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import flags
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
