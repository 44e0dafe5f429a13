"""Scores of a dense matcher on glacier pairs whose motion is known: error, bias along the flow, honesty of sigma."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from ..kernels import Kernel
from .flow_pairs import FlowPair

EDGE = 16
"""No scored cell is closer to an edge [px]."""
FASTER = 0.5
"""Bias is that of ice that moves farther than this [px]."""


def prepared(kernel: Kernel, image: NDArray[Any]) -> Any:
    """A whole image, of one band or several, with a halo of no data."""
    halo = kernel.halo()
    wider = [(0, 0)] * (image.ndim - 2) + [(halo, halo)] * 2
    inside = np.pad(np.ones(image.shape[-2:], bool), halo)
    return kernel.prepare(np.pad(image.astype(np.float32), wider), inside)


def scored(kernel: Kernel, pair: FlowPair) -> dict[str, NDArray[Any]]:
    """Errors, sigmas and truth (2, n) of the cells on ice, those without a vector included."""
    found = kernel.match(prepared(kernel, pair.image1), prepared(kernel, pair.image2))
    n, step = found["dy"].shape[0], kernel.step
    centre = step * np.arange(n) + (step - 1) / 2
    truth = np.stack(pair.displacement(centre[:, None], centre[None]))
    ice = pair.scored[: n * step, : n * step].reshape(n, step, n, step)[:, step // 2 - 1 : step // 2 + 1]
    ice = np.asarray(ice[..., step // 2 - 1 : step // 2 + 1].all((1, 3)))
    inner = (centre > EDGE) & (centre < len(pair.scored) - EDGE)
    where = ice & inner[:, None] & inner
    vectors, sigma = (np.stack([found[f"dy{n}"], found[f"dx{n}"]]) for n in ("", "_error"))
    return {"error": (vectors - truth)[:, where], "sigma": sigma[:, where], "truth": truth[:, where]}


def figures(kernel: Kernel, pairs: Sequence[FlowPair]) -> dict[str, float]:
    """RMSE, median and along-flow bias as means over the pairs; error bars over all of their vectors.

    z: NMAD of error / sigma, 1 is honest; rank: Spearman's correlation of |error| and sigma.

    Examples
    --------
    >>> from ogive.kernels import NCC
    >>> from ogive.testing.flow_pairs import flow_pair
    >>> bool(figures(NCC(search=6), [flow_pair("easy", 3, 96)])["RMSE"] < 0.3)
    True
    """
    each, pooled = [], []
    for pair in pairs:
        part = scored(kernel, pair)
        found = np.isfinite(part["error"][0])
        e, truth = part["error"][:, found], part["truth"][:, found]
        length, speed = np.hypot(*e), np.hypot(*truth)
        fast = speed > FASTER
        along = (e * truth).sum(0)[fast] / speed[fast]
        each.append((found.mean(), np.sqrt((length**2).mean()), np.median(length), along.sum() / speed[fast].sum()))
        pooled.append(np.stack([e.ravel(), part["sigma"][:, found].ravel()]))
    valid, rmse, median, bias = np.mean(each, axis=0)
    e, sigma = np.concatenate(pooled, axis=1)
    e, sigma = e[np.isfinite(sigma)], sigma[np.isfinite(sigma)]
    z = e / sigma
    spread = 1.4826 * np.median(np.abs(z - np.median(z)))
    return {
        "valid": valid, "RMSE": rmse, "error": median, "bias along": bias, "z": float(spread),
        "rank": float(spearmanr(np.abs(e), sigma)[0]),
    }  # fmt: skip
