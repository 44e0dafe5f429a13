"""Figures are read back: colours at pixels, lengths in data units, texts, directions of arrows."""

import os
import subprocess
import sys
from pathlib import Path

import geopandas as gpd
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
import xarray as xr
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.colors import LogNorm, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.quiver import Quiver
from odc.geo.geobox import GeoBox

from ogive import flags, grid, view
from ogive.errors import GridError, MaskError, ParameterError
from ogive.flowline import sample_bilinear
from ogive.view import maps, style

DATA = Path(os.environ.get("OGIVE_DATA", Path(__file__).parents[2] / "shared" / "data"))
BOX = GeoBox((40, 60), Affine(100, 0, 498_000, 0, -100, 5_002_000), "EPSG:32632")


def single(vx: np.ndarray, vy: np.ndarray, box: GeoBox = BOX, **extra: np.ndarray) -> xr.Dataset:
    fields = {"vx": vx, "vy": vy, **extra}
    coords = {**grid.coordinates(box), "mapping": grid.mapping(box)}
    return xr.Dataset({n: (("y", "x"), np.broadcast_to(a, tuple(box.shape))) for n, a in fields.items()}, coords)


def stack(vx: list[float], *, noise: float = 0.0, box: GeoBox = BOX) -> xr.Dataset:
    """A velocity with one value of vx for each pair, vy = 0."""
    rng = np.random.default_rng(3)
    shape = (len(vx), *map(int, box.shape))
    dims = ("mid_date", "y", "x")
    first = pd.date_range("2020-01-01", periods=len(vx), freq="40D").to_numpy().astype("datetime64[ns]")
    second = first + np.timedelta64(40, "D")
    x = np.array(vx)[:, None, None] + rng.normal(0, noise, shape) if noise else np.array(vx)[:, None, None]
    values = {
        "vx": (dims, np.broadcast_to(x, shape).astype(np.float32)),
        "vy": (dims, np.zeros(shape, np.float32)),
        "flag": (dims, np.zeros(shape, np.uint16)),
        "vx_error": ("mid_date", np.full(len(vx), 6.0, np.float32)),
        "vy_error": ("mid_date", np.full(len(vx), 2.0, np.float32)),
    }
    coords = {
        **grid.coordinates(box),
        "mapping": grid.mapping(box),
        "mid_date": first + np.timedelta64(20, "D"),
        "acquisition_date_img1": ("mid_date", first),
        "acquisition_date_img2": ("mid_date", second),
    }
    return xr.Dataset(values, coords)


def rendered(figure: Figure) -> np.ndarray:
    assert isinstance(figure.canvas, FigureCanvasAgg)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())


def colour_at(figure: Figure, x: float, y: float) -> tuple[int, ...]:
    """Rendered RGB at map coordinates."""
    picture = rendered(figure)
    column, row = figure.axes[0].transData.transform((x, y))
    return tuple(int(v) for v in picture[picture.shape[0] - 1 - int(row), int(column), :3])


def texts(figure: Figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")))


@given(st.floats(1e-6, 1e9))
def test_nice_numbers_enclose_the_value(value: float) -> None:
    below, above = style.nice_below(value), style.nice_above(value)
    assert below <= value * (1 + 1e-6)
    assert above >= value * (1 - 1e-6)
    assert above / 2.1 < value < 2.6 * below
    assert f"{below:.0e}"[0] in "125"


def test_limits_are_robust_and_never_equal() -> None:
    values = np.append(np.linspace(0, 100, 1000), [1e6, np.nan])
    low, high = style.robust_limits(values)
    assert low == pytest.approx(2, abs=0.2)
    assert high == pytest.approx(98, abs=0.2)
    assert style.robust_limits(np.full(5, 7.0)) == (6.5, 7.5)
    assert style.robust_limits(np.full(5, np.nan)) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("speed", "logarithmic"),
    [
        (np.linspace(0, 800, 500), False),
        (np.append(np.full(900, 3.0), np.linspace(100, 3000, 100)), True),
        # A slow glacier in a wide valley: a logarithmic scale would only show noise.
        (np.append(np.full(900, 1.0), np.linspace(50, 200, 100)), False),
        (np.zeros(10), False),
        (np.full(4, np.nan), False),
    ],
)
def test_speed_scale_follows_the_range(speed: np.ndarray, logarithmic: bool) -> None:
    low, high, log = style.speed_limits(speed)
    assert log is logarithmic
    assert (1 if log else 0) <= low < high


