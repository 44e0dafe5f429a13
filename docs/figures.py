"""The figures of the documentation, from synthetic data with known truth: `python docs/figures.py [folder]`."""

import sys
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import ogive as og
from ogive import enhance
from ogive.kernels import KERNELS
from ogive.kernels._ncc_reference import peak, surface
from ogive.testing.flow_pairs import flow_pair
from ogive.testing.flow_scores import EDGE, prepared
from ogive.testing.glacier import Glacier
from ogive.testing.itslive import itslive_cube
from ogive.testing.pairs import truth_pair
from ogive.testing.velocity_cubes import velocity_cube

BLUE, ORANGE, PINK, GREY = "#0072B2", "#D55E00", "#CC79A7", "0.6"


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _bare(ax: Axes, title: str) -> None:
    ax.set_title(title, fontsize=9)
    ax.set_xticks([])
    ax.set_yticks([])


def matching() -> Figure:
    """A chip, its search window, and the correlation surface with its peak."""
    pair, chip, search, row, column = truth_pair("P1", 256), 32, 12, 96, 116
    valid = np.ones(pair.image1.shape, bool)
    one, two = (enhance.high_pass(image.astype("f4"), valid)[0] for image in (pair.image1, pair.image2))
    top, left = row - chip // 2, column - chip // 2
    first = one[top : top + chip, left : left + chip]
    second = two[top - search : top + chip + search, left - search : left + chip + search]
    whole = np.ones(second.shape, bool)
    r = surface(first, whole[:chip, :chip], second, whole, chip)
    dy, dx, corr = peak(r)[:3]
    figure = _figure(7.4, 2.7)
    axes = figure.subplots(1, 3, width_ratios=(1, 1.35, 1.35))
    axes[0].imshow(first, cmap="gray")
    _bare(axes[0], f"chip of image 1\n{chip} px, high-passed")
    axes[1].imshow(second, cmap="gray", extent=(-search, chip + search, chip + search, -search))
    for y, x, colour in ((0, 0, GREY), (dy, dx, ORANGE)):
        axes[1].add_patch(Rectangle((x, y), chip, chip, fill=False, ec=colour, lw=1.6))
    _bare(axes[1], f"search window of image 2\n± {search} px")
    shown = axes[2].imshow(r, cmap="cividis", extent=(-search - 0.5, search + 0.5, search + 0.5, -search - 0.5))
    axes[2].plot(dx, dy, "+", color=ORANGE, ms=12, mew=2)
    axes[2].set_title(f"correlation; peak {corr:.2f}\nat dy {dy:.2f}, dx {dx:.2f} px", fontsize=9)
    axes[2].tick_params(labelsize=7)
    figure.colorbar(shown, ax=axes[2], shrink=0.85).ax.tick_params(labelsize=7)
    return figure


def inversion() -> Figure:
    """The pairs of one cell, the series from them with its error, and the truth."""
    velocity, truth = velocity_cube("500")
    cell = velocity.isel(y=[6], x=[6])
    series = og.invert(cell, every="30D").isel(y=0, x=0)
    figure = _figure(7.4, 3.2)
    ax = figure.subplots()
    t1, t2 = (cell[f"acquisition_date_img{k}"].values for k in (1, 2))
    speed = np.hypot(cell["vx"].values, cell["vy"].values)[:, 0, 0]
    ax.hlines(speed, t1, t2, color=GREY, lw=0.6, alpha=0.5, label="pairs, from date 1 to date 2")
    v, error, time = (series[name].values for name in ("v", "v_error", "time"))
    ax.fill_between(time, v - 1.96 * error, v + 1.96 * error, color=BLUE, alpha=0.25, lw=0, label="95 % interval")
    ax.plot(time, v, color=BLUE, marker=".", lw=1.4, label="series, 30-day means")
    known = np.hypot(*truth.velocity(*series["time_bnds"].values.T))[:, 6, 6]
    ax.plot(time, known, color="black", ls="--", lw=1.2, label="truth")
    ax.set_ylim(0, 520)
    ax.set_ylabel("Speed (m/yr)", fontsize=9)
    ax.tick_params(labelsize=8)
    ax.legend(frameon=False, fontsize=8, ncols=4, loc="upper center")
    return figure


