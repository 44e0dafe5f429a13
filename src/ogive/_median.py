"""Median in compiled code: in place, no allocation, no random pivot, so the same bits whatever calls it."""

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(nogil=True, cache=True)
def median(values: NDArray[np.float64], count: int) -> float:
    """Median of the first `count` values, which it reorders. No allocation, no random pivot.

    Examples
    --------
    >>> median(np.array([5.0, 1.0, 3.0, 2.0]), 4)
    2.5
    """
    half = count // 2
    low, high = 0, count - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if half <= j:
            high = j
        elif half >= i:
            low = i
        else:
            break
    upper: float = values[half]
    if count % 2:
        return upper
    lower: float = values[0]
    for i in range(1, half):
        lower = max(lower, values[i])
    return 0.5 * (lower + upper)
