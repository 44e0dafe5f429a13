"""Which pairs a network is trained with, and which it never sees: whole years of glaciers, never single tiles.

Tiles of one pair look alike, and so do pairs that share an image or a summer: a network that has seen one of them is
not tested by the others. So all images of a glacier's year go to one split, and a pair of images of two goes to none.
"""

from collections.abc import Hashable, Mapping, Sequence
from itertools import product
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import ParameterError

SPLITS = ("train", "validation", "test")
Unit = TypeVar("Unit", bound=Hashable)
_EMPTY = np.array([5.0, 1.0, 1.0])
"""What it costs to leave a split empty: nothing else costs more than 4."""
_FEW = 8
"""So many glacier-years are tried in all 3^8 ways."""


def assign(tiles: Mapping[tuple[Unit, Unit], int], ratios: Sequence[float], seed: int) -> dict[Unit, str]:
    """A split for each glacier-year: as near to the ratios, and with as few pairs left out, as whole years allow.

    Parameters
    ----------
    tiles : mapping
        How many tiles the pairs between two glacier-years, or within one, have.
    ratios : sequence of float
        Shares of train, validation, test.
    seed : int
        Decides between what fits alike.

    Raises
    ------
    ParameterError
        Ratios that are not three shares, that of train above 0.

    Notes
    -----
    What is made least: the distances of the shares from the ratios, and the share of tiles left out; an empty split
    costs as much as all tiles, an empty train more than anything. A tile left out then costs half as much as one in the
    wrong split. Up to eight years are tried in every way. More start in train and move, alone or two that pairs join,
    as long as that helps.

    Examples
    --------
    >>> within = {("a", "a"): 80, ("b", "b"): 11, ("c", "c"): 9}
    >>> assign(within, (0.8, 0.1, 0.1), seed=0)
    {'a': 'train', 'b': 'test', 'c': 'validation'}
    >>> sorted(assign({("a", "b"): 90, ("b", "c"): 5, ("c", "d"): 10}, (0.9, 0, 0.1), seed=0).values())
    ['test', 'test', 'train', 'train']
    """
    if len(ratios) != 3 or min(ratios) < 0 or ratios[0] == 0:
        rule = "must be shares of train, validation and test, that of train above 0"
        raise ParameterError("ratios", rule=rule, value=tuple(ratios), fix="(0.81, 0.09, 0.10)")
    names = sorted({unit for pair in tiles for unit in pair}, key=str)
    units = [names[k] for k in np.random.default_rng(seed).permutation(len(names))]
    place = {unit: k for k, unit in enumerate(units)}
    joined = np.array([[place[one], place[two]] for one, two in tiles]).T
    counts, shares = np.array(list(tiles.values()), np.float64), np.array(ratios) / sum(ratios)
    if len(units) <= _FEW:
        ways = np.array(list(product(range(len(SPLITS)), repeat=len(units))))
        best = ways[_costs(ways, joined, counts, shares).argmin()]
    else:
        best = _climbed(len(units), joined, counts, shares)
    return {unit: SPLITS[best[place[unit]]] for unit in names}


def _costs(ways: NDArray[Any], joined: NDArray[Any], counts: Any, shares: Any) -> NDArray[np.float64]:
    """What each way (ways, units) to split costs [share of all tiles]."""
    first, second = ways[:, joined[0]], ways[:, joined[1]]
    kept = np.stack([((first == k) & (second == k)) @ counts for k in range(len(SPLITS))], 1)
    every, empty = kept.sum(1, keepdims=True), (kept == 0) & (shares > 0)
    apart = np.abs(kept / np.maximum(every, 1) - shares).sum(1)
    return np.asarray(apart + 1 - every[:, 0] / counts.sum() + empty @ _EMPTY)


def _climbed(units: int, joined: NDArray[Any], counts: Any, shares: Any) -> NDArray[Any]:
    """The best way that single moves, and moves of two joined years, lead to from all in train."""
    best = np.zeros(units, np.int64)
    moves = [[k] for k in range(units)] + [[int(a), int(b)] for a, b in joined.T if a != b]
    cost = np.inf
    while True:
        ways = np.repeat(best[None], len(moves) * len(SPLITS), 0)
        for row, (move, split) in enumerate(product(moves, range(len(SPLITS)))):
            ways[row, move] = split
        costs = _costs(ways, joined, counts, shares)
        if costs.min() >= cost:
            return best
        best, cost = ways[costs.argmin()], costs.min()
