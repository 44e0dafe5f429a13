"""What every estimator gets: the pairs of a block, as plain arrays."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Real = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True)
class Observations:
    """N image pairs at P pixels.

    Parameters
    ----------
    t1, t2 : (N,) float64
        Acquisition times of the first and the second image [day], t1 < t2.
    vx, vy : (N, P) float
        Mean velocity between them [meter/year of 365 d]; NaN where missing.
    ex, ey : (N, P) or (N, 1) float64
        Its 1-sigma error [meter/year]; one column serves all pixels. A pair without a positive error is not used.
    """

    t1: NDArray[np.float64]
    t2: NDArray[np.float64]
    vx: Real
    vy: Real
    ex: NDArray[np.float64]
    ey: NDArray[np.float64]
