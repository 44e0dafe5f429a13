"""What dense flow compares: normalised gradients, at several pixel sizes.

A pixel of any level depends on pixels at fixed distances only, in sums of fixed order: where a window begins changes no
bit of what its halo covers. Pixels of level k are means of 2^k x 2^k pixels counted from the window's first one, and
windows begin on whole cells.
"""

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .. import enhance
from .subpixel import JIT

STRENGTH = 16
"""The strength of the gradient is that of the pixels up to so far away [px]."""
F = np.float32
Planes = NDArray[np.float32]
Mask = NDArray[np.bool_]


def features(image: Planes, valid: Mask, bound: float) -> tuple[Planes, Mask]:
    """Sobel gradient (y, x) of every pixel over its local strength E, the root mean square of a component nearby.

    Several bands are one gradient of so many more components: its length and E are those of all bands together, so that
    a band without contrast, flat or saturated, has hardly a part in it, and all together weigh as much as one.

    Parameters
    ----------
    image : (h, w) or (bands, h, w) float32
        0 where not valid.
    valid : (h, w) bool
    bound : float
        g / sqrt(|g|^2 + (bound E)^2): below `bound` times E a gradient counts less, above it only its direction does.
        Infinite: g / E.

    Returns
    -------
    planes : (2 bands, h, w) float32
    valid : (h, w) bool
        False where a neighbour is masked, or all is flat in every band.

    Examples
    --------
    >>> ramp = np.add.outer(3 * np.arange(50.0), 4 * np.arange(50.0)).astype("f4")
    >>> planes, valid = features(ramp, np.ones(ramp.shape, bool), bound=0.01)
    >>> planes[:, 25, 25].round(3).tolist()
    [0.6000000238418579, 0.800000011920929]
    """
    bands = image.reshape(-1, *valid.shape)
    planes = np.empty((2 * len(bands), *valid.shape), np.float32)
    length, strength, known = np.zeros(valid.shape, np.float32), np.zeros(valid.shape, np.float32), np.zeros_like(valid)
    for c, band in enumerate(bands):
        (gy, ok), (gx, _) = enhance.sobel_y(band, valid), enhance.sobel_x(band, valid)
        count, total = _boxed(ok.astype(np.float32)), _boxed(F(0.5) * (gy * gy + gx * gx))
        # A gradient that is only the rounding of a bright constant has no direction.
        ok &= total > F(1e-12) * count * band * band
        planes[2 * c], planes[2 * c + 1] = np.where(ok, gy, F(0)), np.where(ok, gx, F(0))
        length += np.where(ok, gy * gy + gx * gx, F(0))
        strength += np.where(ok, total / np.maximum(count, F(1)), F(0))
        known |= ok
    scale = strength if math.isinf(bound) else length + F(bound * bound) * strength
    planes *= np.where(known, F(1) / np.sqrt(np.where(known, scale, F(1))), F(0))
    return planes, known


def _boxed(plane: Planes) -> Planes:
    """Sums over STRENGTH px on each side, from the centre outwards: no bit depends on where the window begins."""
    for axis in (0, 1):
        wide = np.pad(plane, [(STRENGTH, STRENGTH) if k == axis else (0, 0) for k in (0, 1)])
        parts = [
            wide[k : k + len(plane)] if axis == 0 else wide[:, k : k + plane.shape[1]] for k in range(2 * STRENGTH + 1)
        ]
        total = parts[STRENGTH].copy()
        for k in range(1, STRENGTH + 1):
            total += parts[STRENGTH - k] + parts[STRENGTH + k]
        plane = total
    return plane


@njit(**JIT)
def halved(planes: Any, valid: Any) -> Any:
    """Feature planes and their mask at twice the pixel size: a binomial mean (1, 3, 3, 1) of the valid pixels.

    A coarse pixel is valid where half of the weight is.
    """
    n, h, w = planes.shape
    out, ok = np.zeros((n, h // 2, w // 2), np.float32), np.zeros((h // 2, w // 2), np.bool_)
    sums = np.empty(n, np.float32)
    for y in range(h // 2):
        for x in range(w // 2):
            total = F(0)
            sums[:] = total
            for j in range(max(2 * y - 1, 0), min(2 * y + 3, h)):
                for i in range(max(2 * x - 1, 0), min(2 * x + 3, w)):
                    if valid[j, i]:
                        inner = (j == 2 * y or j == 2 * y + 1, i == 2 * x or i == 2 * x + 1)
                        weight = F(3 if inner[0] else 1) * F(3 if inner[1] else 1)
                        total += weight
                        for c in range(n):
                            sums[c] += weight * planes[c, j, i]
            if total >= F(32):
                ok[y, x] = True
                for c in range(n):
                    out[c, y, x] = sums[c] / total
    return out, ok


@njit(**JIT)
def slopes(planes: Any, valid: Any) -> Any:
    """Central differences of the planes (along y, along x of each), and where all of their pixels are valid."""
    n, h, w = planes.shape
    out, ok = np.zeros((2 * n, h, w), np.float32), np.zeros((h, w), np.bool_)
    for y in range(1, h - 1):
        for x in range(1, w - 1):
            if valid[y, x] and valid[y - 1, x] and valid[y + 1, x] and valid[y, x - 1] and valid[y, x + 1]:
                ok[y, x] = True
                for c in range(n):
                    out[2 * c, y, x] = F(0.5) * (planes[c, y + 1, x] - planes[c, y - 1, x])
                    out[2 * c + 1, y, x] = F(0.5) * (planes[c, y, x + 1] - planes[c, y, x - 1])
    return out, ok


@njit(**JIT)
def sampled_where(valid: Any) -> Any:
    """True at (y, x) where the sixteen pixels round positions in y ... y + 1, x ... x + 1 are valid."""
    h, w = valid.shape
    out = np.zeros((h, w), np.bool_)
    for y in range(1, h - 2):
        for x in range(1, w - 2):
            good = True
            for j in range(4):
                for i in range(4):
                    good &= valid[y - 1 + j, x - 1 + i]
            out[y, x] = good
    return out
