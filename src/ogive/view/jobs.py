"""Pictures of a job: one tile tried before it, and the blocks that are done while it runs."""

import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from .. import flags, grid
from .._ledger import is_done, opened
from ..errors import ParameterError
from ..store import open_velocity
from . import style
from .maps import _REASON_COLOURS, time_text

FAILED = "#D55E00"
_DONE = "Blues"
_VALID, _WARNED = "#e8f5ee", "#99ddbb"
"""As in `flag_map`."""
Frame = tuple[float, float, float, float]
_REASONS = 2
"""Reasons of failed blocks that are printed; the rest is counted."""


def block_map(store: Any, *, title: str | None = None, path: str | Path | None = None) -> Figure:
    """How far a store is: the share of done blocks of every tile, failed ones in orange with the reason.

    A tile is done when all its batches of pairs are.

    Parameters
    ----------
    store : path or URL
        Being written, stopped or finished; its ledger is read, no block.
    title : str, optional
        Default: how many blocks are done.
    path : path, optional
        Save the figure there.

    Raises
    ------
    StoreError
        Not an ogive store.
    """
    books, plan = opened(store)
    spans, rows = plan.spans(), books.rows()
    done = {row["block"] for row in rows if is_done(row, plan, spans)}
    failed = {row["block"]: row for row in rows if row["status"] == "failed" and row["block"] in spans}
    tiles: dict[tuple[int, ...], list[str]] = {}
    for key in spans:
        tiles.setdefault(tuple(int(k) for k in key.split("."))[-2:], []).append(key)
    geobox = grid.geobox_of(open_velocity(store, partial=True))
    left, _, _, top = style.extent(geobox)
    size = abs(geobox.resolution.x)
    figure, ax = style.map_figure(geobox)
    patches, shares, broken = [], [], []
    for keys in tiles.values():
        y, x = (spans[keys[0]][dim] for dim in plan.dims[-2:])
        corner = (left + x[0] * size, top - y[1] * size)
        patches.append(Rectangle(corner, (x[1] - x[0]) * size, (y[1] - y[0]) * size))
        shares.append(sum(key in done for key in keys) / len(keys))
        broken.append(any(key in failed for key in keys))
    colours = colormaps[_DONE](0.1 + 0.65 * np.array(shares))
    colours[np.array(broken)] = to_rgba(FAILED)
    ax.add_collection(PatchCollection(patches, facecolors=colours, edgecolors="white", linewidths=1.2))
    for patch, share, bad in zip(patches, shares, broken, strict=True):
        _share_in(ax, patch, share, bad, len(patches))
    told = title or f"{len(done)} of {plan.count} blocks done" + (f", {len(failed)} failed" if failed else "")
    ax.set_title(told, fontsize=11)
    style.decorate(ax, geobox, np.ones((4, 3), np.bool_))
    entries = [Patch(fc=colormaps[_DONE](0.75), label="done"), Patch(fc=colormaps[_DONE](0.1), label="to do")]
    entries += [Patch(fc=FAILED, label="with failed blocks")] if failed else []
    figure.legend(handles=entries, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    for k, line in enumerate(reversed(failures(list(failed.values())))):
        ax.annotate(line, (0, 1), (0, 22 + 11 * k), "axes fraction", "offset points", fontsize=7, color=FAILED)
    return style.save(figure, path)


def failures(rows: list[dict[str, Any]]) -> list[str]:
    """Why blocks failed, the most frequent reason first, in lines that fit below a title.

    Parameters
    ----------
    rows : list of dict
        Of the ledger: `error` and, where a scene could not be read, the `window` that is its own in every block.

    Examples
    --------
    >>> lost = {"error": "ReadError: scene a: no such tile, window 5 x 5. Fix: wait", "window": "5 x 5"}
    >>> failures([{"error": "MemoryError"}, lost, lost])
    ['2 blocks: ReadError: scene a: no such tile', '1 block: MemoryError']
    """
    reasons = [row["error"].replace(f", window {row.get('window')}", "").split(". Fix:")[0] for row in rows]
    order = Counter(reasons).most_common()
    words = [f"{n} block{'s' if n > 1 else ''}: {why}" for why, n in order[:_REASONS]]
    words += [f"and {len(order) - _REASONS} other reasons"] if len(order) > _REASONS else []
    return [line for text in words for line in textwrap.wrap(text, 120)]


def _share_in(ax: Axes, patch: Rectangle, share: float, bad: bool, count: int) -> None:
    """The share in words, where there is room: colours alone tell a reader of black and white nothing."""
    if count > 150:
        return
    x, y = patch.get_x() + patch.get_width() / 2, patch.get_y() + patch.get_height() / 2
    text = "failed" if bad else f"{100 * share:.0f} %"
    ink = "white" if bad or share > 0.6 else "0.25"
    ax.text(x, y, text, ha="center", va="center", fontsize=8 if count < 40 else 6, color=ink, zorder=9)


def tile_map(tile: xr.Dataset, *, title: str | None = None, path: str | Path | None = None) -> Figure:
    """One tile tried: vectors on image 1, correlation, and why vectors are missing.

    Parameters
    ----------
    tile : xr.Dataset
        From `try_tile`.
    title : str, optional
        Default: the dates, the share of valid vectors and their median speed.
    path : path, optional
        Save the figure there.

    Raises
    ------
    ParameterError
        Not the result of `try_tile`.
    """
    if "image" not in tile or tile.sizes.get("mid_date") != 1:
        raise ParameterError("tile", rule="must come from try_tile", fix="try_tile(cube, pairs, kernel, x=..., y=...)")
    one = tile.isel(mid_date=0)
    frame = style.extent(grid.geobox_of(one))
    speed = one["v"].values
    valid = np.isfinite(speed)
    figure = style.new_figure(7.8, 3.5)
    axes = figure.subplots(1, 3)
    _draw_vectors(figure, axes[0], one, frame)
    _draw_correlation(figure, axes[1], one["corr"].values, frame)
    _draw_reasons(axes[2], one["flag"].values, frame)
    for ax, text in zip(axes, ("Speed and direction", "Correlation", "Why there is no vector"), strict=True):
        ax.set_title(text, fontsize=9)
        ax.set_xlim(frame[:2])
        ax.set_ylim(frame[2:])
        ax.set_aspect("equal")
        ax.set_xticks([])
        ax.set_yticks([])
    median = f", median speed {np.median(speed[valid]):.0f} {style.SPEED_UNIT}" if valid.any() else ""
    default = f"{time_text(tile, 0)}: {100 * valid.mean():.0f} % of {valid.size} vectors valid{median}"
    figure.suptitle(default if title is None else title, fontsize=10, y=1.09)
    return style.save(figure, path)


def _draw_vectors(figure: Figure, ax: Axes, one: xr.Dataset, frame: Frame) -> None:
    image, speed = one["image"].values, one["v"].values
    low, high = style.robust_limits(image)
    ax.imshow(image, cmap="gray", vmin=low, vmax=high, extent=frame, interpolation="nearest")
    valid = np.isfinite(speed)
    if not valid.any():
        return
    y, x = np.meshgrid(one["y"].values, one["x"].values, indexing="ij")
    size = abs(float(one["x"][1] - one["x"][0])) if one.sizes["x"] > 1 else 1.0
    fastest = max(float(np.percentile(speed[valid], 95)), 1e-6)
    scale = fastest / (2.2 * size)
    arrows = ax.quiver(
        x[valid], y[valid], one["vx"].values[valid], one["vy"].values[valid], speed[valid], cmap=style.SPEED_COLOURS,
        norm=Normalize(0, fastest), angles="xy", scale_units="xy", scale=scale, width=0.006, zorder=3,
    )  # fmt: skip
    _bar_below(figure, ax, arrows, f"Speed ({style.SPEED_UNIT})")


def _draw_correlation(figure: Figure, ax: Axes, corr: Any, frame: Frame) -> None:
    ax.set_facecolor(style.INVALID)
    shown = ax.imshow(corr, cmap="cividis", vmin=0, vmax=1, extent=frame, interpolation="nearest")
    _bar_below(figure, ax, shown, "Correlation at the peak")


def _bar_below(figure: Figure, ax: Axes, shown: Any, label: str) -> None:
    bar = figure.colorbar(shown, cax=ax.inset_axes((0.0, -0.07, 1.0, 0.04)), orientation="horizontal")
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _draw_reasons(ax: Axes, flag: Any, frame: Frame) -> None:
    """The first reason of each cell, drawn last; an image that cannot be read above all."""
    kinds = {"valid": (_VALID, flag == 0), "valid, with a warning": (_WARNED, (flag != 0) & ~flags.invalid(flag))}
    reasons = [bit for bit in flags.MEANINGS if not bit & flags.WARNINGS and bit != flags.UNREADABLE]
    for bit in (*reversed(reasons), flags.UNREADABLE):
        kinds[flags.MEANINGS[bit].replace("_", " ")] = _REASON_COLOURS[bit], flags.has(flag, bit)
    shown = np.full(flag.shape, "valid", object)
    for text, (_, here) in kinds.items():
        shown[here] = text
    found = Counter(shown.ravel().tolist()).most_common()
    picture = np.array([to_rgba(kinds[text][0]) for text in shown.ravel()]).reshape(*flag.shape, 4)
    ax.imshow(picture, extent=frame, interpolation="nearest")
    entries = [Patch(fc=kinds[t][0], ec="grey", lw=0.5, label=f"{t} ({100 * n / flag.size:.0f} %)") for t, n in found]
    ax.legend(handles=entries, loc="upper center", bbox_to_anchor=(0.5, -0.01), fontsize=7, frameon=False)
