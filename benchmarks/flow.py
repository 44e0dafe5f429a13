"""Dense flow beside NCC: error, bias, error bars, seams and cost on synthetic glaciers; the demo and a real pair.

`python benchmarks/flow.py --json benchmarks/flow.json` does all of it in twenty-five minutes, `--quick` a part
without the real data and the demo glacier. A matcher joins by its name in `MATCHERS`.
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import cases
import numpy as np
import rasterio
import report
from numpy.typing import NDArray
from report import Limit, Row, Table

from ogive import demo, flags, run, store
from ogive.kernels import KERNELS, Kernel
from ogive.local import local_items, write_items
from ogive.testing.flow_pairs import FlowPair, flow_pair
from ogive.testing.flow_scores import figures, prepared
from ogive.testing.plan import WorldSpec
from ogive.testing.scenes import make_world

MATCHERS: dict[str, Callable[[], Kernel]] = {
    "ncc": lambda: KERNELS["ncc"](search=6, backend="numba"),
    "hs_reference": lambda: KERNELS["hs_reference"](search=6),
    "hs_robust": lambda: KERNELS["hs_robust"](search=6),
    "flow_net": lambda: KERNELS["flow_net"](search=6),
    "raft": lambda: KERNELS["raft"](search=6),
    "raft_alone": lambda: KERNELS["raft"](search=6, finish=False),
}
OTHERWISE = {"raft_alone": {"name": "raft", "finish": False}}
"""What stands in a run file, where the matcher's name alone does not."""
SEEDS = range(1, 9)
"""None of them was looked at while parameters were chosen."""
MANY = range(1, 65)
"""Eight pairs say what bias is to about a percent of the motion, these to about half of one."""
TARGETS = {"easy": 0.07, "glacier": 0.20, "annual": 0.30}
"""Largest RMSE of hs_robust and flow_net on procedural texture [px]."""
BIAS = {"hs_robust": Limit("bias along", low=-0.04), "flow_net": Limit("bias along", -0.01, 0.01)}
FASTEST = {"hs_robust": 0.4, "flow_net": 0.8}
"""Most CPU seconds of a tile."""
COLOURS = "LE71400412000304SGS00_RGB.tif"
DOCS = Path(__file__).parents[1] / "docs"


BANDS = {"B4": [0], "red": [1], "B4 and red": [0, 1], "all four": [0, 1, 2, 3]}
"""Bands of the Landsat scene, as `landsat` has them."""


@cache
def landsat() -> tuple[NDArray[np.uint8], ...]:
    """Near infrared, red, green and blue of the Landsat scene."""
    with rasterio.open(cases.ALPINE) as near, rasterio.open(cases.ALPINE.with_name(COLOURS)) as colours:
        return (near.read(1), *colours.read())


@cache
def pair_of(level: str, seed: int, real: bool, size: int = 256, band: int = 0) -> FlowPair:
    """A pair; `real`: with the texture of that band of a Landsat scene."""
    return flow_pair(level, seed, size, texture=landsat()[band] if real else None, band=band)


def synthetic(quick: bool) -> Table:
    """Every matcher at every level."""
    seeds = SEEDS[:2] if quick else SEEDS
    textures = [False] if quick or not cases.ALPINE.exists() else [False, True]
    rows = []
    for real in textures:
        for level, most in TARGETS.items():
            pairs = [pair_of(level, seed, real) for seed in seeds]
            for name, make in MATCHERS.items():
                limits = []
                if name in BIAS and not real:
                    limits = [Limit("RMSE", high=most), BIAS[name], Limit("z", 0.8, 1.2)]
                texture = "Landsat texture" if real else "procedural"
                rows.append(Row(f"{level}, {texture}, {name}", figures(make(), pairs), limits))
    return Table(
        "Synthetic glaciers", f"{len(seeds)} pairs of 256 px, displacements up to 4 px, step 8; ice that is not under "
        "snow in image 2, all vectors that a matcher gives. RMSE: root mean square length of the error [px]; error: "
        "its median [px]; bias along: mean error along the flow by mean displacement; z: robust spread of error / "
        "sigma; rank: correlation of |error| and sigma by rank.", rows,
    )  # fmt: skip


