"""Velocities that others made, opened as ogive velocities: ITS_LIVE cubes, image pairs and point tables, TICOI cubes.

What differs between the layouts is sorted out here and nowhere else: names, units, the time axis, missing values that
a decoder would mistake (0 of `interp_mask`), images in the wrong order, ascending y, mappings that lost half of their
attributes. Cubes stay lazy: all pairs of a few cells are one Dask chunk, made of whole chunks of the file.

Layouts: Gardner, A. S., et al., ITS_LIVE Regional Glacier and Ice Sheet Surface Velocities (NSIDC), as found in public
files; Charrier, L., et al. (2022), doi:10.1109/TGRS.2021.3099214, as found in files written by TICOI.
"""

import importlib.util
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pyproj
import xarray as xr
import zarr
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from . import flags, grid, provenance
from ._itslive import token_date
from ._trust import assert_codecs, understood
from .errors import GridError, StoreError

UNDERSTOOD = (
    "ogive stores; ITS_LIVE cubes (Zarr or netCDF, mid_date or time), image pairs (netCDF, one file or a list of them) "
    "and point tables (CSV); cubes in TICOI's generic layout; TICOI series (netCDF)"
)
CELL = 120.0
"""Cells of the ITS_LIVE grid [m]."""
_BLOCK_BYTES = 8 * 2**20
"""One velocity component of a block: several threads hold a few of them each."""
_UNIT_BYTES = 256 * 2**20
"""The file's own chunks are the unit of blocks unless all pairs of one unit are larger."""
_RATE = {"units": "meter/year", "grid_mapping": "mapping"}
_MAPS = ("vx", "vy", "v")
_INTEGERS = {"chip_size_width": (np.uint16, 0), "chip_size_height": (np.uint16, 0), "interp_mask": (np.uint8, 255)}
"""Type and missing value of the maps that are not velocities."""
_CODES = tuple(f"{kind}_img{k}" for kind in ("mission", "satellite", "sensor") for k in (1, 2))
_PER_PAIR = re.compile(r"v[xy]_(error|stable_shift)(_\w+)?|stable_(shift_flag|count_\w+)")
_ALIASES = {
    "date1": "acquisition_date_img1", "date2": "acquisition_date_img2", "errorx": "vx_error", "errory": "vy_error",
}  # fmt: skip
_PER_YEAR = {
    **dict.fromkeys(("m/y", "m/yr", "m/year", "m year-1", "m yr-1", "meter/year", "meter year-1"), 1.0),
    **dict.fromkeys(("m/d", "m/day", "m day-1", "m d-1", "meter/day"), grid.YEAR_DAYS),
}


def open_foreign(path: Any) -> xr.Dataset:
    """Open what others made: a file, a store, a URL, or a list of image-pair files.

    Raises
    ------
    StoreError
        The layout is not understood, or the file cannot be read.
    GridError
        No coordinate system, or uneven coordinates.
    """
    with understood(str(path)[:200], StoreError):
        return _open(path)


def _open(path: Any) -> xr.Dataset:
    from ._granules import open_granules

    if isinstance(path, list | tuple):
        return open_granules([str(p) for p in path])
    name = str(path)
    if Path(name).suffix.lower() == ".csv":
        return open_point(name)
    raw = open_raw(name)
    if "img_pair_info" in raw.variables:
        return open_granules([name])
    if is_ticoi(raw):
        return open_series(raw, name)
    dates = {"acquisition_date_img1", "acquisition_date_img2"} <= {_ALIASES.get(str(n), str(n)) for n in raw.variables}
    if dates and {"vx", "vy"} <= set(raw.variables) and len({"mid_date", "time"} & set(raw["vx"].dims)) == 1:
        return open_cube(raw, name)
    found = f"dimensions {dict(raw.sizes)}, variables {', '.join(sorted(map(str, raw.data_vars))[:12]) or 'none'}"
    fix = f"choose another path; understood are {UNDERSTOOD}"
    raise StoreError(name, rule="is not an ogive store, nor a velocity of a known layout", value=found, fix=fix)


