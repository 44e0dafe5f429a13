"""Windows of real files: right pixels or a clear error, never nodata by accident. No network: servers on 127.0.0.1."""

import contextlib
import logging
import pickle
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import odc.stac
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from ogive import _access, _read, catalog, options
from ogive._access import S3Signer, TokenSigner
from ogive._read import Asset, OdcReader, StackstacReader, read, relation
from ogive.errors import GridError, ParameterError, ReadError
from ogive.testing.buckets import s3_server
from ogive.testing.readers import FakeReader
from ogive.testing.servers import Faults, range_server

SENTINEL = GeoBox((330, 310), Affine(10, 0, 340000, 0, -10, 5100000), "EPSG:32632")
# Landsat puts pixel centres on multiples of 15 m, so that corners lie in between.
LANDSAT = GeoBox((320, 300), Affine(15, 0, 465067.5, 0, -15, 6681592.5), "EPSG:32607")
READERS = [OdcReader(), StackstacReader()]
both = pytest.mark.parametrize("reader", READERS, ids=["odc", "stackstac"])


def truth(grid: GeoBox) -> NDArray[np.float64]:
    """DN as a smooth function of map position: any shift shows."""
    a = grid.affine
    y = a.f + a.e * (np.arange(grid.shape[0])[:, None] + 0.5)
    x = a.c + a.a * (np.arange(grid.shape[1])[None, :] + 0.5)
    return 3000 + 900 * np.cos(y / 90) + 800 * np.sin(x / 110)


def paint(
    path: Path, grid: GeoBox, dn: NDArray[Any] | None = None, *, nodata: int | None = 0, driver: str = "COG"
) -> Asset:
    """A file of rounded DN, and the asset that describes it."""
    dn = np.round(truth(grid) if dn is None else dn).astype(np.uint16)
    profile = {"height": dn.shape[0], "width": dn.shape[1], "count": 1, "dtype": "uint16", "nodata": nodata}
    profile |= {"crs": str(grid.crs), "transform": grid.affine, "driver": driver}
    with rasterio.open(path, "w", **profile, **({"blocksize": 128} if driver == "COG" else {})) as file:
        file.write(dn, 1)
    return Asset(path.stem, str(path), grid)


def shifted(grid: GeoBox, dy: float = 0, dx: float = 0, scale: float = 1) -> GeoBox:
    return GeoBox(grid.shape, grid.affine * Affine.translation(dx, dy) * Affine.scale(scale), grid.crs)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> dict[str, Asset]:
    folder = tmp_path_factory.mktemp("scenes")
    return {"sentinel": paint(folder / "sentinel.tif", SENTINEL), "landsat": paint(folder / "landsat.tif", LANDSAT)}


@pytest.fixture(autouse=True)
def _quick():
    with options.using(backoff=0.01, timeout=5):
        yield


# --- pixels ---------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("name", ["sentinel", "landsat"])
def test_congruent_pixels_are_the_files_own(scenes, reader, name) -> None:
    asset = scenes[name]
    values = read(reader, asset, asset.geobox, "cubic")
    assert values.dtype == np.float32
    assert np.isfinite(values).all()
    assert np.abs(values - truth(asset.geobox)).max() <= 0.51


@settings(max_examples=8)
@given(y=st.integers(-40, 300), x=st.integers(-40, 280), h=st.integers(1, 90), w=st.integers(1, 90))
@pytest.mark.parametrize("name", ["sentinel", "landsat"])
def test_both_loaders_read_a_window_as_the_slice_of_the_whole(scenes, name, y, x, h, w) -> None:
    asset = scenes[name]
    height, width = asset.geobox.shape
    whole = np.pad(np.round(truth(asset.geobox)).astype(np.float32), 200, constant_values=np.nan)
    expected = whole[y + 200 : y + h + 200, x + 200 : x + w + 200]
    window = asset.geobox.pad(200)[y + 200 : y + h + 200, x + 200 : x + w + 200]
    if y + h <= 0 or x + w <= 0 or y >= height or x >= width:
        assert np.isnan(expected).all()
    for reader in READERS:
        np.testing.assert_array_equal(read(reader, asset, window, "cubic"), expected)