def test_north_arrow_points_to_the_pole_from_the_emptiest_corner() -> None:
    # EPSG:3413 has the pole at (0, 0): from a point on the negative x axis, north is +x.
    box = GeoBox((10, 10), Affine(100, 0, -2_000_500, 0, -100, 500), "EPSG:3413")
    assert np.allclose(style.north_direction(box), (1, 0), atol=1e-3)
    south = GeoBox((10, 10), Affine(100, 0, -500, 0, -100, 1_500_500), "EPSG:3031")
    assert np.allclose(style.north_direction(south), (0, 1), atol=1e-3)
    valid = np.ones((40, 60), bool)
    valid[:10, 45:] = False
    assert style.emptiest_corner(valid) == (1, 1)
    assert style.emptiest_corner(np.ones((3, 3), bool)) == (0, 0)


def test_first_reason_is_the_lowest_invalid_bit() -> None:
    flag = np.array([flags.OUTLIER | flags.NO_DATA, flags.FEW_NEIGHBOURS, flags.NOT_COMPUTED], np.uint16)
    assert flags.first_reason(flag).tolist() == [flags.NO_DATA, 0, flags.NOT_COMPUTED]


@given(st.floats(-20, 20), st.floats(-20, 20), st.floats(0, 38), st.floats(0, 58))
def test_bilinear_is_exact_on_a_plane(a: float, b: float, row: float, column: float) -> None:
    r, c = np.mgrid[:40, :60].astype(float)
    got = sample_bilinear(a * r + b * c, np.array([row]), np.array([column]))
    assert got[0] == pytest.approx(a * row + b * column, abs=1e-9)


def test_bilinear_is_nan_outside_and_beside_gaps() -> None:
    values = np.ones((3, 3))
    values[1, 1] = np.nan
    got = sample_bilinear(values, np.array([0.5, 0.0, -0.1, 2.0]), np.array([0.5, 1.0, 0.0, 2.0]))
    assert np.isnan(got).tolist() == [True, False, True, False]


def test_noise_gets_no_arrows_and_flow_does() -> None:
    rng = np.random.default_rng(0)
    vx, vy = rng.normal(0, 5, (2, 40, 60))
    vx[:, 30:] += 100
    row, column, east, north, speed = maps.flow_arrows(vx, vy, 10)
    assert sorted(set(column.tolist())) == [35.0, 45.0, 55.0]
    assert row.size == 12
    assert np.allclose(np.hypot(east, north), 1)
    assert (east > 0.99).all()
    assert speed == pytest.approx(100, abs=3)


def test_invalid_pixels_are_grey_and_zero_is_not() -> None:
    vx = np.full((40, 60), 80.0)
    vx[:20, :30] = np.nan
    vx[:20, 30:] = 0.0
    figure = view.speed_map(single(vx, vx * 0), arrows=False)
    for dx in range(0, 1000, 90):  # across the hatching: every colour of it is neutral
        red, green, blue = colour_at(figure, 498_500 + dx, 5_001_300)
        assert red == green == blue > 150
    zero = colour_at(figure, 502_500, 5_001_300)
    assert max(zero) - min(zero) > 50
    expected = tuple(round(255 * c) for c in matplotlib.colormaps["viridis"](0.0)[:3])
    assert np.abs(np.subtract(zero, expected)).max() <= 1
    assert "no valid velocity (25.0 %)" in texts(figure)


