"""Scale on paper: what a tile and the world cost, by arithmetic from assumptions that can be read and changed.

Nothing here is measured; the two speeds are those of docs/tracking.md and docs/inversion.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import report
from report import Row, Table

import ogive as og
from ogive.blocks import BATCH, Blocks

SPANS = {"5-100 d": (5.0, 100.0), "5-400 d": (5.0, 400.0), "all pairs": (5.0, 4000.0)}
KERNEL = og.NCC(chip=(16, 32, 64), search=8, step=8)
"""That of the whole chain in docs/tracking.md."""
STORED = 17.0
"""Bytes of a cell and pair on disk, as recorded (`scale_run.record`)."""
report.FORMATS.update(
    dict.fromkeys(("pairs", "blocks", "core-h", "EUR", "invert core-h"), ",.0f")
    | dict.fromkeys(("reads, M", "GET, M", "PUT, M", "fetched TB", "decoded TB", "stored TB"), ",.2f")
    | dict.fromkeys(("match EUR", "invert EUR", "requests EUR", "store EUR/month", "egress EUR", "low", "high"), ",.0f")
)


@dataclass(frozen=True)
class Assumptions:
    """Everything that the tables rest on."""

    size: int = 10980
    """Pixels along a Sentinel-2 tile of 109.8 km."""
    years: int = 5
    revisit: int = 5
    """Days between passes of one relative orbit, two satellites."""
    kept: float = 0.6
    """Share of the scenes that pass the limit on cloud."""
    kernel: og.NCC = KERNEL
    tile: int = 128
    """Cells along a block's side, as `track` chooses for this step."""
    batch: int = BATCH
    """Pairs in a block."""
    points: float = 64_800
    """Matches of the whole chain a second and core (docs/tracking.md)."""
    values: float = 1.4e6
    """Values of pairs inverted a second and core: 703 px/s with 2000 pairs (docs/inversion.md)."""
    internal: int = 1024
    """Pixels along an internal tile of the scenes' files."""
    image_bytes: float = 1.66
    """Of a compressed pixel: 200 MB for a band of 10 m."""
    mask_bytes: float = 0.15
    """The same of the scene classification, on 20 m."""
    stored: float = STORED
    variables: int = 13
    core_hour: tuple[float, float, float] = (0.04, 0.01, 0.06)
    """EUR; usual, spot, dear."""
    get: float = 0.4
    """EUR for a million reads."""
    put: float = 5.0
    """EUR for a million writes."""
    month: float = 22.0
    """EUR for a TB and month."""
    egress: float = 80.0
    """EUR for a TB out of the region, where the workers are elsewhere."""
    tiles: int = 1600
    """Areas of 100 km with glaciers, without Antarctica and the inner ice sheet of Greenland."""
    ice: float = 573_000
    """Area of these glaciers [km2]."""


@dataclass(frozen=True)
class Job:
    """What one job takes."""

    scenes: float
    pairs: float
    blocks: float
    reads: float
    """Windows: an image and a mask of each scene of a block's batch."""
    gets: float
    fetched: float
    decoded: float
    stored: float
    """Bytes."""
    match: float
    invert: float
    """Core-hours."""

    def times(self, factor: float) -> "Job":
        """As many jobs."""
        return Job(**{name: factor * value for name, value in vars(self).items()})


def tile(given: Assumptions, days: tuple[float, float]) -> Job:
    """One tile, all pairs of a span of days."""
    passes = given.years * 365 // given.revisit
    kept = np.sort(np.random.default_rng(1).choice(passes, round(given.kept * passes), replace=False))
    table = pd.DataFrame(
        {"id": [f"scene {k}" for k in kept], "datetime": pd.Timestamp(2018, 1, 1) + pd.to_timedelta(5 * kept, "D")}
    )
    pairs = og.make_pairs(table, days=days, same_orbit=False)[["i1", "i2"]].to_numpy()
    cells = given.size // given.kernel.step
    layout = Blocks((cells, cells), len(pairs), given.tile, given.batch, given.kernel.step, given.kernel.halo())
    tiles = len(layout.chunks[1]) * len(layout.chunks[2])
    windows = tiles * sum(len(np.unique(pairs[layout.rows(b)])) for b in range(len(layout.chunks[0])))
    side = given.tile * given.kernel.step + 2 * given.kernel.halo()
    # A window that lies anywhere touches side / internal + 1 tiles of a file along each axis.
    touched = [(pixels / given.internal + 1) ** 2 for pixels in (side, side / 2)]
    fetched = given.internal**2 * (touched[0] * given.image_bytes + touched[1] * given.mask_bytes)
    values = len(pairs) * cells**2
    return Job(
        len(kept), len(pairs), layout.count, 2 * windows, windows * (sum(touched) + 2), windows * fetched,
        windows * side**2 * 5, values * given.stored, values / given.points / 3600, values / given.values / 3600,
    )  # fmt: skip


def jobs(given: Assumptions) -> Iterator[tuple[str, Job]]:
    """The rows of the tables."""
    tiles = {name: tile(given, days) for name, days in SPANS.items()}
    yield from ((f"a tile, {name}", job) for name, job in tiles.items())
    yield "a tile, 5-400 d, batch 256", tile(replace(given, batch=256), SPANS["5-400 d"])
    square = (given.size * 0.01) ** 2
    for name in ("5-100 d", "5-400 d"):
        yield f"the world's tiles, {name}", tiles[name].times(given.tiles)
        yield f"its ice and as much ground, {name}", tiles[name].times(2 * given.ice / square)


def tables(given: Assumptions | None = None) -> Iterator[Table]:
    """What it takes, and what it costs."""
    given = given or Assumptions()
    every = list(jobs(given))
    work = [
        Row(
            name,
            {
                "pairs": job.pairs, "blocks": job.blocks, "reads, M": job.reads / 1e6,
                "GET, M": job.gets / 1e6, "fetched TB": job.fetched / 1e12, "decoded TB": job.decoded / 1e12,
                "stored TB": job.stored / 1e12, "core-h": job.match, "invert core-h": job.invert,
            },
        )
        for name, job in every
    ]  # fmt: skip
    yield Table("Work", f"{given.years} years, {given.kernel.step * 10} m between vectors.", work)
    usual, low, high = given.core_hour
    prices = []
    for name, job in every:
        requests = job.gets * given.get / 1e6 + job.blocks * (given.variables + 1) * given.put / 1e6
        hours = job.match + job.invert
        prices.append(
            Row(
                name,
                {
                    "match EUR": job.match * usual, "invert EUR": job.invert * usual, "requests EUR": requests,
                    "EUR": hours * usual + requests, "low": hours * low + requests, "high": hours * high + requests,
                    "store EUR/month": job.stored / 1e12 * given.month, "egress EUR": job.fetched / 1e12 * given.egress,
                },
            )
        )  # fmt: skip
    about = (
        f"At {usual} EUR for a core-hour; low and high at {low} and {high}. Egress only where workers are elsewhere."
    )
    yield Table("Price", about, prices)