def bias() -> Table:
    """Bias along the flow over many pairs, and how well that is known."""
    rows = []
    for level in TARGETS:
        for name in ("ncc", "hs_reference", "hs_robust", "flow_net"):
            kernel = MATCHERS[name]()
            each = np.array([figures(kernel, [flow_pair(level, seed)])["bias along"] for seed in MANY])
            row = {"bias along": each.mean(), "standard error": each.std(ddof=1) / len(each) ** 0.5}
            rows.append(Row(f"{level}, {name}", {k: float(v) for k, v in row.items()}))
    return Table(
        "Bias", f"Along the flow, procedural texture, mean over {len(MANY)} pairs and its standard error.", rows
    )


def several() -> Table:
    """Several bands at once, beside each alone."""
    rows = []
    for level in TARGETS:
        for name in ("hs_robust", "flow_net"):
            for words, bands in BANDS.items():
                pairs = [
                    replace(
                        parts[0], **{k: np.stack([getattr(part, k) for part in parts]) for k in ("image1", "image2")}
                    )
                    for parts in ([pair_of(level, seed, True, 256, band) for band in bands] for seed in SEEDS)
                ]
                rows.append(Row(f"{level}, {name}, {words}", figures(MATCHERS[name](), pairs)))
    return Table(
        "Several bands", "As above, with the textures of four bands of a Landsat 7 scene, in which a fifth (B4) to two "
        "fifths of the pixels are saturated; motion, light and snow are those of one pair, noise is that of each band.",
        rows,
    )  # fmt: skip