def test_zero_is_visible_on_a_logarithmic_scale() -> None:
    vx = np.full((40, 60), 5.0)
    vx[:, 40:] = np.linspace(500, 6000, 20)
    vx[:10, :10] = 0.0
    figure = view.speed_map(single(vx, vx * 0), arrows=False)
    assert isinstance(figure.axes[0].images[0].norm, LogNorm)
    red, green, blue = colour_at(figure, 498_500, 5_001_500)
    assert max(red, green, blue) - min(red, green, blue) > 50


def test_colour_limits_ignore_outliers_and_bar_says_so() -> None:
    vx = np.tile(np.linspace(0, 195, 60), (40, 1))
    vx[0, 0] = 90_000
    figure = view.speed_map(single(vx, vx * 0))
    image = figure.axes[0].images[0]
    assert (image.norm.vmin, image.norm.vmax) == (0, 200)
    assert image.colorbar is not None
    assert image.colorbar.extend == "max"
    assert "Surface speed (m/yr)" in texts(figure)


def test_scale_bar_has_the_length_it_states() -> None:
    figure = view.speed_map(single(np.full((40, 60), 50.0), np.zeros((40, 60))))
    rendered(figure)
    ax = figure.axes[0]
    halves = [p for p in ax.patches if isinstance(p, Rectangle) and str(p.get_gid()).startswith("scale_bar")]
    assert len(halves) == 2
    assert sum(h.get_width() for h in halves) == 1000
    assert "1 km" in texts(figure)
    # On paper: as many dots as 1000 m of the picture, which is not stretched.
    dots = sum(h.get_window_extent().width for h in halves)
    assert dots == pytest.approx(ax.get_window_extent().width / 6, rel=1e-6)
    assert dots == pytest.approx(ax.get_window_extent().height / 4, rel=1e-6)


def test_axes_are_kilometres_north_up_with_named_crs() -> None:
    figure = view.speed_map(single(np.full((40, 60), 50.0), np.zeros((40, 60))), title="A title")
    rendered(figure)
    ax = figure.axes[0]
    assert (*ax.get_xlim(), *ax.get_ylim()) == (498_000, 504_000, 4_998_000, 5_002_000)
    labels = {t.get_text() for t in ax.get_xticklabels()}
    assert {"499", "500"} <= labels
    assert ax.get_xlabel() == "Easting (km), WGS 84 / UTM zone 32N (EPSG:32632)"
    assert ax.get_title() == "A title"
    assert "N" in {t.get_text() for t in ax.texts}


@pytest.mark.parametrize(("vx", "vy"), [(0.0, 100.0), (100.0, 0.0), (-60.0, -80.0)])
def test_arrows_point_along_the_flow(vx: float, vy: float) -> None:
    figure = view.speed_map(single(np.full((40, 60), vx), np.full((40, 60), vy)))
    rendered(figure)
    (quiver,) = [c for c in figure.axes[0].collections if isinstance(c, Quiver)]
    assert 100 < quiver.N < 800
    # Tip minus tail of the drawn polygons, on paper, where up is north.
    tip = np.array([p.vertices[3] for p in quiver.get_paths()])
    tail = np.array([(p.vertices[0] + p.vertices[6]) / 2 for p in quiver.get_paths()])
    along = (tip - tail).mean(0)
    assert np.allclose(along / np.hypot(*along), np.array([vx, vy]) / 100, atol=0.02)
    lengths = np.hypot(quiver.U, quiver.V)
    assert np.allclose(lengths, lengths[0])


def test_median_is_taken_by_component() -> None:
    # Two opposite vectors: the median of speeds is 50, the speed of the median vector 0.
    figure = view.speed_map(stack([50.0, -50.0]), arrows=False)
    shown = np.asarray(figure.axes[0].images[0].get_array())
    assert shown.size == 2400
    assert (shown == 0).all()
    assert "median of 2 pairs, 2020-01-01 to 2020-03-21" in texts(figure)
    one = view.speed_map(stack([50.0, -50.0]), when=1, arrows=False)
    assert (np.asarray(one.axes[0].images[0].get_array()) == 50).all()
    assert "2020-02-10 to 2020-03-21 (40 days)" in texts(one)
    with pytest.raises(ParameterError, match=r"-2 \.\.\. 1"):
        view.speed_map(stack([1.0, 2.0]), when=2)


