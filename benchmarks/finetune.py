"""Fine-tuning on scenes without labels, on a synthetic archive whose motion is known: does closure tell the truth?

    python benchmarks/finetune.py --weights flow-net-1 --folder finetune-benchmark [--synthetic 0]

Three sets of dates: those that are learned from, those on which the best state is chosen, and later ones, of which
fine-tuning never hears and which all figures of the table come from.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import ogive as og
from ogive.demo import pair_scores
from ogive.grid import geobox_of
from ogive.kernels import FlowNet
from ogive.kernels._flow_weights import card
from ogive.learn.finetune import Tuning, finetune, judged, loaded
from ogive.learn.scenes import Scenes, Split, triplets_of
from ogive.testing.flow_pairs import LEVELS, flow_pair
from ogive.testing.flow_scores import figures
from ogive.testing.plan import WorldSpec
from ogive.testing.scenes import make_world

SPEC = WorldSpec(
    size_km=(3.8, 4.8),
    n_sentinel2=16,
    n_landsat=0,
    start="2022-05-20",
    end="2022-09-20",
    cloud=0.1,
    decorrelation=0.8,
    red=True,
)
LATER = 5
"""Scenes kept apart."""
DAYS = (8, 60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default="flow-net-1")
    parser.add_argument("--folder", type=Path, default=Path("finetune-benchmark"))
    parser.add_argument("--bands", nargs="+", default=["nir"], help="nir, red or both")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--synthetic", type=int, default=Tuning().synthetic)
    parser.add_argument("--census", type=float, default=Tuning().census)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    world = make_world(given.folder / "world", SPEC)
    cube = og.open_cube(og.search(None, source=given.folder / "world" / "items.json"), given.bands).load()
    earlier, later = (cube.isel(time=part) for part in (slice(None, -LATER), slice(-LATER, None)))
    name = f"tuned-{given.synthetic}-{given.census}-{'-'.join(given.bands)}"
    output, started = given.folder / name, time.perf_counter()
    tuned = finetune(
        earlier, og.make_pairs(earlier, days=DAYS, same_orbit=False), output,
        weights=given.weights, tuning=Tuning(steps=given.steps, synthetic=given.synthetic, census=given.census),
    )  # fmt: skip
    assert tuned is not None
    minutes = (time.perf_counter() - started) / 60
    rows = {name: row(world, later, weights) for name, weights in (("before", given.weights), ("after", tuned.weights))}
    print(f"{minutes:.1f} minutes, best at step {tuned.after['step']}\n")
    for n, (name, found) in enumerate(rows.items()):
        if n == 0:
            print("|  |", " | ".join(found), "|\n| --- |", " | ".join(["---:"] * len(found)), "|")
        print(f"| {name} |", " | ".join(f"{value:.3f}" for value in found.values()), "|", flush=True)
    if given.json:
        given.json.write_text(json.dumps({"minutes": minutes, "step": tuned.after["step"], **rows}, indent=2) + "\n")


def row(world: Any, later: Any, weights: str) -> dict[str, float]:
    """Closure and errors on the later scenes, bias and error on synthetic pairs of the benchmark of dense flow."""
    about, tuning = card(weights, "flow_net"), Tuning()
    pairs = og.make_pairs(later, days=DAYS, same_orbit=False)
    scenes = Scenes(later, tuning.size, tuning.search)
    triplets = tuple(tuple(map(int, dates)) for dates in triplets_of(pairs))
    closed = judged(scenes, Split((), triplets, ()), tuning, about.passes)(loaded(about)[0], 0)
    velocity = og.track(later, pairs, FlowNet(weights=weights)).compute()
    rock = velocity["vx"].isel(mid_date=0, drop=True).copy(data=~world.glacier.ice(geobox_of(velocity)))
    # Scenes lie up to 3 m beside each other, which closure cannot see and which every user corrects.
    truth = pair_scores(world, og.correct.stable_ground(velocity, rock)).set_index("ground")
    known = {
        level: figures(FlowNet(search=6, weights=weights), [flow_pair(level, s) for s in range(1, 5)])
        for level in LEVELS
    }
    return (
        {"closure median": closed["median"], "closure rms": closed["rms"]}
        | {
            f"{ground} {name}": float(truth.loc[ground, name])
            for ground in ("ice", "rock")
            for name in ("RMSE", "NMAD")
        }
        | {f"bias {level}": known[level]["bias along"] for level in LEVELS}
        | {f"RMSE {level}": known[level]["RMSE"] for level in LEVELS}
    )


if __name__ == "__main__":
    main()