def seams(quick: bool) -> Table:
    """Tiles, each with its halo, beside one run over the whole image."""
    size, tile = (256, 128) if quick else (512, 128)
    pair, rows = pair_of("glacier", 1, False, size), []
    for name, make in MATCHERS.items():
        kernel = make()
        halo, cells = kernel.halo(), tile // kernel.step
        images = [np.pad(image.astype(np.float32), halo) for image in (pair.image1, pair.image2)]
        inside = np.pad(np.ones(pair.image1.shape, bool), halo)
        whole = kernel.match(*(kernel.prepare(image, inside) for image in images))
        apart = []
        for y in range(0, size, tile):
            for x in range(0, size, tile):
                cut = np.s_[y : y + tile + 2 * halo, x : x + tile + 2 * halo]
                part = kernel.match(*(kernel.prepare(image[cut], inside[cut]) for image in images))
                at = np.s_[y // kernel.step :, x // kernel.step :]
                for c in ("dy", "dx"):
                    apart.append(np.abs(part[c] - whole[c][at][:cells, :cells]).ravel())
        difference = np.concatenate(apart)
        difference = difference[np.isfinite(difference)]
        row = {"px": halo, "p99": float(np.percentile(difference, 99)), "same bits": float((difference == 0).mean())}
        rows.append(Row(name, row, [Limit("p99", high=0.01)]))
    return Table(
        "Seams", f"{size} px in tiles of {tile} px, each with a halo of so many px, beside one run over the whole: 99 "
        "% of the differences are below p99 [px].", rows,
    )  # fmt: skip


def cost(quick: bool) -> Table:
    """CPU seconds of a pair, preparing included."""
    rows, size = [], 512 if quick else 1024
    several = [(name, bands) for bands in (2, 4) for name in ("hs_robust", "flow_net")]
    for name, bands in [*((name, 1) for name in MATCHERS), *several]:
        kernel = MATCHERS[name]()
        row = {}
        for figure, n in (("s/tile", 256), ("s, large", size)):
            image = np.random.default_rng(0).standard_normal((bands, n, n) if bands > 1 else (n, n))
            image2 = np.roll(image, (1, 2), (-2, -1))
            took = []
            for _ in range(1 if quick else 3):
                start = time.process_time()
                kernel.match(prepared(kernel, image), prepared(kernel, image2))
                took.append(time.process_time() - start)
            row[figure] = min(took)
        row["s/Mpx"] = row["s, large"] / (size / 1000) ** 2
        limits = [Limit("s/tile", high=FASTEST[name])] if name in FASTEST and bands == 1 else []
        rows.append(Row(f"{name}, {bands} bands" if bands > 1 else name, row, limits))
    return Table(
        "Cost", f"CPU seconds of one pair on one core: tiles of 256 and {size} px, both images "
        "prepared, the halo of the tile included; the least of three. A scene is prepared once for all pairs.", rows,
    )  # fmt: skip


def demo_glacier() -> Table:
    """The demo's glacier in five scenes: pairs against the exact displacement."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(Path(folder), WorldSpec(n_sentinel2=8, n_landsat=0, start="2022-06-01", end="2022-09-01"))
        path = Path(folder) / "run.yaml"
        path.write_text(demo.run_file(world))
        for name in MATCHERS:
            kernel = {"name": name, "search": 12 if name != "hs_reference" else 6, **OTHERWISE.get(name, {})}
            config = run.load(path).model_copy(
                update={"kernel": kernel, "invert": None, "filters": {}, "output": str(Path(folder) / name)}
            )
            found = run.run(config, progress=False)
            table = demo.pair_scores(world, store.open_velocity(found.velocity)).set_index("ground")
            for ground, line in table.iterrows():
                row = {"valid": line["valid"], "RMSE": line["RMSE"], "NMAD": line["NMAD"], "68 %": line["in 68 %"]}
                rows.append(Row(f"{ground}, {name}", {k: float(v) for k, v in row.items()}))
    return Table(
        "Demo glacier", "All pairs of the demo's glacier in one summer, search 12 px (the reference: 6), no filter of "
        "vectors. RMSE of all vectors and NMAD per component [px]; 68 %: share of errors within the stated one.", rows,
    )  # fmt: skip


def yahtse() -> Table:
    """A real pair: docs/yahtse.yaml with every matcher. No truth but rock."""
    rows, speeds = [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "yahtse"
        shutil.copytree(cases.DATA / "imagery/yahtse_landsat8_2016", folder)
        shutil.copy(cases.DATA / "outlines/st_elias_rock/StEliasMtn_utm7v_rock.gmt", folder / "rock.gmt")
        write_items(local_items(folder), folder / "items.json")
        (Path(name) / "docs").mkdir()
        for file in ("yahtse.yaml", "yahtse_trunk.geojson"):
            shutil.copy(DOCS / file, Path(name) / "docs" / file)
        config = run.load(Path(name) / "docs/yahtse.yaml")
        for matcher in MATCHERS:
            search = 24 if matcher != "hs_reference" else 6
            more = {"min_correlation": 0.35} if matcher == "ncc" else OTHERWISE.get(matcher, {})
            kernel = {"name": matcher, "search": search, **more}
            done = run.run(
                config.model_copy(update={"kernel": kernel, "output": str(Path(name) / matcher), "filters": {}}),
                progress=False,
            )
            one = store.open_velocity(done.velocity).isel(mid_date=0).compute()
            trunk, still = run.ice_mask(config, one), run.stable_mask(config, one)
            scale = float(one["date_dt"]) / 365 / 15
            vx, vy = (one[c].values * scale for c in ("vx", "vy"))
            speeds[matcher] = vx, vy
            valid = ~flags.invalid(one["flag"].values)
            rock = still.values & valid
            both = trunk.values & valid & np.isfinite(speeds["ncc"][0])
            apart = np.hypot(vx - speeds["ncc"][0], vy - speeds["ncc"][1])[both]
            z = np.concatenate([one[f"{c}"].values[rock] / one[f"{c}_error_px"].values[rock] for c in ("vx", "vy")])
            row = {
                "trunk": valid[trunk.values].mean(), "rock": valid[still.values].mean(),
                "NMAD": np.mean([cases.spread(c[rock]) for c in (vx, vy)]), "z": cases.spread(z[np.isfinite(z)]),
                "error": np.median(apart), "within 1 px": (apart < 1).mean(),
            }  # fmt: skip
            rows.append(Row(matcher, {k: float(v) for k, v in row.items()}))
    return Table(
        "Yahtse", "Landsat 8, 16 days, displacements up to 17 px, search 24 px (the reference: 6), no filter of "
        "vectors. trunk, rock: share of cells with a vector; NMAD of displacements of stable rock [px], z of these by "
        "sigma; error: median distance from NCC on the trunk [px].", rows,
    )  # fmt: skip


def tables(quick: bool) -> Iterator[Table]:
    """All tables, one by one."""
    for table in (synthetic, seams, cost):
        yield table(quick)
    if not quick:
        yield bias()
        yield demo_glacier()
        if cases.ALPINE.exists():
            yield several()
            yield yahtse()


def notes(quick: bool) -> Iterator[str]:
    """What is not in the tables, and why."""
    if quick:
        yield "A quick run on few pairs: it shows that everything works."
    if not cases.ALPINE.exists():
        yield "Real texture and Yahtse are left out: no data folder (OGIVE_DATA)."


if __name__ == "__main__":
    sys.exit(report.program(__doc__, tables, notes, None))