def test_lazy_and_eager_maps_are_equal() -> None:
    data = stack([10.0, 30.0, 90.0], noise=4.0)
    lazy = view.speed_map(data.chunk({"mid_date": 1, "y": 16, "x": 25}), arrows=False)
    arrays = [np.asarray(f.axes[0].images[0].get_array()) for f in (lazy, view.speed_map(data, arrows=False))]
    assert np.isfinite(arrays[0]).all()
    assert np.array_equal(*arrays)


def test_ascending_y_gives_the_same_picture() -> None:
    data = single(np.tile(np.linspace(10, 90, 40)[:, None], (1, 60)), np.zeros((40, 60)))
    figures = [view.speed_map(d, arrows=False) for d in (data, data.isel(y=slice(None, None, -1)))]
    shown = [np.asarray(f.axes[0].images[0].get_array()) for f in figures]
    assert shown[0][0, 0] == 10
    assert np.array_equal(*shown)


def test_outlines_are_reprojected() -> None:
    ring = shapely.box(499_000, 4_999_000, 501_000, 5_001_000)
    outline = gpd.GeoDataFrame(geometry=[ring], crs="EPSG:32632").to_crs(4326)
    data = single(np.full((40, 60), 50.0), np.zeros((40, 60)))
    figure = view.speed_map(data, outlines=outline)
    (lines,) = [c for c in figure.axes[0].collections if isinstance(c, LineCollection)]
    (points,) = lines.get_segments()
    assert np.allclose(points.min(0), (499_000, 4_999_000), atol=0.1)
    assert np.allclose(points.max(0), (501_000, 5_001_000), atol=0.1)
    with pytest.raises(MaskError, match="coordinate system"):
        view.speed_map(data, outlines=gpd.GeoDataFrame(geometry=[ring]))


def test_background_shows_where_nothing_is_valid() -> None:
    vx = np.full((40, 60), 80.0)
    vx[:20] = np.nan
    data = single(vx, vx * 0)
    image = xr.DataArray(np.tile([0.0, 1000.0], (40, 30)), dims=("y", "x"), coords=data.coords)
    figure = view.speed_map(data, background=image, arrows=False)
    assert colour_at(figure, 500_050, 5_001_550) == (128, 128, 128)  # black is lifted to mid-grey
    assert colour_at(figure, 500_150, 5_001_550) == (255, 255, 255)
    other = image.assign_coords(mapping=grid.mapping(GeoBox(BOX.shape, BOX.affine, "EPSG:32633")))
    with pytest.raises(GridError, match="background"):
        view.speed_map(data, background=other)


def test_saved_png_is_not_blank_even_if_nothing_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "map.png"
    view.speed_map(stack([20.0, 60.0], noise=5), path=path)
    picture = matplotlib.image.imread(path)
    assert min(picture.shape[:2]) > 500
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 200
    figure = view.speed_map(single(np.full((40, 60), np.nan), np.full((40, 60), np.nan)))
    assert "no valid velocity (100.0 %)" in texts(figure)
    red, green, blue = colour_at(figure, 503_000, 5_001_000)
    assert red == green == blue


def test_flag_map_counts_and_colours_reasons() -> None:
    data = stack([10.0, 10.0, 10.0])
    flag = data["flag"].values.copy()
    flag[:, :10] = flags.RIM | flags.OUTLIER
    flag[0, 10:20, :30] = flags.NO_DATA
    flag[0, 39, :] = flags.NOT_REFINED
    data["flag"] = data["flag"].copy(data=flag)
    figure = view.flag_map(data, when=0)
    for text in (
        "peak on rim of search window (25.0 %)",
        "no data or masked (12.5 %)",
        "valid, with a warning (2.5 %)",
    ):
        assert text in texts(figure)
    assert "outlier" not in texts(figure)
    expected = tuple(round(255 * c) for c in to_rgba("#aa3377")[:3])
    assert colour_at(figure, 503_000, 5_001_500) == expected
    # Most frequent over time: the cloud of one date is gone.
    usual = view.flag_map(data)
    assert "valid (75.0 %)" in texts(usual)
    assert "no data" not in texts(usual)
    with pytest.raises(ParameterError, match="flag"):
        view.flag_map(data.drop_vars("flag"))


