"""The pictures of docs/looking.md, from a synthetic glacier whose motion is known: `python docs/looking.py`."""

from pathlib import Path

import numpy as np
import xarray as xr

import ogive as og
from ogive import flags, grid
from ogive.testing.velocity_cubes import velocity_cube

IMAGES = Path(__file__).parent / "images"
SMALL = {"dpi": 90, "bbox_inches": "tight"}


def wave(season: xr.Dataset) -> xr.Dataset:
    """The series of the cube, stretched over a map of 60 x 90 cells with a glacier, a surge and clouds."""
    rows, columns, times = 60, 90, season.sizes["time"]
    y, x, t = np.arange(rows)[None, :, None], np.arange(columns)[None, None, :], np.arange(times)[:, None, None]
    middle = 30 + 9 * np.sin(x / 18)
    slope = np.arctan(0.5 * np.cos(x / 18))
    across = np.exp(-(((y - middle) / 11) ** 2))
    pulse = 1 + 1.2 * np.exp(-(((x - 12 - 4.0 * t) / 9) ** 2)) + 0.15 * np.sin(2 * np.pi * t / 6)
    speed = 160 * across * pulse * (0.4 + x / 120) + 0 * t
    noise = np.random.default_rng(4).normal(0, 3, (2, times, rows, columns))
    vx, vy = speed * np.cos(slope) + noise[0], -speed * np.sin(slope) + noise[1]
    gone = np.sin(x / 7 + t) * np.sin(y / 6 - t / 2) > 0.86
    thin = (np.sin(x / 11) * np.cos(y / 9 + 1) > 0.93) | (x > 86)
    flag = np.where(thin, flags.TOO_FEW_PAIRS, np.where(gone, flags.GAP, 0)) + np.zeros((times, 1, 1))
    fields = {"vx": vx, "vy": vy, "v_error": 3 + 9 * (1 - across) + 0 * t, "count": 4 + 20 * across + 0 * t}
    dims = ("time", "y", "x")
    box = grid.geobox_of(season)
    box = type(box)((rows, columns), box.affine, box.crs)
    out = xr.Dataset(
        {n: (dims, np.where(flag == 0, a, np.nan).astype(np.float32)) for n, a in fields.items()},
        {
            "time": season["time"],
            "time_bnds": season["time_bnds"],
            **grid.coordinates(box),
            "mapping": grid.mapping(box),
        },
    )
    return out.assign(flag=(dims, flag.astype(np.uint16), flags.attributes()))


if __name__ == "__main__":
    velocity, _ = velocity_cube("500")
    series = og.invert(velocity, every="45D")
    maps = wave(series)
    og.view.layer_map(maps, "speed", when=6).savefig(IMAGES / "looking-speed.png", **SMALL)
    og.view.layer_map(maps, "flag", when=6).savefig(IMAGES / "looking-flag.png", **SMALL)
    place = {"A": (float(series.x[8]), float(series.y[5]))}
    og.view.plot_series(series, place, pairs=velocity).savefig(IMAGES / "looking-series.png", **SMALL)
    line = og.flowline(maps, float(maps.x[40]), float(maps.y[36]))
    og.view.hovmoller(maps, line).savefig(IMAGES / "looking-hovmoller.png", **SMALL)
