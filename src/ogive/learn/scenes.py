"""Scenes of one's own as something to learn from: which are held out, and tiles of the others.

A scene is held out as a whole: a tile beside one that was learned from shows the same clouds and the same sun.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from .. import quality
from ..blocks import Windows
from ..diagnose import triangles_of
from ..errors import GridError, PairError
from ..kernels._flow_field import inner
from ..kernels.flow import HornSchunck, Level

LEGS = {2: ((0, 1), (1, 0)), 3: ((0, 1), (1, 2), (0, 2), (1, 0), (2, 1), (2, 0))}
"""What is matched in a tile of so many dates: forwards, then the same backwards."""
CHAPTER, REPEATS = 8, 4
"""So many tiles are made, each is learned from so many times; then come new ones."""
TRIES, ENOUGH = 6, 0.6
"""Places that are tried for a tile with this share of usable pixels."""
SHARE = 4
"""Every fourth scene is held out, and at least three."""
MULTIPLE, SMALLEST = 8, 64
"""Width of a tile: a multiple of this, and at least that [px]."""
CHOSEN = 500
"""Most triplets that are looked at as what may be held out."""
Dates = tuple[int, ...]


class Tile(NamedTuple):
    """The same ground at two or three dates.

    `levels` as `HornSchunck` sees them, the field that it found for each of `LEGS` in `starts` (n, 2, h + 2, w + 2);
    the `images` (dates, bands, h, w) themselves, 0 where masked, in units of their mean difference between neighbours,
    and where they are `valid` (dates, h, w).
    """

    levels: list[Level]
    images: NDArray[np.float32]
    valid: NDArray[np.bool_]
    starts: NDArray[np.float32]


@dataclass(frozen=True)
class Split:
    """Positions in the cube's time: scenes held out, their triplets, and the triplets and pairs of all others.

    Examples
    --------
    >>> pairs = pd.DataFrame([(i, j) for i in range(6) for j in range(i + 1, 6)], columns=["i1", "i2"])
    >>> Split.of(pairs)
    Split(held_out=(0, 1, 2), judged=((0, 1, 2),), learned=((3, 4, 5),))
    """

    held_out: Dates
    judged: tuple[Dates, ...]
    learned: tuple[Dates, ...]

    @classmethod
    def of(cls, pairs: pd.DataFrame, held_out: Sequence[int] | None = None) -> "Split":
        """Hold out these scenes, or those that leave most to judge by: a run of dates, or a triplet.

        Raises
        ------
        PairError
            No triplet can be held out such that a pair is left to learn from.
        """
        triplets, couples = triplets_of(pairs), np.unique(pairs[["i1", "i2"]].to_numpy(np.int64), axis=0)
        scenes, most = np.unique(couples), max(3, len(np.unique(couples)) // SHARE)
        choices = [np.asarray(held_out, np.int64)] if held_out is not None else [
            *(scenes[k : k + most] for k in range(len(scenes) - most + 1)),
            *triplets[:: max(1, len(triplets) // CHOSEN)],
        ]  # fmt: skip

        def worth(choice: NDArray[np.int64]) -> tuple[int, ...]:
            judged = int(np.isin(triplets, choice).all(1).sum())
            apart, left = (int((~np.isin(rows, choice)).all(1).sum()) for rows in (triplets, couples))
            return (judged, apart, left) if judged and left else (0, 0, 0)

        best = max(choices, key=worth, default=None)
        if best is None or not any(worth(best)):
            raise PairError(
                "pairs", rule="must hold a triplet to judge by, A with B, B with C and A with C, and a pair of others",
                value=f"{len(triplets)} triplets among {len(scenes)} scenes",
                fix="at least five scenes, and wider rules of make_pairs",
            )  # fmt: skip
        judged = triplets[np.isin(triplets, best).all(1)]
        learned = triplets[(~np.isin(triplets, best)).all(1)]
        inside = {(int(a), int(b)) for t in learned for a, b in ((t[0], t[1]), (t[1], t[2]), (t[0], t[2]))}
        alone = [(int(a), int(b)) for a, b in couples if not {a, b} & set(best) and (int(a), int(b)) not in inside]
        return cls(_plain([best])[0], _plain(judged), (*_plain(learned), *alone))


def triplets_of(pairs: pd.DataFrame) -> NDArray[np.int64]:
    """Scenes (n, 3) that are matched with each other.

    Examples
    --------
    >>> triplets_of(pd.DataFrame({"i1": [0, 1, 0, 2], "i2": [1, 2, 2, 3]})).tolist()
    [[0, 1, 2]]
    """
    i1, i2 = (pairs[name].to_numpy(np.int64) for name in ("i1", "i2"))
    ab, bc, _ = triangles_of(i1, i2).T
    return np.unique(np.stack([i1[ab], i1[bc], i2[bc]], 1), axis=0)


def _plain(rows: Sequence[NDArray[np.int64]] | NDArray[np.int64]) -> tuple[Dates, ...]:
    return tuple(tuple(int(k) for k in sorted(row)) for row in rows)


class Scenes:
    """Tiles of a cube.

    Parameters
    ----------
    cube : xr.Dataset
        From `open_cube`.
    size : int
        Width of a tile, if the cube is so large [px].
    search : int
        Largest displacement [px].

    Raises
    ------
    GridError
        The cube is smaller than a tile can be.
    """

    def __init__(self, cube: xr.Dataset, size: int, search: int) -> None:
        self.shape = cube.sizes["y"], cube.sizes["x"]
        self.size = min(size, *self.shape) // MULTIPLE * MULTIPLE
        if self.size < SMALLEST:
            raise GridError("cube", rule=f"must be at least {SMALLEST} px wide", value=self.shape, fix="a larger area")
        self.kernel = HornSchunck(search=search)
        self._read = Windows(cube["image"].variable, cube["mask"].variable)

    def tile(self, dates: Dates, rng: np.random.Generator, *, back: bool) -> Tile:
        """A tile of these dates where most of it can be used, matched forwards only or also back."""
        halo, shares, found = self.kernel.halo(), list[float](), list[Any]()
        core = np.s_[halo : halo + self.size, halo : halo + self.size]
        while len(found) < TRIES and max(shares, default=0.0) < ENOUGH:
            corner = [int(rng.integers(n - self.size + 1)) for n in self.shape]
            ys, xs = ((c - halo, c + self.size + halo) for c in corner)
            images, masks = zip(*(self._read(scene, ys, xs) for scene in dates))
            valid = [quality.usable(mask) & quality.finite(image) for image, mask in zip(images, masks)]
            shares.append(float(np.mean(np.logical_and.reduce(valid)[core])))
            found.append((images, valid))
        return tile(self.kernel, *found[int(np.argmax(shares))], back=back)


def tile(
    kernel: HornSchunck, images: Sequence[NDArray[np.float32]], valid: Sequence[NDArray[np.bool_]], *, back: bool
) -> Tile:
    """Windows of the same ground, (h, w) or (bands, h, w), the kernel's halo included, as a tile.

    Examples
    --------
    >>> kernel, rng = HornSchunck(), np.random.default_rng(0)
    >>> images = [rng.standard_normal((64 + 2 * kernel.halo(),) * 2).astype("f4")] * 2
    >>> made = tile(kernel, images, [np.isfinite(image) for image in images], back=False)
    >>> made.images.shape, made.starts.shape
    ((2, 1, 64, 64), (1, 2, 66, 66))
    """
    halo = kernel.halo()
    prepared = [kernel.prepare(image, ok) for image, ok in zip(images, valid)]
    legs = LEGS[len(images)]
    starts = [inner(kernel.field(prepared[i], prepared[j]), halo) for i, j in legs[: None if back else len(legs) // 2]]
    core = np.s_[halo:-halo, halo:-halo]
    return Tile(
        [window.inner(halo).levels[0] for window in prepared],
        np.stack([
            [_scaled(band[core], ok[core]) for band in image.reshape(-1, *ok.shape)]
            for image, ok in zip(images, valid)
        ]),
        np.stack([ok[core] for ok in valid]), np.stack(starts),
    )  # fmt: skip


def _scaled(image: NDArray[np.float32], ok: NDArray[np.bool_]) -> NDArray[np.float32]:
    """A band in units of its mean difference between neighbours, 0 where masked."""
    clean = np.where(ok, image, np.float32(0))
    steps = np.concatenate([np.abs(np.diff(clean, axis=axis))[_both(ok, axis)] for axis in (0, 1)])
    unit = steps.mean(dtype=np.float64) if steps.any() else 1.0
    return np.asarray(clean / np.float32(unit))


def _both(ok: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    n = ok.shape[axis]
    return np.take(ok, range(1, n), axis) & np.take(ok, range(n - 1), axis)