def open_raw(name: str) -> xr.Dataset:
    """A netCDF file or a Zarr store as it is: nothing decoded, nothing read but coordinates."""
    try:
        if Path(name).suffix.lower() in (".nc", ".nc4", ".h5"):
            raw: xr.Dataset = xr.open_dataset(name, decode_cf=False, chunks=None)
        else:
            with warnings.catch_warnings():  # without consolidated metadata it only takes longer
                warnings.simplefilter("ignore", RuntimeWarning)
                assert_codecs(zarr.open_group(name, mode="r"), name)
                raw = xr.open_zarr(name, decode_cf=False, chunks=None)
        return raw
    except FileNotFoundError as error:
        if "://" not in name and Path(name).exists():
            fix = f"choose another path; understood are {UNDERSTOOD}"
            raise StoreError(name, rule="is not an ogive store, nor any other Zarr store", fix=fix) from error
        raise StoreError(name, rule="does not exist", fix="choose another path") from error
    except (OSError, ValueError, KeyError, ImportError, zarr.errors.BaseZarrError) as error:
        absent = [n for n in ("h5netcdf", "h5py") if importlib.util.find_spec(n) is None]
        fix = "pip install 'ogive[netcdf]'" if absent else f"choose another path; understood are {UNDERSTOOD}"
        raise StoreError(name, rule=f"is not an ogive store, and cannot be read: {error}", fix=fix) from error


def open_cube(raw: xr.Dataset, name: str) -> xr.Dataset:
    """ITS_LIVE cubes, version 2 (`mid_date`) and 2.2 (`time`), and pair cubes in TICOI's generic layout."""
    generic = "date1" in raw.variables and "acquisition_date_img1" not in raw.variables
    itslive = not generic and "ITS_LIVE" in str(raw.attrs.get("author", "")) + str(raw.attrs.get("url", ""))
    _assert_whole(raw, name)
    raw = raw.rename({old: new for old, new in _ALIASES.items() if generic and old in raw.variables})
    raw = raw.rename({"time": "mid_date"} if "time" in raw["vx"].dims else {})
    box, raw = on_grid(raw)
    chunks = blocks(raw["vx"])
    wanted = [n for n in map(str, raw.variables) if n in _MAPS or "date_" in n or _PER_PAIR.fullmatch(n)]
    plain = xr.decode_cf(raw[[n for n in wanted if n != "date_dt"]], decode_timedelta=False)
    maps = {n: plain[n].chunk(chunks) for n in _MAPS if n in plain}
    maps |= {n: raw[n].chunk(chunks).astype(dtype) for n, (dtype, _) in _INTEGERS.items() if n in raw}
    pairs: dict[str, Any] = {
        n: plain[n].values for n in map(str, plain.variables) if plain[n].dims == ("mid_date",) and n != "mid_date"
    }
    if "mid_date" in plain.variables and plain["mid_date"].dtype.kind == "M":
        pairs["mid_date"] = plain["mid_date"].values
    pairs |= {n: raw[n].values.astype(object) for n in _CODES if n in raw}
    if generic and "sensor" in raw:
        pairs |= _generic_codes(raw["sensor"].values.astype(object))
    if "granule_url" in raw:
        # A URL has 4 kB decoded: read only when somebody asks for the ids.
        # The file may call the dimension otherwise.
        native = [*raw["granule_url"].encoding.get("preferred_chunks", {}).values(), -1]
        urls = raw["granule_url"].chunk({"mid_date": native[0]}).data
        pairs |= {f"image_id{k}": urls.map_blocks(_image_id, k, dtype=object).rechunk(-1) for k in (1, 2)}
    if generic and "source" in raw:
        source = raw["source"].values.astype(object)
    else:
        source = np.array("ITS_LIVE" if itslive else str(raw.attrs.get("author", "")) or Path(name).stem)
    velocity = assemble(maps, pairs, box, source, layout="cube", path=name, url=str(raw.attrs.get("url", "")))
    for mask in ("landice", "floatingice"):
        if mask in raw:
            velocity[mask] = raw[mask].drop_vars(raw[mask].coords).chunk({d: chunks[d] for d in ("y", "x")})
            velocity[mask].attrs = {"flag_values": [0, 1], "missing_value": 255, "grid_mapping": "mapping"}
    return velocity