@both
@pytest.mark.parametrize(
    ("window", "limit"),
    [
        (shifted(SENTINEL, 0.5, 0.25)[50:200, 60:200], 1.2),
        # The kernel widens with the pixels and smooths a little; half a pixel of shift would be 70 DN.
        (GeoBox((120, 130), SENTINEL.affine * Affine.translation(40, 30) * Affine.scale(1.5), SENTINEL.crs), 5),
        (GeoBox((150, 140), SENTINEL.affine * Affine.translation(40, 30) * Affine.scale(0.75), SENTINEL.crs), 1.2),
    ],
    ids=["half a pixel", "coarser", "finer"],
)
def test_resampled_pixels_stay_where_they_are(scenes, reader, window, limit) -> None:
    values = read(reader, scenes["sentinel"], window, "cubic")
    assert np.isfinite(values).all()
    assert np.abs(values - truth(window)).max() < limit


@both
def test_across_zones_pixels_stay_where_they_are(scenes, reader) -> None:
    window = SENTINEL[150:210, 140:200].to_crs("EPSG:32631", resolution=10)
    values = read(reader, scenes["sentinel"], window, "cubic")
    here = np.isfinite(values)
    assert here.mean() > 0.9
    a = window.affine
    y, x = np.mgrid[0 : window.shape[0], 0 : window.shape[1]] + 0.5
    from pyproj import Transformer

    x, y = Transformer.from_crs(32631, 32632, always_xy=True).transform(a.c + a.a * x, a.f + a.e * y)
    expected = 3000 + 900 * np.cos(y / 90) + 800 * np.sin(x / 110)
    assert np.abs(values - expected)[here].max() < 4


@both
@pytest.mark.parametrize("nodata", [0, None], ids=["tagged", "untagged"])
def test_a_hole_does_not_bleed_into_its_neighbours(tmp_path, reader, nodata) -> None:
    dn = truth(SENTINEL)
    dn[100:140, 120:180] = 0
    asset = paint(tmp_path / "hole.tif", SENTINEL, dn, nodata=nodata)
    congruent = read(reader, asset, SENTINEL, "cubic")
    hole = np.zeros(SENTINEL.shape, bool)
    hole[100:140, 120:180] = True
    # Without a tag the reader hands the zeros on, and the cube makes them NaN.
    assert (np.isnan(congruent[hole]) if nodata == 0 else congruent[hole] == 0).all()
    assert np.abs(congruent - truth(SENTINEL))[~hole].max() <= 0.51
    window = shifted(SENTINEL, 0.5, 0.5)[50:250, 50:250]
    values = read(reader, asset, window, "cubic")
    assert np.isnan(values[52:88, 72:128]).all()
    assert np.isfinite(values[:45]).all()
    # At the rim the kernel is one-sided: at most half a pixel of gradient. Zeros in it would cost hundreds of DN.
    assert np.nanmax(np.abs(values - truth(window))) < 60
    assert np.nanmin(values) > 1000


def test_reading_over_http_gives_the_same_pixels(scenes) -> None:
    asset = scenes["sentinel"]
    window = SENTINEL[100:200, 90:190]
    with range_server(Path(asset.href).parent) as server:
        remote = Asset("sentinel", f"{server.url}/sentinel.tif", SENTINEL)
        for reader in READERS:
            np.testing.assert_array_equal(read(reader, remote, window, "cubic"), read(reader, asset, window, "cubic"))
        assert {r.status for r in server.requests if r.path == "/sentinel.tif" and r.method == "GET"} == {206}


# --- grids ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        (SENTINEL, "congruent"),
        (SENTINEL[20:50, 3:99], "congruent"),
        (SENTINEL.pad(7), "congruent"),
        (shifted(SENTINEL, 1000, -3000), "congruent"),
        (shifted(SENTINEL, 0.0009), "congruent"),
        (shifted(SENTINEL, 0.051), "resample"),
        (shifted(SENTINEL, 0.5, 0.5), "resample"),
        (shifted(SENTINEL, scale=1.002), "resample"),
        (shifted(SENTINEL, scale=2), "resample"),
        (GeoBox((10, 10), SENTINEL.affine, "EPSG:32633"), "resample"),
        (GeoBox((10, 10), SENTINEL.affine * Affine.rotation(1), SENTINEL.crs), "resample"),
    ],
)
def test_relation(grid, expected) -> None:
    assert relation(grid, SENTINEL) == expected


