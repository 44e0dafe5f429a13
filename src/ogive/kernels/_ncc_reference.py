"""Masked zero-mean normalised cross-correlation, slow and obvious: what every backend is tested against.

One point at a time, float64, direct sums, exactly as the definition reads: with m the product of both masks over the
chip, all means and variances are taken over the pixels where both images are valid.
"""

import numpy as np
from numpy.typing import NDArray


def surface(
    first: NDArray[np.float32],
    first_valid: NDArray[np.bool_],
    second: NDArray[np.float32],
    second_valid: NDArray[np.bool_],
    min_pixels: int,
) -> NDArray[np.float64]:
    """Correlation of one chip with every displacement of its search window.

    Parameters
    ----------
    first, first_valid : (c, c)
        The chip of image 1 and its mask.
    second, second_valid : (c + 2 r, c + 2 r)
        The search window of image 2 and its mask.
    min_pixels : int
        A displacement with fewer common pixels has no value.

    Returns
    -------
    (2 r + 1, 2 r + 1) float64
        Correlation -1 ... 1; NaN where there are too few pixels; 0 where a chip is flat.
    """
    c = first.shape[0]
    size = second.shape[0] - c + 1
    out = np.full((size, size), np.nan)
    for oy in range(size):
        for ox in range(size):
            both = first_valid & second_valid[oy : oy + c, ox : ox + c]
            if both.sum() < min_pixels:
                continue
            a = first[both].astype(np.float64)
            b = second[oy : oy + c, ox : ox + c][both].astype(np.float64)
            a, b = a - a.mean(), b - b.mean()
            energy = np.sqrt((a * a).sum() * (b * b).sum())
            out[oy, ox] = (a * b).sum() / energy if energy > 1e-12 * c * c else 0.0
    return out


def peak(r: NDArray[np.float64]) -> tuple[float, float, float, float, float, bool, bool, float]:
    """Read one surface: `(dy, dx, corr, second peak, mean |r|, on the rim, refined, share searched)`.

    Displacements in px relative to the centre of the search window, dy down. The quadric is solved by least squares on
    its design matrix, independently of the closed form that the fast backends use.
    """
    radius = r.shape[0] // 2
    filled = np.where(np.isnan(r), -2.0, r)
    oy, ox = np.unravel_index(int(np.argmax(filled)), r.shape)
    # A displacement without value beside the peak is a rim too: the true one may lie beyond it.
    around = np.pad(r, 1, constant_values=np.nan)[oy : oy + 3, ox : ox + 3]
    rim = bool(np.isnan(around).any())
    away = filled.copy()
    away[max(0, oy - 2) : oy + 3, max(0, ox - 2) : ox + 3] = -2.0
    fy = fx = 0.0
    refined = False
    if not rim:
        j, i = (g.ravel().astype(float) for g in np.mgrid[-1:2, -1:2])
        design = np.stack([np.ones(9), i, j, i * i / 2, i * j, j * j / 2], axis=1)
        _, gx, gy, hxx, hxy, hyy = np.linalg.lstsq(design, np.log(np.maximum(around.ravel(), 0.1)), rcond=None)[0]
        determinant = hxx * hyy - hxy * hxy
        if hxx < 0 and determinant > 0:
            x, y = -(hyy * gx - hxy * gy) / determinant, -(hxx * gy - hxy * gx) / determinant
            if abs(x) <= 1 and abs(y) <= 1:
                fx, fy, refined = float(x), float(y), True
    return (
        oy - radius + fy,
        ox - radius + fx,
        float(filled[oy, ox]),
        float(away.max()),
        float(np.nanmean(np.abs(r))),
        rim,
        refined,
        float(np.isfinite(r).mean()),
    )