def assemble(
    maps: Mapping[str, Any], pairs: Mapping[str, Any], box: GeoBox, source: NDArray[Any], **origin: Any
) -> xr.Dataset:
    """A velocity Dataset from its maps (pairs, y, x), its values for each pair and its grid.

    Parameters
    ----------
    maps : mapping of DataArray
        `vx`, `vy` [meter/year], NaN where missing; optionally `v`, `interp_mask`, chip sizes.
    pairs : mapping of (N,) arrays
        Acquisition dates; optionally `date_center`, `mid_date`, codes, image ids, errors and shifts.
    box : GeoBox
    source : str array, (N,) or scalar
        Where the pairs come from.
    **origin
        For the provenance.
    """
    axes = ("mid_date", "y", "x")
    maps = {n: m.transpose(*axes).variable.to_base_variable() for n, m in maps.items()}
    valid = maps["vx"].notnull() & maps["vy"].notnull()
    flag = ~valid * np.uint16(flags.NO_DATA)
    if "interp_mask" in maps:
        flag = flag + (valid & (maps["interp_mask"] == 1)) * np.uint16(flags.INTERPOLATED)
    if "v" not in maps:
        maps["v"] = (maps["vx"] ** 2 + maps["vy"] ** 2) ** 0.5
    data: dict[str, Any] = {n: (axes, maps[n].data.astype(np.float32), _RATE) for n in _MAPS}
    data |= {n: (axes, maps[n].data, {"grid_mapping": "mapping"}) for n in _INTEGERS if n in maps}
    data["flag"] = (axes, flag.data, {**flags.attributes(), "grid_mapping": "mapping"})
    pairs = _ordered(dict(pairs))
    count = len(pairs["acquisition_date_img1"])
    dates = [pairs[f"acquisition_date_img{k}"] for k in (1, 2)]
    centre = _microseconds(pairs.get("date_center", dates[0] + (dates[1] - dates[0]) // 2))
    middle = _microseconds(pairs["mid_date"]) if "mid_date" in pairs else token_date(centre, dates[0])
    coords: dict[str, Any] = {
        "mid_date": middle, "date_center": centre, "acquisition_date_img1": dates[0], "acquisition_date_img2": dates[1],
        "date_dt": ((dates[1] - dates[0]) / np.timedelta64(1, "D")).astype(np.float32), "pair_id": np.arange(count),
        **{n: pairs[n] for n in _CODES if n in pairs},
        "source": np.broadcast_to(source.astype(object), count).copy(),
    }  # fmt: skip
    for name, values in pairs.items():
        if _PER_PAIR.fullmatch(name):
            units = {"units": "meter/year"} if name[0] == "v" else {}
            data[name] = ("mid_date", np.asarray(values, np.float32 if name[0] == "v" else None), units)
    # Not coordinates: those are computed with every map.
    data |= {n: ("mid_date", pairs[n]) for n in ("image_id1", "image_id2") if n in pairs}
    coords = {n: ("mid_date", values) for n, values in coords.items()}
    out = xr.Dataset(data, {**coords, **grid.coordinates(box), "mapping": grid.mapping(box)})
    out["date_dt"].attrs = {"units": "days"}
    out.attrs = {**_attributes("velocity"), "title": "Glacier surface velocity of image pairs"}
    return provenance.record(out, "open_velocity", **origin)


def _attributes(kind: str) -> dict[str, Any]:
    return {
        "Conventions": "CF-1.11",
        "kind": kind,
        "schema_version": grid.SCHEMA_VERSION,
        "year_length_days": grid.YEAR_DAYS,
        "provenance": "{}",
    }


def _ordered(pairs: dict[str, Any]) -> dict[str, Any]:
    """Dates exact to a microsecond, image 1 before image 2, codes as texts.

    Where the file has the later image first its velocity still counts from the earlier to the later image: in such a
    pair over Pine Island Glacier the ice flows to the sea.
    """
    for k in (1, 2):
        pairs[f"acquisition_date_img{k}"] = _microseconds(pairs[f"acquisition_date_img{k}"])
    swap = pairs["acquisition_date_img1"] > pairs["acquisition_date_img2"]
    for name in [n for n in pairs if n.endswith(("_img1", "_id1")) and n[:-1] + "2" in pairs and swap.any()]:
        one, two = pairs[name], pairs[name[:-1] + "2"]
        where = da.where if isinstance(one, da.Array) else np.where
        pairs[name], pairs[name[:-1] + "2"] = where(swap, two, one), where(swap, one, two)
    return pairs | {n: np.array([code_of(c) for c in pairs[n].tolist()], object) for n in _CODES if n in pairs}


def code_of(value: Any) -> str:
    """A code as text; version 1 files have numbers.

    Examples
    --------
    >>> code_of(7.0), code_of("2A"), code_of("8.0")
    ('7', '2A', '8')
    """
    return str(value).strip().removesuffix(".0")


def _microseconds(dates: NDArray[Any]) -> NDArray[Any]:
    """Dates rounded to microseconds: float64 days carry some hundred nanoseconds of noise."""
    return np.asarray(pd.DatetimeIndex(dates).as_unit("ns").round("us").values, "M8[ns]")


def _image_id(urls: NDArray[Any], k: int) -> NDArray[Any]:
    """Product name of image k from the URL of a granule, empty where there is none."""
    names = [str(u).rsplit("/", 1)[-1].split("_X_") for u in urls.tolist()]
    ids = [re.sub(r"_G\d{4}V\d\d_P\d+\.nc$", "", n[k - 1]) if len(n) == 2 else "" for n in names]
    return np.array(ids, object)


_NAMES = {"Landsat": "L", "Sentinel": "S"}


def _generic_codes(sensors: NDArray[Any]) -> dict[str, Any]:
    """Mission and satellite from names such as "L8", "S2A", "Landsat-8", "Sentinel-2"."""
    short = np.array(
        [re.sub(r"^(Landsat|Sentinel)-?", lambda m: _NAMES[m[1]], str(s).strip()) for s in sensors.tolist()]
    )
    known = np.array([re.fullmatch(r"[LS]\d[A-D]?", s) is not None for s in short.tolist()])
    out: dict[str, Any] = {}
    for k in (1, 2):
        out[f"mission_img{k}"] = np.where(known, [s[:1] for s in short.tolist()], "")
        out[f"satellite_img{k}"] = np.where(known, [s[1:] for s in short.tolist()], "")
    return out


def blocks(vx: xr.DataArray) -> dict[str, int]:
    """Chunks of a lazy cube: all pairs of some cells, whole chunks of the file where these are not huge."""
    native = vx.encoding.get("preferred_chunks", {})
    pairs = vx.sizes["mid_date"]
    unit = {d: min(int(native.get(d, 1)), vx.sizes[d]) for d in ("y", "x")}
    if 4 * pairs * unit["y"] * unit["x"] > _UNIT_BYTES:
        unit = {"y": 1, "x": 1}
    side = max(1, int((_BLOCK_BYTES / (4 * pairs)) ** 0.5)) if pairs else 1
    return {"mid_date": -1, **{d: min(max(side // n, 1) * n, vx.sizes[d]) for d, n in unit.items()}}


def on_grid(raw: xr.Dataset) -> tuple[GeoBox, xr.Dataset]:
    """The grid of a file, and the file with y descending and x ascending."""
    for name, wrong in (("y", 1), ("x", -1)):
        values = raw[name].values if name in raw.coords else np.empty(0)
        if values.size > 1 and np.sign(values[-1] - values[0]) == wrong:
            raw = raw.isel({name: slice(None, None, -1)})
    names = [str(raw["vx"].attrs.get("grid_mapping", "")), "mapping", "spatial_ref", "Polar_Stereographic"]
    attrs = next((raw[n].attrs for n in names if n in raw.variables and raw[n].attrs), {})
    crs = _crs({**raw.attrs, **attrs})
    bare = xr.Dataset(coords={n: np.asarray(raw[n].values, np.float64) for n in ("y", "x")})
    for name in ("y", "x"):
        bare = bare.assign_coords({name: _even(bare[name].values)})
    kept = {"GeoTransform": attrs["GeoTransform"]} if "GeoTransform" in attrs else {}
    epsg = {"spatial_epsg": crs.to_epsg()} if crs.to_epsg() else {}
    bare["mapping"] = ((), 0, {"crs_wkt": crs.to_wkt("WKT1_GDAL"), **kept, **epsg})
    return grid.geobox_of(bare), raw


def _even(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coordinates without the rounding of float32 files: within 1 % of a cell they are what was meant."""
    if values.size < 2:
        return values
    even = np.linspace(values[0], values[-1], values.size)
    step = abs(even[1] - even[0])
    return even if np.abs(even - values).max() < 0.01 * step else values


def _crs(attrs: Mapping[str, Any]) -> pyproj.CRS:
    """The coordinate system; never from CF numbers, which version 1 files give in kilometres."""
    epsg = attrs.get("spatial_epsg") or str(attrs.get("projection", ""))
    for text in (f"EPSG:{int(float(epsg))}" if str(epsg).replace(".", "").isdigit() else "",
                 *(str(attrs.get(k, "")) for k in ("crs_wkt", "spatial_ref", "proj4text", "proj4"))):  # fmt: skip
        if text:
            crs = pyproj.CRS.from_user_input(text)
            code = crs.to_epsg(min_confidence=20)
            return pyproj.CRS.from_epsg(code) if code and text.startswith("+") else crs
    raise GridError("file", rule="has no coordinate system", fix="set its attribute projection, e.g. '32646'")


def _assert_whole(raw: xr.Dataset, name: str) -> None:
    """A chunk that is not there must read as missing; where it would read as 0 m/yr all chunks must be there."""
    if "://" in name or Path(name).is_file():
        return
    group = zarr.open_group(name, mode="r")
    for component in ("vx", "vy"):
        array = group[component]
        assert isinstance(array, zarr.Array)
        missing = raw[component].attrs.get("missing_value", raw[component].attrs.get("_FillValue", np.nan))
        if array.fill_value is not None and np.array_equal(array.fill_value, missing, equal_nan=True):
            continue
        if array.nchunks_initialized < array.nchunks:
            raise StoreError(
                f"{name}/{component}", rule="lacks chunks, which would read as a velocity of 0",
                value=f"{array.nchunks_initialized} of {array.nchunks}", fix="copy the cube again",
            )  # fmt: skip


def open_point(name: str) -> xr.Dataset:
    """A point table of ITS_LIVE (CSV) as a velocity of one cell, the cell centred on the point.

    The tables have no acquisition dates; `point_dates` finds them, as whole days.
    """
    try:
        table = pd.read_csv(name, dtype={"mission": str, "satellite": str})
    except FileNotFoundError as error:
        raise StoreError(name, rule="does not exist", fix="choose another path") from error
    table = table.rename(columns={c: re.sub(r" \[.*\]", "", c) for c in table.columns})
    needed = ["mid_date", "lon", "lat", "vx", "vy", "vx_error", "vy_error", "date_dt", "epsg"]
    missing = [c for c in needed if c not in table]
    if missing:
        rule = f"is no point table of ITS_LIVE: columns {missing} are missing"
        raise StoreError(name, rule=rule, value=list(table.columns), fix=f"understood are {UNDERSTOOD}")
    places = table[["lon", "lat", "epsg"]].drop_duplicates()
    if len(places) != 1:
        raise StoreError(name, rule="must hold one point", value=len(places), fix="open one file for each point")
    lon, lat, epsg = places.iloc[0]
    x, y = pyproj.Transformer.from_crs(4326, int(epsg), always_xy=True).transform(lon, lat)
    box = GeoBox((1, 1), Affine(CELL, 0, x - CELL / 2, 0, -CELL, y + CELL / 2), f"EPSG:{int(epsg)}")
    middle = np.asarray(pd.to_datetime(table["mid_date"], format="ISO8601"), "M8[ns]")
    radar = np.zeros(len(table), bool)
    if {"mission", "satellite"} <= set(table):
        radar = (table["mission"].eq("S") & table["satellite"].str.startswith("1")).to_numpy()
    first, second = point_dates(middle, table["date_dt"].to_numpy(np.float64), float(lon), radar)
    pairs: dict[str, Any] = {"acquisition_date_img1": first, "acquisition_date_img2": second, "mid_date": middle}
    pairs |= {f"v{c}_error": table[f"v{c}_error"].to_numpy(np.float32) for c in "xy"}
    codes = [c for c in ("mission", "satellite") if c in table]
    pairs |= {f"{c}_img{k}": table[c].to_numpy(str) for c in codes for k in (1, 2)}
    maps = {
        c: xr.DataArray(table[c].to_numpy(np.float32)[:, None, None], dims=("mid_date", "y", "x")).chunk()
        for c in _MAPS if c in table
    }  # fmt: skip
    return assemble(maps, pairs, box, np.array("ITS_LIVE"), layout="point table", path=name)


def point_dates(
    middle: NDArray[Any], days: NDArray[np.float64], longitude: float, radar: NDArray[np.bool_]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Acquisition dates (whole days) from the middle date and the baseline truncated to whole days.

    Orbits repeat at the same time of day, so the true baseline is a whole number of days, as given or one more: the one
    that puts optical images into daylight, or that is a multiple of 6 days for Sentinel-1. Where the microseconds of
    `middle` are a date (YYMMDD) within two days of the first image, they are its date. On the 47 530 optical pairs of a
    real cube, which has all dates, both are exact.

    Examples
    --------
    >>> middle = np.array(["2016-11-08T21:16:57.161024", "2018-12-02T03:19:43.374202"], "M8[ns]")
    >>> first, second = point_dates(middle, np.array([30.0, 35.0]), -146.98, np.array([False, True]))
    >>> first.astype("M8[D]").tolist()
    [datetime.date(2016, 10, 24), datetime.date(2018, 11, 14)]
    >>> ((second - first) / np.timedelta64(1, "D")).tolist()
    [30.0, 36.0]
    """
    day = np.timedelta64(86400 * 10**9, "ns")
    first = middle - days / 2 * day
    hour = (first - first.astype("M8[D]")) / day
    noon = 0.5 - longitude / 360
    night = np.abs((hour - noon + 0.5) % 1 - 0.5) > 0.25
    length = days + np.where(radar, (days + 1) % 6 == 0, night)
    first = middle - length / 2 * day
    token = pd.DatetimeIndex(middle).round("us").microsecond  # pandas and others store it with noise below 1 us
    told = np.asarray(pd.to_datetime([f"{t:06d}" for t in token], format="%y%m%d", errors="coerce"), "M8[ns]")
    close = np.abs(told - first) <= np.timedelta64(2, "D")  # not a date is not close
    first = np.where(close, told, first.astype("M8[D]").astype("M8[ns]"))
    return first, first + length * day


def is_ticoi(raw: xr.Dataset) -> bool:
    """Whether a file holds a series written by TICOI rather than image pairs."""
    made = "xcount_x" in raw.variables or str(raw.attrs.get("source", "")).startswith("Temporal inversion")
    return made and {"vx", "vy", "date1", "date2"} <= set(raw.variables)


def open_series(raw: xr.Dataset, name: str) -> xr.Dataset:
    """A series written by TICOI: window means with `count` (mean of both components), errors where it has them."""
    box, raw = on_grid(raw)
    dim = next(str(d) for d in raw["vx"].dims if d not in ("y", "x"))
    # Every date counts from an epoch of its own, which is in `units`; the unit of the others is in `unit`.
    dates = xr.decode_cf(raw[["date1", "date2"]].drop_vars(dim, errors="ignore"))
    start, end = (_microseconds(dates[n].values) for n in ("date1", "date2"))
    factor = _factor(raw["vx"].attrs, name)
    renamed = {"xcount_x": "cx", "xcount_y": "cy", "error_x": "vx_error", "error_y": "vy_error"}
    kept = {old: renamed.get(old, old) for old in ("vx", "vy", *renamed) if old in raw.variables}
    plain = xr.decode_cf(raw[list(kept)].drop_vars([dim, "y", "x"], errors="ignore")).rename(kept)
    cells = {"y": min(64, plain.sizes["y"]), "x": min(64, plain.sizes["x"])}
    maps = plain.chunk({dim: -1, **cells}).rename({dim: "time"}).transpose("time", "y", "x").astype(np.float32)
    for n in maps.data_vars:
        maps[n].attrs = dict(_RATE)
        maps[n] = maps[n] * np.float32(factor) if str(n)[0] == "v" else maps[n]
    maps["v"] = ((maps["vx"] ** 2 + maps["vy"] ** 2) ** 0.5).assign_attrs(_RATE)
    if "cx" in maps:
        one = {"units": "1", "grid_mapping": "mapping", "long_name": "weight of the pairs, mean of both components"}
        maps["count"] = ((maps["cx"] + maps["cy"]) / 2).where(maps["vx"].notnull()).assign_attrs(one)
        maps = maps.drop_vars(["cx", "cy"])
    gap = maps["vx"].isnull() | maps["vy"].isnull()
    maps["flag"] = (gap * np.uint16(flags.GAP)).assign_attrs(**flags.attributes(), grid_mapping="mapping")
    out = maps.assign_coords(
        time=("time", start + (end - start) // 2, {"standard_name": "time", "bounds": "time_bnds"}),
        time_bnds=(("time", "bnds"), np.stack([start, end], 1)),
    ).assign_coords({**grid.coordinates(box), "mapping": grid.mapping(box)})
    out.attrs = {**_attributes("series"), "title": "Glacier surface velocity, time series", "source": "TICOI"}
    return provenance.record(out, "open_velocity", layout="TICOI series", path=name)


def _factor(attrs: Mapping[str, Any], name: str) -> float:
    unit = str(attrs.get("unit", attrs.get("units", "m/y"))).strip()
    if unit not in _PER_YEAR:
        raise StoreError(f"{name}: vx", rule="has an unknown unit", value=unit, fix=f"use one of {sorted(_PER_YEAR)}")
    return _PER_YEAR[unit]
