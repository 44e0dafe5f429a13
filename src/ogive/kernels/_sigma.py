"""The error of one vector from its own chip: residual, its autocorrelation, noisy gradients.

The textbook covariance s² H⁻¹ of a least-squares fit takes the residual for white and the gradients for exact, and is
1.5 to 10 times too small on images of glaciers. Here the residual's autocorrelation up to two pixels away, taken from
the chip itself, enters twice: in the variance of the gradient-weighted residual (the "sandwich" covariance of Liang &
Zeger, 1986, doi:10.1093/biomet/73.1.13), and in the part of the gradients' squares that is noise.
"""

from typing import Any

import numpy as np
from numba import njit

from ._icgn import CHIP, GX, GY, PAD, A, U, W

LAGS = ((0, 1), (0, 2), (1, -2), (1, -1), (1, 0), (1, 1), (1, 2), (2, -2), (2, -1), (2, 0), (2, 1), (2, 2))
"""Half of the pixel pairs up to two apart in y and x; the others are their mirror images."""
STENCIL = np.array([-1.0, 9.0, -45.0, 0.0, 45.0, -9.0, 1.0]) / 60
"""The derivative that `gradients` takes."""
NOISE = (float(STENCIL @ STENCIL), float(2 * STENCIL[1:] @ STENCIL[:-1]), float(2 * STENCIL[2:] @ STENCIL[:-2]))
"""Variance of a gradient per variance of the image, by the correlation of pixels 0, 1 and 2 apart."""
FITTED = 4
"""Numbers fitted to a chip: two of displacement, gain and offset."""
WHOLLY_ALIGNED = 0.95
"""Largest correlation of the two gradients that is believed once their noise is taken off."""
SMALLEST = 0.1
"""Least share of its simple value to which a squared gradient, or the variance, is corrected."""


@njit(**CHIP)
def lagged(n: Any, lag: Any, work: Any) -> Any:
    """Sums over pixels `lag` apart: pixels, residual, squared gradients yy, yx, xx (yx of both orders together)."""
    pixels = ee = yy = yx = xx = np.float32(0)
    for q in range(U(n)):
        p = q + lag
        pixels += work[W, q] * work[W, p]
        ee += work[A, q] * work[A, p]
        yy += work[GY, q] * work[GY, p]
        yx += work[GY, q] * work[GX, p] + work[GX, q] * work[GY, p]
        xx += work[GX, q] * work[GX, p]
    return pixels, ee, yy, yx, xx


@njit(**CHIP)
def peakedness(n: Any, count: Any, energy: Any, work: Any) -> Any:
    """Kurtosis of the residual, 1 for a normal distribution; `energy` is its sum of squares."""
    quartic = np.float32(0)
    for q in range(U(n)):
        square = work[A, q] * work[A, q]
        quartic += square * square
    return count * quartic / (np.float32(3) * energy * energy)


@njit(**CHIP)
def variances(chip: Any, work: Any) -> Any:
    """Variances of dy and dx [px²] from the weights, centred gradients and residual (plane A) in `work`; NaN if none.

    Removing mean, gain and displacement from a residual makes its autocorrelation smaller than that of the noise. By
    how much is known for white noise, and added back.
    """
    pitch = chip + PAD
    n = chip * pitch
    count, energy, hyy, hyx, hxx = lagged(n, U(0), work)
    hyx *= 0.5
    det = hyy * hxx - hyx * hyx
    if not (count > FITTED and det > 0):
        return np.nan, np.nan
    s2 = energy / (count - FITTED)
    jyy, jyx, jxx = float(hyy), float(hyx), float(hxx)
    fy = fx = NOISE[0]
    for ky, kx in LAGS:
        pixels, ee, yy, yx, xx = lagged(n, U(ky * pitch + kx), work)
        if not (pixels > 0 and s2 > 0):
            continue
        removed = pixels / count + (hxx * yy + hyy * xx - hyx * yx) / det
        rho = (ee / s2 + removed) / pixels
        jyy += 2.0 * rho * yy
        jyx += rho * yx
        jxx += 2.0 * rho * xx
        if kx == 0:
            fy += NOISE[ky] * rho
        if ky == 0:
            fx += NOISE[kx] * rho
    noise = 0.5 * s2 * count
    # The noise of image 1 times its own derivative sums up to nothing: half of the noise in the gradients is harmless.
    # It counts where the residual is: twice where one half of a chip is cloud, which ice does not resemble at all.
    harmless = 0.5 * noise * peakedness(n, count, energy, work) if s2 > 0 else 0.0
    jyy, jxx = jyy - min(harmless * fy, 0.5 * jyy), jxx - min(harmless * fx, 0.5 * jxx)
    hyy, hxx = max(hyy - noise * fy, SMALLEST * hyy), max(hxx - noise * fx, SMALLEST * hxx)
    most = WHOLLY_ALIGNED * np.sqrt(hyy * hxx)
    hyx = min(max(hyx, -most), most)
    det = hyy * hxx - hyx * hyx
    iyy, ixx, iyx = hxx / det, hyy / det, -hyx / det
    vy = iyy * (jyy * iyy + jyx * iyx) + iyx * (jyx * iyy + jxx * iyx)
    vx = iyx * (jyy * iyx + jyx * ixx) + ixx * (jyx * iyx + jxx * ixx)
    return s2 * max(vy, SMALLEST * iyy), s2 * max(vx, SMALLEST * ixx)