def stale_pairs(folder: Path) -> Figure:
    """Long pairs that have lost the surface lie near zero and look precise."""
    glacier = Glacier(extent=(2400.0, 3000.0), speed=160.0)
    velocity = og.open_velocity(itslive_cube(folder / "cube.zarr", glacier, {2019: 1.0, 2020: 1.0}))
    y, x = glacier.centre_line(0.35)
    (i,), (j,) = og.export.locate(velocity, {"middle": (float(x), float(y))})
    cell = velocity.isel(y=[int(i)], x=[int(j)]).compute()
    days, error = cell["date_dt"].values, cell["vx_error"].values
    speed = np.hypot(cell["vx"].values, cell["vy"].values)[:, 0, 0]
    figure = _figure(7.4, 2.9)
    axes = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    for ax, chosen in ((axes[0], days < 100), (axes[1], days > 100)):
        ax.errorbar(days[chosen], speed[chosen], error[chosen], fmt=".", ms=3, color=BLUE, ecolor="0.8", elinewidth=0.6)
        ax.axhline(np.hypot(*glacier.steady(y, x)), color="black", ls="--", lw=1.2, label="true mean speed")
        ax.set_xlabel("Days between the images", fontsize=9)
        ax.tick_params(labelsize=8)
    axes[0].set_ylim(0, 600)
    axes[0].set_ylabel("Speed of a pair (m/yr)", fontsize=9)
    axes[0].set_title("short pairs: scatter round the truth", fontsize=9)
    axes[1].set_title("a year: half of them stale", fontsize=9)
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def flow() -> Figure:
    """The hardest synthetic glacier: its motion, and how far the vectors of each matcher are off."""
    pair = flow_pair("annual", 1)
    n = len(pair.image1) // 8
    centre = 8 * np.arange(n) + 3.5
    truth = np.stack(pair.displacement(centre[:, None], centre[None]))
    inner = np.abs(centre - centre.mean()) < centre.mean() - EDGE
    ice = pair.scored[4::8, 4::8] & inner[:, None] & inner
    figure = _figure(7.4, 3.9)
    axes = figure.subplots(2, 4)
    for ax, image, title in ((axes[0, 0], pair.image1, "image 1"), (axes[1, 0], pair.image2, "image 2, a year later")):
        ax.imshow(image, cmap="gray")
        _bare(ax, title)
    speed = axes[0, 1].imshow(np.hypot(*truth), cmap="viridis", vmin=0)
    _bare(axes[0, 1], "true motion")
    panels = (axes[1, 1], axes[0, 2], axes[1, 2], axes[0, 3], axes[1, 3])
    for ax, name in zip(panels, ("ncc", "hs_reference", "hs_robust", "raft", "flow_net"), strict=True):
        kernel = KERNELS[name](search=6)
        found = kernel.match(prepared(kernel, pair.image1), prepared(kernel, pair.image2))
        off = np.hypot(found["dy"] - truth[0], found["dx"] - truth[1])
        ax.set_facecolor("0.75")
        shown = ax.imshow(np.where(ice, off, np.nan), cmap="magma_r", vmin=0, vmax=1)
        _bare(ax, name)
    for where, ax, text in ((speed, axes[:, 0], "motion [px]"), (shown, axes[:, 3], "error of a vector [px]")):
        bar = figure.colorbar(where, ax=ax, shrink=0.7, location="left" if where is speed else "right")
        bar.set_label(text, fontsize=8)
        bar.ax.tick_params(labelsize=7)
    return figure


def season() -> Figure:
    """The mean of pairs of one length depends on when in the year they begin."""
    glacier = Glacier()
    y, x = glacier.centre_line(0.35)
    begins = np.datetime64("2021-01-01") + np.arange(0, 365, 5)
    figure = _figure(7.4, 2.9)
    ax = figure.subplots()
    for days, colour in ((240, ORANGE), (365, "black"), (460, PINK)):
        v = [np.hypot(*glacier.mean_velocity(t, t + np.timedelta64(days, "D"), y, x)) for t in begins]
        ax.plot(begins, v, color=colour, label=f"{days} days")
    ax.set_xlabel("Date of image 1", fontsize=9)
    ax.set_ylabel("Speed of the pair (m/yr)", fontsize=9)
    ax.tick_params(labelsize=8)
    ax.legend(frameon=False, fontsize=8, ncols=3)
    return figure


def write(folder: Path, scratch: Path) -> list[Path]:
    """All figures as PNG files."""
    figures = {"matching": matching(), "inversion": inversion()}
    figures |= {"stale-pairs": stale_pairs(scratch), "season": season(), "flow": flow()}
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], metadata={"Software": None})
    return paths


if __name__ == "__main__":
    import tempfile

    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images"
    with tempfile.TemporaryDirectory() as scratch:
        write(target, Path(scratch))