def test_difference_map_states_median_and_spread() -> None:
    first, second = stack([100.0], noise=5), stack([90.0])
    figure = view.difference_map(first, second)
    image = figure.axes[0].images[0]
    assert image.norm.vmin == -image.norm.vmax
    difference = first["vx"].values[0] - 90.0
    assert f"median {np.median(difference):+.3g} m/yr" in texts(figure)
    assert "n = 2400" in texts(figure)
    shifted = stack([90.0], box=GeoBox(BOX.shape, BOX.affine * Affine.translation(1, 0), BOX.crs))
    with pytest.raises(GridError, match="grid of first"):
        view.difference_map(first, shifted)


def series_of(v: list[float], flag: list[int]) -> xr.Dataset:
    time = pd.date_range("2020-01-16", periods=len(v), freq="30D").to_numpy().astype("datetime64[ns]")
    dims, shape = ("time", "y", "x"), (len(v), 40, 60)
    speed = np.broadcast_to(np.array(v, np.float32)[:, None, None], shape)
    half = np.timedelta64(15, "D")
    return xr.Dataset(
        {
            "vx": (dims, speed),
            "vy": (dims, np.zeros(shape, np.float32)),
            "v_error": (dims, np.full(shape, 10, np.float32)),
            "flag": (dims, np.broadcast_to(np.array(flag, np.uint16)[:, None, None], shape)),
            "time_bnds": (("time", "bnds"), np.stack([time - half, time + half], -1)),
        },
        {**grid.coordinates(BOX), "mapping": grid.mapping(BOX), "time": time},
    )


def test_gaps_interrupt_the_line_and_are_shaded() -> None:
    data = series_of([50, 60, 70, 80, 90, 100], [0, 0, flags.GAP, flags.GAP, flags.NOT_REFINED, 0])
    figure = view.plot_series(data, {"A": (500_000, 5_000_000)})
    ax = figure.axes[0]
    (line,) = [ln for ln in ax.lines if ln.get_label() == "series"]
    y = np.asarray(line.get_ydata(), float)
    assert np.isnan(y).tolist() == [False, False, True, True, False, False]
    assert y[[0, 1, 4, 5]].tolist() == [50, 60, 90, 100]
    (gap,) = [p for p in ax.patches if p.get_label() == "no valid speed"]
    start, stop = style.day_number(data["time_bnds"].values[[2, 3], [0, 1]])
    assert (gap.get_x(), gap.get_x() + gap.get_width()) == pytest.approx((start, stop))
    bands = [c for c in ax.collections if "sigma" in str(c.get_label())]
    tops = {str(c.get_label()): max(p.vertices[:, 1].max() for p in c.get_paths()) for c in bands}
    assert tops == {"1-sigma band": 110, "2-sigma band": 120}


