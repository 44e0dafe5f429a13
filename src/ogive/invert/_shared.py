"""Errors that all pairs of one image share: their size from the residuals, and what they do to a series.

With b_i the position error of image i, a pair measures A P + b_two - b_one + noise. Pairs of one image are then
correlated, positively where it is their first or their last in both, and no number of them averages b away. The
fit stays as it is; its covariance becomes that of the correlated errors (a sandwich). The variance of b_i is one
share of the typical variance v_i of the pairs of image i, the same for all images of a pixel: it follows from the
products of residuals that share an image, through sums by image, (sum)^2 - sum of squares. A short series of few pairs
per image can follow b altogether; that shows in residuals smaller than the given errors (`unseen`).
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ._banded import VECTOR, respond, solve

EIGHT = (0,) * VECTOR
FOUR = (0,) * 4
PRIOR_PAIRS = 2.0
"""An image counts as if its pairs were so many more: images of few pairs tell little about the share."""
UNSEEN = (0.7, 0.9)
"""Scales of the residuals, in given errors, up to which all that is missing counts as unseen, and from which none."""
LARGEST_SHARE = 0.48
"""Two images cannot explain more than the variance of their pair; some of that is noise of the match."""


def signs(count: int, lane: int) -> NDArray[np.float64]:
    """Fixed signs +1 and -1 without visible order (SplitMix64), to probe quadratic forms.

    Examples
    --------
    >>> signs(5, 0).tolist()
    [-1.0, 1.0, -1.0, 1.0, -1.0]
    """
    with np.errstate(over="ignore"):
        z = (np.arange(count, dtype=np.uint64) + np.uint64(lane << 32)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.where((z ^ (z >> np.uint64(31))) & np.uint64(1), 1.0, -1.0)


@njit(nogil=True, cache=True, error_model="numpy")
def share(images: Any, pairs: Any, work: Any, system: Any, probes: Any, scale: Any, typical: Any) -> Any:
    """Variance of image errors as a share of `typical` (M,), and the degrees of freedom that the fit has used.

    Fills `typical` with the variance of the pairs of every image [m^2]. What the fit absorbs is measured on probes
    of the same design: two of independent errors, two of image errors.
    """
    knot, _ = images
    one, two, dx, dy, precision, _ = pairs
    weight, _, _, totals, position = work
    _, band, _, _, _, n, width, stride = system
    pair_signs, image_signs, use, rhs, at, sums, squares = probes
    count, size = one.size, knot.size
    weights, scratch = totals[:, 0], totals[:, 1]
    weights[:] = 0.0
    scratch[:] = 0.0
    for j in range(count):
        for i in (one[j], two[j]):
            weights[i] += weight[j]
            scratch[i] += weight[j] / precision[j]
    for i in range(size):
        typical[i] = scratch[i] / weights[i] if weights[i] > 0.0 else 0.0
    freedom = 0.0
    # Four probes y of the pairs, their sums by image, and the response of the fit.
    for turn in range(2):
        sums[: 4 * size] = 0.0
        squares[: 4 * size] = 0.0
        for j in range(count):
            if weight[j] == 0.0:
                continue
            i, k = one[j], two[j]
            root = 1.0 / np.sqrt(weight[j])
            bi, bk = np.sqrt(typical[i]), np.sqrt(typical[k])
            for lane in range(4):
                if lane < 2:
                    y = pair_signs[use[j], lane] * root
                else:
                    y = image_signs[k, lane - 2] * bk - image_signs[i, lane - 2] * bi
                if turn:
                    y -= at[4 * k + lane] - at[4 * i + lane]
                c = weight[j] * y
                sums[4 * i + lane] -= c
                sums[4 * k + lane] += c
                squares[4 * i + lane] += c * c
                squares[4 * k + lane] += c * c
        if turn:
            break
        before = _excess(sums, squares, weights, typical, 4, 0) + _excess(sums, squares, weights, typical, 4, 1)
        to_knots(images, sums, rhs, 4)
        solve(band[stride:], n, width, stride, rhs[4:], FOUR)
        to_images(images, rhs, at, 4)
        for i in range(size):
            freedom += 0.5 * (sums[4 * i] * at[4 * i] + sums[4 * i + 1] * at[4 * i + 1])
    noise = _excess(sums, squares, weights, typical, 4, 0) + _excess(sums, squares, weights, typical, 4, 1) - before
    shared = _excess(sums, squares, weights, typical, 4, 2) + _excess(sums, squares, weights, typical, 4, 3)
    for c in range(2):
        d = dx if c == 0 else dy
        sums[:size] = 0.0
        squares[:size] = 0.0
        for j in range(count):
            i, k = one[j], two[j]
            r = weight[j] * (d[j] - (position[k, c] - position[i, c]))
            sums[i] -= r
            sums[k] += r
            squares[i] += r * r
            squares[k] += r * r
        found = _excess(sums, squares, weights, typical, 1, 0)
        before = found if c == 0 else before + found
    if not shared > 0.0:
        return 0.0, freedom
    return min(max((before - scale**2 * noise) / shared, 0.0), LARGEST_SHARE * scale**2), freedom


@njit(nogil=True, cache=True, error_model="numpy")
def unseen(scale: Any) -> Any:
    """Share of the given variance of a pair, for each of its images, that its residual does not show.

    Given errors are those of stable ground. Where pairs agree with each other much better than that, they agree in
    what their images have in common, and a flexible fit follows it. A little better says nothing: errors are known to
    a tenth.
    """
    certain, none = UNSEEN
    return 0.5 * max(1.0 - scale * scale, 0.0) * min(max((none - scale) / (none - certain), 0.0), 1.0)


@njit(nogil=True, cache=True, error_model="numpy")
def _excess(sums: Any, squares: Any, weights: Any, typical: Any, lanes: Any, lane: Any) -> Any:
    """Sum over the images of products of different pairs, in variances of a pair."""
    total = 0.0
    for i in range(weights.size):
        if weights[i] > 0.0:
            spread = weights[i] + PRIOR_PAIRS / typical[i]
            at = lanes * i + lane
            total += (sums[at] * sums[at] - squares[at]) / (typical[i] * spread * spread)
    return total


@njit(nogil=True, cache=True, error_model="numpy")
def to_knots(images: Any, values: Any, knots: Any, lanes: Any) -> Any:
    """Sums by image to sums by knot."""
    knot, fraction = images
    knots[:] = 0.0
    for i in range(knot.size):
        for lane in range(lanes):
            value = values[lanes * i + lane]
            knots[lanes * knot[i] + lane] += (1.0 - fraction[i]) * value
            knots[lanes * (knot[i] + 1) + lane] += fraction[i] * value
    knots[:lanes] = 0.0


@njit(nogil=True, cache=True, error_model="numpy")
def to_images(images: Any, knots: Any, values: Any, lanes: Any) -> Any:
    """Values at knots to values at images."""
    knot, fraction = images
    for i in range(knot.size):
        for lane in range(lanes):
            a, b = knots[lanes * knot[i] + lane], knots[lanes * (knot[i] + 1) + lane]
            values[lanes * i + lane] = a + fraction[i] * (b - a)


@njit(nogil=True, cache=True, error_model="numpy")
def variances(images: Any, pairs: Any, work: Any, system: Any, reads: Any, errors: Any, buffers: Any, out: Any) -> Any:
    """Variances of functionals of P [m^2], for one component; `VECTOR` columns of the covariance at a time.

    Neighbouring windows read the same times, so the covariance is taken at *nodes* that all of them can be read from.

    Parameters
    ----------
    reads : (nodes, begin, spans, factors, knots, fractions)
        Node = (knots, fractions). The entries `begin[i]` to `begin[i + 1]` of `spans` are the functionals that hold
        node i, `factors` times. `knots` and `fractions` (F, 2): where the displacement starts and ends.
    errors : (scale, share, typical)
    buffers : (rhs, at, scaled, sums)
    out : (F,) float64
    """
    _, band, _, _, _, n, width, stride = system
    (node, node_fraction), begin, spans, factors, knots, fractions = reads
    scale, part, _ = errors
    rhs, at, scaled, sums = buffers
    out[:] = 0.0
    cap(pairs, work, errors)
    for start in range(0, node.size, VECTOR):
        stop = min(start + VECTOR, node.size)
        rhs[:] = 0.0
        _place(rhs, node, node_fraction, start, stop, 1.0)
        solve(band[stride:], n, width, stride, rhs[VECTOR:], EIGHT)
        if part > 0.0:
            to_images(images, rhs, at, VECTOR)
            correlate(pairs, work, errors, at, scaled, sums)
            to_knots(images, sums, rhs, VECTOR)
            _place(rhs, node, node_fraction, start, stop, scale**2)
            solve(band[stride:], n, width, stride, rhs[VECTOR:], EIGHT)
        for i in range(start, stop):
            lane = i - start
            for entry in range(begin[i], begin[i + 1]):
                span, moved = spans[entry], 0.0
                for end in range(2):
                    k, f = knots[span, end], fractions[span, end]
                    a, b = rhs[VECTOR * k + lane], rhs[VECTOR * (k + 1) + lane]
                    moved += (2 * end - 1) * (a + f * (b - a))
                out[span] += factors[entry] * moved
    if part == 0.0:
        out *= scale**2


@njit(nogil=True, cache=True, error_model="numpy")
def _place(rhs: Any, node: Any, fraction: Any, start: Any, stop: Any, factor: Any) -> Any:
    """Add P at the nodes, one in each lane."""
    for i in range(start, stop):
        k, f, lane = node[i], fraction[i], i - start
        rhs[VECTOR * k + lane] += factor * (1.0 - f)
        rhs[VECTOR * (k + 1) + lane] += factor * f
    rhs[:VECTOR] = 0.0


@njit(nogil=True, cache=True, error_model="numpy")
def cap(pairs: Any, work: Any, errors: Any) -> Any:
    """What the images take from the noise of every pair, weighted, as `correlate` wants it.

    The variance of a pair stays what its weight says; the images explain at most nearly all of it.
    """
    one, two = pairs[0], pairs[1]
    weight, taken = work[0], work[2]
    scale, part, typical = errors
    seen = part - unseen(scale)
    for j in range(one.size):
        w = weight[j]
        most = seen * (typical[one[j]] + typical[two[j]])
        taken[j] = -w * min(w * most, 2.0 * LARGEST_SHARE * scale**2)


@njit(nogil=True, cache=True, error_model="numpy")
def correlate(pairs: Any, work: Any, errors: Any, at: Any, scaled: Any, sums: Any) -> Any:
    """From positions `at` of images to A^T W (covariance that pairs share) W A of them, in `VECTOR` lanes."""
    weight, taken = work[0], work[2]
    _, part, typical = errors
    respond_all(pairs, (at,), (weight,), sums)
    for i in range(typical.size):
        for lane in range(VECTOR):
            scaled[VECTOR * i + lane] = part * typical[i] * sums[VECTOR * i + lane]
    respond_all(pairs, (scaled, at), (weight, taken), sums)


@njit(nogil=True, cache=True, error_model="numpy")
def respond_all(pairs: Any, fields: Any, factors: Any, sums: Any) -> Any:
    """Sums by image of the factors of all pairs times the differences of the fields."""
    one, two = pairs[0], pairs[1]
    sums[:] = 0.0
    start = 0
    while start < one.size:
        stop = start + 1
        while stop < one.size and one[stop] == one[start]:
            stop += 1
        respond(fields, factors, sums, two, np.uint64(one[start]), np.uint64(start), np.uint64(stop), EIGHT)
        start = stop
