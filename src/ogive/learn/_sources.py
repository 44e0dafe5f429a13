"""What tiles are made of: windows of ice, pairs with their splits, the tiles of a window with their labels."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
import pyproj
import shapely
import xarray as xr
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from .. import grid
from ..errors import GridError, MaskError, PairError, ParameterError
from ..mosaic import vector_errors
from ._split import assign

IDS = ("image_id1", "image_id2")
_DATES = ("acquisition_date_img1", "acquisition_date_img2")
Year: TypeAlias = tuple[int, int]
"""An area and a year."""
_LABELS = ("vx", "vy", "vx_error", "vy_error", "vx_error_px", "vy_error_px", "interp_mask")
_READERS = 8
"""Scenes that are read at the same time: most of it is waiting for an archive."""


@dataclass(frozen=True)
class TileSource:
    """One glacier: its scenes, the velocities that label them, and where its ice is.

    Parameters
    ----------
    glacier : str
        Its name; sources of one name are one glacier.
    cube : xr.Dataset
        From `open_cube`; lazy.
    velocity : xr.Dataset
        From `track` on this cube, or `open_velocity`: any kernel, any step that divides the tile.
    ice : xr.DataArray
        bool (y, x) on the grid of the cube, from `masks.ice`.
    """

    glacier: str
    cube: xr.Dataset
    velocity: xr.Dataset
    ice: xr.DataArray


def step_of(source: TileSource) -> int:
    """Pixels along a cell of the labels; refuses what does not belong together."""
    own, labels = grid.geobox_of(source.cube), grid.geobox_of(source.velocity)
    if grid.geobox_of(source.ice) != own:
        raise GridError("ice", rule="must lie on the grid of the cube", fix="masks.ice(outlines, cube)")
    step = round(labels.resolution.x / own.resolution.x)
    if "band" in source.cube.dims:
        raise GridError("cube", rule="must have one band", value=source.cube["band"].values.tolist(), fix="open one")
    if step < 1 or grid.coarsen(own, step) != labels:
        raise GridError(
            "velocity", rule="must lie on cells of the cube", fix="track this cube, or open it on that grid"
        )
    if not source.velocity.sizes["mid_date"]:
        raise PairError("velocity", rule="needs at least one pair", value=0, fix="widen the rules of make_pairs")
    lost = sorted({i for name in IDS for i in source.velocity[name].values} - set(source.cube["scene_id"].values))
    if lost:
        raise PairError("velocity", rule="must be made of the scenes of the cube", value=lost[0], fix="open them all")
    if "stack_count" in source.velocity:
        raise ParameterError("velocity", rule="must be of single pairs, not of stacks", fix="track without stack=")
    for name in ("vx", "vy"):
        vector_errors(source.velocity, name)
    return step


def windows_of(source: TileSource, size: int, stride: int, step: int, min_ice: float) -> list[tuple[int, int]]:
    """First row and column of the tiles with enough ice."""
    ice = source.ice.transpose("y", "x").values
    height, width = (n // step * step for n in ice.shape)
    found = [
        (y, x)
        for y in range(0, height - size + 1, stride)
        for x in range(0, width - size + 1, stride)
        if ice[y : y + size, x : x + size].mean() >= min_ice
    ]
    if not found:
        rule, value = f"no tile of {size} px has {min_ice:.0%} of ice", ice.shape
        raise MaskError(source.glacier, rule=rule, value=value, fix="use smaller tiles or less ice")
    return found


def pairs_of(
    sources: Sequence[TileSource], windows: Sequence[list[tuple[int, int]]], size: int, ratios: Sequence[float],
    seed: int,
) -> tuple[list[dict[str, Any]], int]:  # fmt: skip
    """All pairs that are exported, each with its split, and how many are left out because they would join two."""
    areas = _areas(sources, windows, size)
    pairs, years, tiles = [], [], Counter[tuple[Year, Year]]()
    for number, source in enumerate(sources):
        velocity, box = source.velocity, grid.geobox_of(source.cube)
        crs, transform = _crs(box), list(box.affine)[:6]
        dates, days = [velocity[name].values.astype("M8[us]") for name in _DATES], grid.pair_days(velocity).values
        first, second = (velocity[name].values for name in IDS)
        for k in range(velocity.sizes["mid_date"]):
            pairs.append({
                "source": number, "layer": k, "glacier": source.glacier, "image_id1": str(first[k]),
                "image_id2": str(second[k]), "date1": str(dates[0][k]), "date2": str(dates[1][k]),
                "days": float(days[k]), "crs": crs, "transform": transform,
            })  # fmt: skip
            one, two = ((areas[number], int(str(date[k])[:4])) for date in dates)
            years.append((one, two))
            tiles[one, two] += len(windows[number])
    split = assign(tiles, ratios, seed)
    kept = [
        pair | {"split": split[one]} for pair, (one, two) in zip(pairs, years, strict=True) if split[one] == split[two]
    ]
    return kept, len(pairs) - len(kept)


def _crs(box: GeoBox) -> str:
    crs = pyproj.CRS.from_user_input(str(box.crs))
    return f"EPSG:{crs.to_epsg()}" if crs.to_epsg() else crs.to_wkt()


def _areas(sources: Sequence[TileSource], windows: Sequence[list[tuple[int, int]]], size: int) -> list[int]:
    """A number for each source; those of one glacier, or whose tiles overlap on the ground, have the same."""
    ground = []
    for source, corners in zip(sources, windows, strict=True):
        box = grid.geobox_of(source.cube)
        tiles = [box[y : y + size, x : x + size].geographic_extent.geom for y, x in corners]
        # Tiles side by side share an edge, which rounding makes a sliver.
        ground.append(shapely.union_all(tiles).buffer(-1e-6))
    areas = list(range(len(sources)))
    for k, other in combinations(range(len(sources)), 2):
        if sources[k].glacier == sources[other].glacier or ground[k].intersects(ground[other]):
            areas = [areas[k] if area == areas[other] else area for area in areas]
    return areas


def tiles_of(
    source: TileSource, pairs: Sequence[tuple[int, dict[str, Any]]], corner: tuple[int, int], size: int, step: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The tiles of all pairs in one window, with the number of each pair."""
    y, x = corner
    rows, columns, cells = slice(y, y + size), slice(x, x + size), size // step
    position = {name: k for k, name in enumerate(source.cube["scene_id"].values.tolist())}
    used = sorted({position[pair[name]] for _, pair in pairs for name in IDS})
    window = source.cube[["image", "mask"]].isel(y=rows, x=columns).transpose("time", "y", "x")
    with ThreadPoolExecutor(_READERS) as pool:
        scenes = list(pool.map(lambda time: window.isel(time=time).compute(), used))
    images, masks = (np.stack([scene[name].values for scene in scenes]) for name in ("image", "mask"))
    ice = source.ice.transpose("y", "x").values[rows, columns]
    labels = _labels(source, [p["layer"] for _, p in pairs], (y // step, x // step), cells)
    for (k, pair), displacement, sigma in zip(pairs, *labels, strict=True):
        both = [used.index(position[pair[name]]) for name in IDS]
        valid = np.isfinite(displacement).all(0)
        yield k, {
            "image": images[both], "mask": masks[both], "ice": ice, "displacement": displacement, "sigma": sigma,
            "ice_share": np.float32(ice.mean()), "label_share": np.float32(valid.mean()),
        }  # fmt: skip


def _labels(
    source: TileSource, layers: list[int], corner: tuple[int, int], cells: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Displacements and their errors in one window, (pairs, 2, y, x) [px, dy down]."""
    velocity, (y, x) = source.velocity, corner
    names = [n for n in (*_LABELS, *_DATES) if n in velocity]
    part = velocity[names].isel(mid_date=layers, y=slice(y, y + cells), x=slice(x, x + cells)).compute()
    per_pixel = grid.YEAR_DAYS * abs(grid.geobox_of(source.cube).resolution.x)
    factor = grid.pair_days(part).values[:, None, None] / per_pixel
    dims = ("mid_date", "y", "x")
    dy, dx = (sign * part[name].transpose(*dims).values * factor for name, sign in (("vy", -1), ("vx", 1)))
    errors = [vector_errors(part, name).broadcast_like(part[name]).transpose(*dims).values for name in ("vy", "vx")]
    valid = np.isfinite(dy) & np.isfinite(dx)
    if "interp_mask" in part:
        # What the neighbours say teaches nothing about the images.
        valid &= part["interp_mask"].transpose(*dims).values == 0
    moved = np.where(valid, np.stack([dy, dx]), np.nan).swapaxes(0, 1).astype(np.float32)
    sigma = np.where(valid, np.stack(errors) * factor, np.nan).swapaxes(0, 1).astype(np.float32)
    return moved, sigma