@pytest.mark.parametrize(
    "grid", [shifted(SENTINEL, 0.03), shifted(SENTINEL, 0, 0.002), shifted(SENTINEL, scale=1.0008), LANDSAT]
)
def test_almost_equal_grids_are_refused_with_figures(grid) -> None:
    scene = shifted(LANDSAT, 0, 0.04) if grid is LANDSAT else SENTINEL
    with pytest.raises(GridError, match=r"must coincide.*found shift 0\.\d+ px, pixel size .* off\).*grid=None"):
        relation(grid, scene)
    with pytest.raises(GridError, match="must coincide"):
        read(OdcReader(), Asset("a", "nowhere.tif", scene), grid, "cubic")


@pytest.mark.parametrize(
    ("window", "pasted"),
    [
        (shifted(SENTINEL, 0.049, 0.049), True),
        (shifted(SENTINEL, 0.0505, 0), False),
        (shifted(SENTINEL, 0, 0.0505), False),
        (shifted(SENTINEL, scale=1.00098), True),
        (shifted(SENTINEL, scale=1.00102), False),
    ],
)
def test_the_zone_that_relation_refuses_is_the_one_that_odc_pastes(scenes, window, pasted) -> None:
    """The limits of odc-stac, on which `relation` rests. If this fails after an update, `relation` must follow."""
    loaded = odc.stac.load(
        [_read._item(scenes["sentinel"])], bands=["data"], geobox=window, dtype="float32", nodata=float("nan"),
        resampling="cubic", groupby="id",
    )["data"].values[0]  # fmt: skip
    inner = np.s_[5:-5, 5:-5]
    file = np.round(truth(SENTINEL))[inner]
    assert np.isfinite(loaded[inner]).all()
    assert np.array_equal(loaded[inner], file) == pasted
    if pasted:
        assert np.abs(loaded - truth(window))[inner].max() > 3
        with pytest.raises(GridError):
            relation(window, SENTINEL)
    else:
        assert np.abs(loaded - truth(window))[inner].max() < 1.2
        assert relation(window, SENTINEL) == "resample"


# --- failures -------------------------------------------------------------------------------------------------------


def failure(asset: Asset, reader: Any = READERS[0], **options_: Any) -> ReadError:
    with pytest.raises(ReadError) as caught:
        read(reader, asset, SENTINEL[100:150, 60:100], "cubic", **options_)
    return caught.value


@both
def test_a_missing_file_is_named(tmp_path, reader) -> None:
    message = str(failure(Asset("S2A_one", str(tmp_path / "gone.tif"), SENTINEL), reader))
    assert message.startswith("scene S2A_one: its pixels must be readable (found ")
    assert f"{tmp_path}/gone.tif, window 50 x 40 px at x 340600-341000, y 5098500-5099000: " in message
    assert "No such file" in message
    assert message.endswith("Fix: check the address, the file and the access rights, then run the same line again")


