"""NCC on a GPU with CuPy: the displacement-major scheme written as whole-array operations.

The same function runs on NumPy arrays, and that is how it is tested on a machine without a GPU. It has not been run on
a GPU yet; no speed is claimed for it. Sums over a chip are made from block sums, as on the CPU, with the masked formula
everywhere, so it agrees with the other backends to rounding, not to the bit.
"""

import functools
import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger("ogive")


@functools.cache
def available() -> bool:
    """True where CuPy is installed and sees a usable GPU; logs the reason once."""
    try:
        import cupy

        found = int(cupy.cuda.runtime.getDeviceCount()) > 0
    except ImportError:
        log.debug("NCC backend: numba (cupy is not installed)")
        return False
    except Exception as error:  # cupy raises its own class, which only exists where it is installed
        log.debug("NCC backend: numba (no usable GPU: %s)", error)
        return False
    log.debug("NCC backend: %s", "cupy" if found else "numba (no GPU)")
    return found


def match(
    first: NDArray[np.float32],
    first_valid: NDArray[np.bool_],
    second: NDArray[np.float32],
    second_valid: NDArray[np.bool_],
    shape: tuple[int, ...],
    geometry: tuple[int, int, int, int, int],
    min_pixels: int,
    xp: Any = None,
) -> NDArray[np.float32]:
    """Match all cells of a window.

    Parameters
    ----------
    first, second : (h, w) float32
        Filtered images, 0 where masked.
    first_valid, second_valid : (h, w) bool
    shape : (ny, nx)
        Output cells.
    geometry : tuple of int
        First pixel of the first chip, search radius, chip, step, block width [px].
    min_pixels : int
        Least number of common pixels.
    xp : module, optional
        Array module; CuPy by default.

    Returns
    -------
    (8, ny, nx) float32
        dy, dx, corr, second peak, mean |r|, rim, refined, share searched; as `_ncc_numba.match`.
    """
    if xp is None:
        import cupy

        xp = cupy
    origin, radius, chip, step, block = geometry
    size = 2 * radius + 1
    a, b = (xp.asarray(im, np.float32) for im in (first, second))
    ma, mb = (xp.asarray(v).astype(np.float32) for v in (first_valid, second_valid))
    images = [(a, b), (ma, mb), (a, mb), (ma, b), (a * a, mb), (ma, b * b)]
    height, width = ((n - 1) * step + chip for n in shape)

    def chips(p: Any) -> Any:
        """Sums over the chip of every cell: pixels -> blocks -> chips."""
        blocks = p.reshape(height // block, block, width // block, block).sum((1, 3))
        n, stride = chip // block, step // block
        rows = sum(blocks[k : blocks.shape[0] - n + 1 + k] for k in range(n))
        return sum(rows[:, k : rows.shape[1] - n + 1 + k] for k in range(n))[::stride, ::stride]

    def cut(im: Any, oy: int, ox: int) -> Any:
        return im[origin + oy : origin + oy + height, origin + ox : origin + ox + width]

    r = xp.empty((size * size, *shape), np.float32)
    for d in range(size * size):
        oy, ox = d // size - radius, d % size - radius
        ab, n, sa, sb, qa, qb = (chips(cut(f, 0, 0) * cut(g, oy, ox)) for f, g in images)
        count = xp.maximum(n, 1)
        va, vb = qa - sa * sa / count, qb - sb * sb / count
        textured = (va > 1e-6 * qa) & (vb > 1e-6 * qb)
        value = (ab - sa * sb / count) / xp.sqrt(xp.where(textured, va * vb, 1))
        r[d] = xp.where(n < min_pixels, -2, xp.where(textured, value, 0))
    out = _peaks(r, size, xp)
    return np.asarray(out if xp is np else xp.asnumpy(out), np.float32)


def _peaks(r: Any, size: int, xp: Any) -> Any:
    """Peak, second peak, mean |r| and quadric of all surfaces r[displacement, y, x] at once."""
    radius = size // 2
    arg = r.argmax(0)
    oy, ox = arg // size, arg % size
    rim = (oy == 0) | (ox == 0) | (oy == size - 1) | (ox == size - 1)
    ys, xs = (g.reshape(-1, 1, 1) for g in xp.mgrid[:size, :size])
    far = xp.maximum(abs(ys - oy), abs(xs - ox)) > 2
    allowed = r > -1.5
    mean = xp.where(allowed, abs(r), 0).sum(0) / xp.maximum(allowed.sum(0), 1)
    safe = xp.where(rim, radius * size + radius, arg)
    nine = {
        (j, i): xp.take_along_axis(r, (safe + j * size + i)[None], 0)[0].astype(np.float64)
        for j in (-1, 0, 1)
        for i in (-1, 0, 1)
    }
    whole = ~rim
    for value in nine.values():
        whole &= value > -1.5
    rim = ~whole  # the masks forbid a displacement beside the peak: a rim as well
    gx = sum(i * v for (_, i), v in nine.items()) / 6
    gy = sum(j * v for (j, _), v in nine.items()) / 6
    hxy = sum(i * j * v for (j, i), v in nine.items()) / 4
    hxx = sum((i * i - 2 / 3) * v for (_, i), v in nine.items())
    hyy = sum((j * j - 2 / 3) * v for (j, _), v in nine.items())
    determinant = hxx * hyy - hxy * hxy
    ok = whole & (hxx < 0) & (determinant > 0)
    determinant = xp.where(ok, determinant, 1)
    dx, dy = -(hyy * gx - hxy * gy) / determinant, -(hxx * gy - hxy * gx) / determinant
    ok &= (abs(dx) <= 1) & (abs(dy) <= 1)
    return xp.stack(
        [
            oy - radius + xp.where(ok, dy, 0),
            ox - radius + xp.where(ok, dx, 0),
            r.max(0),
            xp.where(far, r, -2).max(0),
            mean,
            rim,
            ok,
            allowed.mean(0),
        ]
    )