def test_pairs_truth_and_stakes_are_drawn_at_their_dates_and_speeds() -> None:
    velocity = stack([30.0, 70.0, 50.0])
    velocity["vx"][1, :, :] = np.nan
    dates = pd.date_range("2020-01-01", periods=4, freq="30D")
    stakes = pd.DataFrame(
        {"name": ["A"], "t1": dates[:1], "t2": dates[1:2], "vx": [0.0], "vy": [42.0], "v_error": [2.0]}
    )
    truth = {"A": pd.Series([40.0, 41, 42, 43], index=dates)}
    points = {"A": (500_000, 5_000_000), "B": (501_000, 5_000_000)}
    data = series_of([40, 41, 42], [0, 0, 0])
    figure = view.plot_series(data, points, pairs=velocity, truth=truth, stakes=stakes)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["A", "B"]
    (bars,) = [c for c in figure.axes[0].collections if c.get_label() == "pairs"]
    assert isinstance(bars, LineCollection)
    start, stop = (style.day_number(velocity[f"acquisition_date_img{i}"].values[[0, 2]]) for i in (1, 2))
    expected = [[[a, v], [b, v]] for a, b, v in zip(start, stop, (30.0, 50.0))]
    assert np.allclose(np.array(bars.get_segments()), expected)
    labels = [[str(ln.get_label()) for ln in ax.lines] for ax in figure.axes]
    assert ["truth" in names for names in labels] == [True, False]
    (stake,) = figure.axes[0].containers
    (across, up) = (bar.get_segments()[0] for bar in stake.lines[2])
    assert across[:, 0] == pytest.approx(style.day_number(dates[:2]))
    assert up[:, 1].tolist() == [40, 44]
    assert {"series", "pairs", "truth", "stakes"} <= {t.get_text() for t in figure.legends[0].get_texts()}
    assert "Surface speed (m/yr)" in texts(figure)
    whole = view.plot_series(data, {"A": (500_000, 5_000_000)}, truth=data)
    (line,) = [ln for ln in whole.axes[0].lines if ln.get_label() == "truth"]
    assert np.asarray(line.get_ydata()).tolist() == [40, 41, 42]


def test_points_outside_the_grid_are_named() -> None:
    data = series_of([1.0], [0])
    with pytest.raises(ParameterError, match=r"point 'far'.*inside left"):
        view.plot_series(data, {"far": (0.0, 0.0)})
    with pytest.raises(ParameterError, match="at least one"):
        view.plot_series(data, {})
    with pytest.raises(ParameterError, match="columns name"):
        view.plot_series(data, {"A": (500_000, 5_000_000)}, stakes=pd.DataFrame({"v": [1]}))


def test_pair_network_counts_networks() -> None:
    t1 = pd.to_datetime(["2020-01-01", "2020-02-01", "2021-01-01"])
    t2 = pd.to_datetime(["2020-02-01", "2020-06-01", "2021-01-17"])
    figure = view.pair_network(pd.DataFrame({"t1": t1, "t2": t2}))
    assert figure.axes[0].get_title() == "5 scenes, 3 pairs, 2 separate networks"
    (bars,) = [c for c in figure.axes[0].collections if isinstance(c, LineCollection)]
    days = np.array(bars.get_segments())[:, :, 0]
    assert np.diff(days, axis=1).ravel().tolist() == [31, 121, 16]
    assert np.asarray(bars.get_array()).tolist() == [31, 121, 16]
    same = view.pair_network(stack([1.0, 2.0, 3.0]))
    assert same.axes[0].get_title() == "4 scenes, 3 pairs, 1 network"
    with pytest.raises(ParameterError, match="at least one pair"):
        view.pair_network(pd.DataFrame({"t1": t1[:0], "t2": t2[:0]}))


def test_profile_samples_the_line_with_its_error() -> None:
    data = stack([0.0])
    data["vx"][0] = 0.02 * (data["x"] - 498_000)  # a plane: bilinear sampling is exact
    figure, table = view.speed_profile(data, [(499_000, 5_000_000), (502_000, 5_000_000)], when=0, spacing=500)
    assert table["distance"].tolist() == [0, 500, 1000, 1500, 2000, 2500, 3000]
    assert table["v"].to_numpy() == pytest.approx(0.02 * (table["x"] - 498_000).to_numpy(), rel=1e-5)
    assert table["v_error"].to_numpy() == pytest.approx(np.full(7, 6.0))  # flow along x: the error of vx
    assert "Distance along the line (km)" in texts(figure)
    assert "1-sigma error" in texts(figure)


def test_profile_of_the_median_shows_the_spread() -> None:
    line = shapely.LineString([(499_000, 5_000_000), (502_000, 5_000_000)])
    figure, table = view.speed_profile(stack([10.0, 20.0, 30.0]), line)
    assert (table["v"] == 20).all()
    assert table["v_spread"].to_numpy() == pytest.approx(np.full(len(table), 14.826))
    assert "spread in time" in texts(figure)
    with pytest.raises(ParameterError, match="cross valid pixels"):
        view.speed_profile(stack([10.0]), [(0, 0), (1000, 0)])
    with pytest.raises(ParameterError, match="length above 0"):
        view.speed_profile(stack([10.0]), line, spacing=0.0)