@both
def test_a_truncated_file_is_an_error_and_never_nodata(scenes, tmp_path, reader) -> None:
    whole = Path(scenes["sentinel"].href).read_bytes()
    torn = tmp_path / "torn.tif"
    torn.write_bytes(whole[: len(whole) * 6 // 10])
    asset = Asset("torn", str(torn), SENTINEL)
    with pytest.raises(ReadError, match=r"scene torn: .*torn\.tif, window 330 x 310 px"):
        read(reader, asset, SENTINEL, "cubic")
    torn.write_bytes(b"<html>Service unavailable</html>")
    assert "not recognized as being in a supported file format" in str(failure(asset, reader))


@both
def test_404_fails_at_once_and_names_the_address(scenes, reader) -> None:
    folder = Path(scenes["sentinel"].href).parent
    with range_server(folder, missing=["/sentinel.tif"]) as server:
        asset = Asset("S2A_404", f"{server.url}/sentinel.tif", SENTINEL)
        with options.using(backoff=60):
            message = str(failure(asset, reader))
        assert set(server.statuses("/sentinel.tif")) == {404}
        assert len(server.requests) <= 2
    assert f"{server.url}/sentinel.tif, window 50 x 40 px" in message
    assert "404" in message


@both
def test_503_is_tried_again_until_it_works(scenes, reader, caplog) -> None:
    asset = scenes["sentinel"]
    window = SENTINEL[100:150, 60:100]
    # GDAL asks for size and content twice each in every attempt.
    with range_server(Path(asset.href).parent, fail_first=4) as server, options.using(attempts=2):
        remote = Asset("S2A_503", f"{server.url}/sentinel.tif", SENTINEL)
        with caplog.at_level(logging.WARNING, "ogive"):
            values = read(reader, remote, window, "cubic")
        first = server.statuses("/sentinel.tif")[:5]
        assert first[:4] == [503] * 4
        assert first[4] in (200, 206)
    np.testing.assert_array_equal(values, read(reader, asset, window, "cubic"))
    warned = [r.getMessage() for r in caplog.records if r.name == "ogive"]
    assert warned[0] == "scene S2A_503: attempt 1 of 2 failed, next in 0.0 s"


def test_503_for_ever_is_given_up_after_the_attempts(scenes) -> None:
    with range_server(Path(scenes["sentinel"].href).parent, fail_first=999) as server:
        with options.using(attempts=3):
            message = str(failure(Asset("busy", f"{server.url}/sentinel.tif", SENTINEL)))
        assert len(server.requests) >= 3
        assert set(server.statuses("/sentinel.tif")) == {503}
    assert "503" in message


def test_a_number_in_a_name_is_not_a_status(tmp_path) -> None:
    """Scenes of 4 April carry 0404 in their names: they deserve their retries as well."""

    def busy(scene: str, y: Any, x: Any) -> Any:
        raise OSError("HTTP response code: 503 for S2A_20230404_T404.tif")

    reader = FakeReader(busy)
    failure(Asset("S2A_20230404", "http://127.0.0.1:1/S2A_20230404_T404.tif", SENTINEL), reader)
    assert reader.count == 4


def test_pauses_double(monkeypatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(_read.time, "sleep", pauses.append)
    reader = FakeReader(lambda scene, y, x: y + x, fail={"a": OSError("busy")})
    with options.using(backoff=0.5, attempts=4):
        failure(Asset("a", "a.tif", SENTINEL), reader)
    assert pauses == [0.5, 1.0, 2.0]


def test_a_fault_of_the_program_is_not_hidden_as_a_fault_of_the_file() -> None:
    reader = FakeReader(lambda scene, y, x: y + x, fail={"a": KeyError("typo")})
    with pytest.raises(KeyError):
        read(reader, Asset("a", "a.tif", SENTINEL), SENTINEL, "cubic")
    assert reader.count == 1
    wrong = FakeReader(lambda scene, y, x: y + x, fail={"a": ValueError("no such resampling")})
    assert "ValueError: no such resampling" in str(failure(Asset("a", "a.tif", SENTINEL), wrong))
    assert wrong.count == 1


@both
@pytest.mark.parametrize("kind", ["503", "500", "429", "timeout", "reset", "short"])
def test_any_fault_that_passes_leaves_the_pixels_as_they_are(scenes, reader, kind) -> None:
    asset, window = scenes["sentinel"], SENTINEL[100:250, 60:200]
    faults = Faults(0.3, (kind,), seed=5, silence=0.4)
    with range_server(Path(asset.href).parent, faults=faults) as server, options.using(timeout=0.3):
        remote = Asset("S2A", f"{server.url}/sentinel.tif", SENTINEL)
        for _ in range(3):
            values = read(reader, remote, window, "cubic")
            np.testing.assert_array_equal(values, read(reader, asset, window, "cubic"))
        assert server.faults[kind] >= 2


@both
def test_a_short_answer_never_becomes_no_data(tmp_path, reader, monkeypatch) -> None:
    """Cut every answer in turn. Many small tiles: their index alone takes several answers."""
    grid = GeoBox((1500, 1400), SENTINEL.affine, SENTINEL.crs)
    noise = np.random.default_rng(1).integers(1, 4000, grid.shape)
    profile = {"driver": "GTiff", "tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "DEFLATE", "zlevel": 1}
    with rasterio.open(
        tmp_path / "a.tif", "w", height=1500, width=1400, count=1, dtype="uint16", nodata=0, crs="EPSG:32632",
        transform=grid.affine, **profile,
    ) as file:  # fmt: skip
        file.write(noise.astype(np.uint16), 1)
    window = grid[700:740, 650:690]
    asked = [0, -1]

    def nth(self: Faults, what: str) -> str:
        asked[0] += 1
        return "short" if asked[0] == asked[1] else ""

    monkeypatch.setattr(Faults, "draw", nth)
    with range_server(tmp_path) as server:
        asset = Asset("a", f"{server.url}/a.tif", grid)
        for k in range(20):
            asked[:] = [0, k]
            # An error is right as well; `read` would then try again.
            with contextlib.suppress(OSError, RuntimeError), _read._signed(asset, None):
                values = reader.read(asset, window, "cubic")
                np.testing.assert_array_equal(values, noise[700:740, 650:690])
        assert server.faults["short"] >= 6


def test_a_read_error_says_what_and_whether_for_good_even_after_a_journey(tmp_path) -> None:
    error = pickle.loads(pickle.dumps(failure(Asset("S2A", str(tmp_path / "gone.tif?sig=x"), SENTINEL))))
    assert (error.scene, error.url) == ("S2A", str(tmp_path / "gone.tif"))
    assert error.window == "50 x 40 px at x 340600-341000, y 5098500-5099000"
    assert error.permanent
    assert len(error.args) == 1


@pytest.mark.parametrize(
    ("status", "permanent"), [("404", True), ("410", True), ("403", True), ("401", True), ("503", False)]
)
def test_which_answers_are_for_good(scenes, status, permanent) -> None:
    asset = scenes["sentinel"]
    with range_server(Path(asset.href).parent, faults=Faults(1, (status,))) as server, options.using(attempts=2):
        assert failure(Asset("a", f"{server.url}/sentinel.tif", SENTINEL)).permanent == permanent


@both
def test_a_damaged_file_is_told_from_a_bad_connection(scenes, tmp_path, reader, caplog) -> None:
    whole = Path(scenes["sentinel"].href).read_bytes()
    (tmp_path / "whole.tif").write_bytes(whole)
    (tmp_path / "torn.tif").write_bytes(whole[: len(whole) * 6 // 10])
    (tmp_path / "page.tif").write_bytes(b"<html>Not what you were looking for</html>")
    with range_server(tmp_path) as server, options.using(attempts=2):
        for name in ("torn", "page"):
            with pytest.raises(ReadError) as caught:
                read(reader, Asset(name, f"{server.url}/{name}.tif", SENTINEL), SENTINEL, "cubic")
            assert caught.value.permanent
            with pytest.raises(ReadError) as local:
                read(reader, Asset(name, str(tmp_path / f"{name}.tif"), SENTINEL), SENTINEL, "cubic")
            assert local.value.permanent
    # Ranges always come short, whole files come whole: the copy is read at last. And where nothing comes whole, nothing
    # is known of the file.
    for ranges_only in (True, False):
        with range_server(tmp_path, faults=Faults(1, ("short",))) as server, pytest.MonkeyPatch.context() as patch:
            if ranges_only:
                patch.setattr(Faults, "draw", lambda self, what: "short" if "bytes=" in what else "")
            asset = Asset("whole", f"{server.url}/whole.tif", SENTINEL)
            with options.using(attempts=2):
                if ranges_only:
                    np.testing.assert_array_equal(
                        read(reader, asset, SENTINEL, "cubic"), read(reader, scenes["sentinel"], SENTINEL, "cubic")
                    )
                    assert "scene whole: read from a copy of the whole file" in caplog.text
                else:
                    assert not failure(asset, reader).permanent


# --- signing --------------------------------------------------------------------------------------------------------

TOKEN = "sig=s3cr3tT0ken"


@both
def test_every_attempt_is_signed_anew(scenes, reader) -> None:
    signed = []

    def sign(url: str) -> str:
        signed.append(url)
        return f"{url}?{TOKEN}{len(signed)}"

    window = SENTINEL[100:150, 60:100]
    with range_server(Path(scenes["sentinel"].href).parent, fail_first=4) as server, options.using(attempts=2):
        asset = Asset("signed", f"{server.url}/sentinel.tif", SENTINEL)
        values = read(reader, asset, window, "cubic", sign)
    assert signed == [f"{server.url}/sentinel.tif"] * len(signed)
    assert len(signed) >= 2
    np.testing.assert_array_equal(values, read(reader, scenes["sentinel"], window, "cubic"))


@both
@pytest.mark.parametrize("how", ["sign", "href"])
@pytest.mark.parametrize("fault", ["404", "503", "torn"])
def test_a_token_reaches_neither_message_nor_log(scenes, tmp_path, reader, how, fault, caplog) -> None:
    whole = Path(scenes["sentinel"].href).read_bytes()
    (tmp_path / "a.tif").write_bytes(whole[: len(whole) // 2] if fault == "torn" else whole)
    missing, fail_first = ["/a.tif"] if fault == "404" else [], 999 if fault == "503" else 0
    with range_server(tmp_path, missing=missing, fail_first=fail_first) as server, caplog.at_level(logging.DEBUG):
        url = f"{server.url}/a.tif"
        asset = Asset("secret", url if how == "sign" else f"{url}?{TOKEN}", SENTINEL)
        sign = (lambda u: f"{u}?{TOKEN}") if how == "sign" else None
        with pytest.raises(ReadError) as caught, options.using(attempts=2):
            read(reader, asset, SENTINEL, "cubic", sign)
    assert f"{url}, window" in str(caught.value)
    assert "s3cr3t" not in "".join(traceback.format_exception(caught.value))
    assert "s3cr3t" not in "\n".join([caplog.text, *(str(r.__dict__) for r in caplog.records)])


def test_a_refused_token_is_replaced_by_a_new_one() -> None:
    tokens: list[str] = []

    def sign(url: str) -> str:
        tokens.append(f"{url}?{len(tokens)}")
        return tokens[-1]

    class Strict:
        def read(self, asset: Asset, window: GeoBox, resampling: str) -> Any:
            if asset.href != "http://x/a.tif?2":
                raise OSError(f"HTTP response code: 403 on {asset.href}")
            return np.ones(window.shape, np.float32)

    assert read(Strict(), Asset("a", "http://x/a.tif", SENTINEL), SENTINEL, "cubic", sign).all()
    assert len(tokens) == 3
    # Without a signer nothing would change: no second attempt.
    assert "403" in str(failure(Asset("a", "http://x/a.tif", SENTINEL), Strict()))


def test_a_signer_that_fails_is_a_read_error_too() -> None:
    calls = []

    def sign(url: str) -> str:
        calls.append(url)
        raise ConnectionError(f"cannot reach https://token.example/?{TOKEN}")

    message = str(failure(Asset("a", "http://x/a.tif", SENTINEL), FakeReader(lambda s, y, x: y + x), sign=sign))
    assert "scene a" in message
    assert len(calls) == 8  # four attempts to read, four to copy
    assert "ConnectionError: cannot reach https://token.example/" in message
    assert "s3cr3t" not in message


@pytest.fixture
def _no_tokens(monkeypatch):
    monkeypatch.setattr(_access, "_tokens", {})


@pytest.mark.usefixtures("_no_tokens")
def test_a_token_is_fetched_once_and_again_before_it_runs_out(scenes) -> None:
    folder, window = Path(scenes["sentinel"].href).parent, SENTINEL[100:150, 60:100]
    for life, fetched in ((3600.0, 1), (2.0, 3)):
        with range_server(folder, secret="key", life=life) as server:
            sign = TokenSigner(f"{server.url}/token", "127.0.0.1")
            asset = Asset("signed", f"{server.url}/sentinel.tif", SENTINEL)
            for _ in range(3):
                values = read(READERS[0], asset, window, "cubic", sign)
                np.testing.assert_array_equal(values, read(READERS[0], scenes["sentinel"], window, "cubic"))
            assert server.statuses("/token/127/sentinel.tif") == [200] * fetched
            # Others are none of its business, and without it nothing is to be had, for good.
            assert sign("https://elsewhere.org/a.tif") == "https://elsewhere.org/a.tif"
            assert failure(asset).permanent


@pytest.mark.usefixtures("_no_tokens")
def test_a_token_endpoint_in_trouble_is_a_fault_that_passes(scenes) -> None:
    (Path(scenes["sentinel"].href).parent / "token.html").write_text("<html>s3cr3t</html>")
    with range_server(Path(scenes["sentinel"].href).parent) as server, options.using(attempts=2):
        for address in (f"{server.url}/nowhere", f"{server.url}/token.html?"):
            error = failure(Asset("a", f"{server.url}/sentinel.tif", SENTINEL), sign=TokenSigner(address, "127.0.0.1"))
            assert not error.permanent
            assert "s3cr3t" not in str(error)


def test_signers_of_the_catalog() -> None:
    landsat = "https://landsatlook.usgs.gov/data/collection02/a.TIF"
    usgs = _access.signer("usgs")
    assert usgs is not None
    assert usgs(landsat) == "s3://usgs-landsat/collection02/a.TIF"
    assert usgs.settings["AWS_REQUEST_PAYER"] == "requester"
    assert _access.signer("cdse").settings["AWS_S3_ENDPOINT"] == "eodata.dataspace.copernicus.eu"
    assert {e.signer for e in catalog.endpoints().values()} - {None} <= set(catalog.signers())
    assert all(pickle.loads(pickle.dumps(_access.signer(name))) == _access.signer(name) for name in catalog.signers())
    with pytest.raises(ParameterError, match="must be a callable or one of none, planetary-computer"):
        _access.signer("nobody")


# --- S3 -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bucket(scenes):
    torn = Path(scenes["sentinel"].href).with_name("torn.tif")
    whole = Path(scenes["sentinel"].href).read_bytes()
    torn.write_bytes(whole[: len(whole) // 2])
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with s3_server(torn.parent, "scenes") as endpoint:
        yield endpoint


@pytest.fixture
def aws(monkeypatch, bucket):
    for name, value in {
        "AWS_ENDPOINT_URL": bucket, "AWS_ACCESS_KEY_ID": "AKIAs3cr3t", "AWS_SECRET_ACCESS_KEY": "s3cr3t",
        "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("aws")
@both
def test_s3_gives_the_same_pixels_and_names_what_is_missing(scenes, reader, caplog) -> None:
    window = SENTINEL[100:200, 90:190]
    with caplog.at_level(logging.DEBUG):
        values = read(reader, Asset("here", "s3://scenes/sentinel.tif", SENTINEL), window, "cubic")
        gone = failure(Asset("gone", "s3://scenes/gone.tif", SENTINEL), reader)
    np.testing.assert_array_equal(values, read(reader, scenes["sentinel"], window, "cubic"))
    assert gone.permanent
    assert "s3://scenes/gone.tif" in str(gone)
    assert "s3cr3t" not in "\n".join([str(gone), caplog.text])


@pytest.mark.usefixtures("aws")
def test_a_damaged_file_in_s3_is_known_by_its_whole_copy() -> None:
    asset = Asset("torn", "s3://scenes/torn.tif", SENTINEL)
    with pytest.raises(ReadError) as caught:
        read(READERS[0], asset, SENTINEL, "cubic")
    assert caught.value.permanent


@pytest.mark.parametrize(("sign", "header"), [(None, None), (S3Signer(requester_pays=True), "requester")])
@pytest.mark.usefixtures("aws")
@both
def test_the_requester_pays_only_where_he_agreed(scenes, reader, sign, header, monkeypatch) -> None:
    """A plain file server stands for S3: it sees the headers."""
    with range_server(Path(scenes["sentinel"].href).parent) as server:
        (Path(scenes["sentinel"].href).parent / "scenes").mkdir(exist_ok=True)
        copy = Path(scenes["sentinel"].href).parent / "scenes" / "sentinel.tif"
        copy.write_bytes(Path(scenes["sentinel"].href).read_bytes())
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        read(reader, Asset("a", "s3://scenes/sentinel.tif", SENTINEL), SENTINEL[:50, :50], "cubic", sign)
        assert {r.headers.get("x-amz-request-payer") for r in server.requests} == {header}
        assert all("AWS4-HMAC-SHA256" in r.headers["Authorization"] for r in server.requests)


@pytest.mark.usefixtures("aws")
def test_unsigned_access_sends_no_signature(scenes, monkeypatch) -> None:
    folder = Path(scenes["sentinel"].href).parent
    (folder / "open").mkdir()
    (folder / "open" / "a.tif").write_bytes(Path(scenes["sentinel"].href).read_bytes())
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    with range_server(folder) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        read(READERS[0], Asset("a", "s3://open/a.tif", SENTINEL), SENTINEL[:50, :50], "cubic")
        assert not any("Authorization" in r.headers for r in server.requests)
        assert server.requests