def test_import_is_light_and_pyplot_is_never_loaded() -> None:
    code = (
        "import sys, ogive.view; assert 'matplotlib' not in sys.modules; ogive.view.speed_map; "
        "assert 'matplotlib' in sys.modules; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        view.nothing  # noqa: B018
    assert set(view.__all__) <= set(dir(view))


def read(vx: Path, vy: Path, factor: float) -> xr.Dataset:
    with rasterio.open(vx) as a, rasterio.open(vy) as b:
        box = GeoBox(a.shape, a.transform, str(a.crs))
        x, y = (s.read(1, masked=True).astype(np.float32).filled(np.nan) * factor for s in (a, b))
    return single(x, y, box)


@pytest.mark.real
def test_kaskawulsh_flows_east_and_slows_down() -> None:
    folder = DATA / "velocity" / "kaskawulsh_glaft"
    data = read(*(folder / f"20180304-20180405_velo-raw_{c}.tif" for c in ("vx", "vy")), 365)
    glacier = gpd.read_file(folder / "glacier_V1_Kaskawulsh_s_inwardBuffer600m.shp")
    figure = view.speed_map(data, outlines=glacier)
    valid = np.isfinite(data["vx"].values) & np.isfinite(data["vy"].values)
    assert f"no valid velocity ({100 * (1 - valid.mean()):.1f} %)" in texts(figure)
    image = figure.axes[0].images[0]
    assert (image.norm.vmin, image.norm.vmax) == (0, 300)
    _, table = view.speed_profile(data, [(606_000, 6_738_600), (615_500, 6_733_500)])
    assert table["v"].median() == pytest.approx(150, abs=40)
    assert (table["vx"].dropna() > 0).mean() > 0.95


@pytest.mark.real
def test_columbia_needs_a_logarithmic_scale_and_a_turned_north_arrow() -> None:
    folder = DATA / "velocity" / "columbia_itslive_v1"
    data = read(*(folder / f"crop_ALA_G0120_0000_{c}.tif" for c in ("vx", "vy")), 1.0)
    figure = view.speed_map(data)
    image = figure.axes[0].images[0]
    assert isinstance(image.norm, LogNorm)
    assert image.norm.vmax >= 2000
    east, north = style.north_direction(grid.geobox_of(data))
    assert east == pytest.approx(0.98, abs=0.01)
    assert north < 0
    assert "EPSG:3413" in texts(figure)


def stakes_table(**change: list[float]) -> pd.DataFrame:
    """As `validate.stakes` returns it: three measurements at A, one at B, one off the grid."""
    days = pd.to_datetime(["2020-01-11", "2020-02-20", "2020-04-10", "2020-01-11", "2020-01-11"])
    columns = {
        "name": ["A", "A", "A", "B", "far"],
        "x": [500_000.0, 500_010.0, 500_020.0, 503_000.0, 0.0],
        "y": [5_000_000.0] * 4 + [0.0],
        "t1": days,
        "t2": days + pd.Timedelta("30D"),
        "measured": [50.0, 62.0, 75.0, 400.0, 10.0],
        "measured_error": [1.0, 2.0, np.nan, 4.0, 1.0],
        "modelled": [51.0, 60.0, 90.0, np.nan, np.nan],
        "modelled_error": [3.0, 1.0, 2.0, np.nan, np.nan],
        "reason": ["", "", "", "gap in time", "off the grid"],
    }
    table = pd.DataFrame(columns | change)
    table["difference"] = table["modelled"] - table["measured"]
    table["sigma"] = np.hypot(table["modelled_error"], table["measured_error"].fillna(0))
    return table


def test_stakes_scatter_shows_points_bars_and_scores() -> None:
    figure = view.stakes_scatter(stakes_table())
    ax, honesty = figure.axes
    dots = {str(ln.get_label()): np.asarray(ln.get_xydata()).tolist() for ln in ax.lines if ln.get_marker() == "o"}
    assert dots == {"inside 95 % (2)": [[50, 51], [62, 60]], "outside 95 % (1)": [[75, 90]]}
    colours = {to_rgba(ln.get_color()) for ln in ax.lines if ln.get_marker() == "o"}
    assert len(colours) == 2
    (inside, outside) = ax.containers
    assert np.allclose([s[:, 0] for s in inside.lines[2][0].get_segments()], [[50 - 1.96, 50 + 1.96], [58.08, 65.92]])
    assert np.allclose([s[:, 1] for s in outside.lines[2][1].get_segments()], [[90 - 3.92, 90 + 3.92]])
    assert ax.get_xlim() == ax.get_ylim()
    low, high = ax.get_xlim()
    assert low < 50 - 1.96
    assert high > 93.92
    shown = texts(figure)
    for text in (
        "n = 3",
        "bias +4.67 m/yr",
        "RMSE 8.76 m/yr",
        "NMAD 4.45 m/yr",
        "3 measurements, 2 without a velocity",
    ):
        assert text in shown
    assert "67 % within 1 sigma, 67 % within 1.96 sigma" in shown
    heights = [p.get_height() for p in honesty.patches if isinstance(p, Rectangle) and p.get_x() > -5]
    assert sum(h for h in heights if h >= 1) >= 3


def test_stakes_scatter_without_errors_or_differences() -> None:
    table = stakes_table()
    figure = view.stakes_scatter(table.assign(sigma=np.nan), title="Stakes")
    (ax,) = figure.axes
    assert "error not known (3)" in texts(figure)
    assert "Stakes" in texts(figure)
    assert ax.get_xlabel() == "Measured speed (m/yr)"
    with pytest.raises(ParameterError, match="at least one difference"):
        view.stakes_scatter(table[3:])


def test_stakes_series_draws_both_speeds_over_their_intervals() -> None:
    data = series_of([50, 55, 60, 65, 70], [0, 0, 0, 0, flags.GAP])
    table = stakes_table()
    figure = view.stakes_series(data, table)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["A", "B"]
    ax = figure.axes[0]
    bars = {str(c.get_label()): np.array(c.get_segments()) for c in ax.collections if isinstance(c, LineCollection)}
    for kind in ("modelled", "measured"):
        (segments,) = [s for label, s in bars.items() if label.startswith(kind)]
        assert np.allclose(segments[:, :, 0], style.day_number(table[["t1", "t2"]][:3].to_numpy("datetime64[ns]")))
        assert np.allclose(segments[:, :, 1], table[[kind, kind]][:3])
    boxes = [p.get_extents() for c in ax.collections if isinstance(c, PatchCollection) for p in c.get_paths()]
    assert np.allclose(sorted(b.height for b in boxes), np.sort(3.92 * np.array([0, 1, 1, 2, 2, 3])))
    low, high = ax.get_ylim()
    assert high > 90 + 1.96 * 2
    assert low == 0  # half of the speed is no reason to cut the axis
    assert figure.axes[1].get_ylim()[1] > 400 + 1.96 * 4
    legend = {t.get_text() for t in figure.legends[0].get_texts()}
    assert {"series", "measured, 95 % box", "no valid speed"} <= legend
    (one,) = view.stakes_series(data, table, names=["B"]).axes
    assert one.get_title(loc="left") == "B"
    for names in (["far"], ["A", "C"], []):
        with pytest.raises(ParameterError, match="lie on the grid"):
            view.stakes_series(data, table, names=names)
    many = pd.concat([table[:1].assign(name=f"stake {k}") for k in range(21)])
    with pytest.raises(ParameterError, match="1 to 20"):
        view.stakes_series(data, many)


def test_stakes_figures_are_saved(tmp_path: Path) -> None:
    view.stakes_scatter(stakes_table(), path=tmp_path / "a.png")
    view.stakes_series(series_of([50, 55, 60], [0, 0, 0]), stakes_table(), path=tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        picture = matplotlib.image.imread(tmp_path / name)
        assert min(picture.shape[:2]) > 600
        assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 100
