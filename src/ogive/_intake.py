"""The catalogs, shipped and the user's own, and the intake readers that they name.

A catalog is code: its entries name Python objects that intake imports and calls, and templates that read environment
variables or unpickle text. intake's own switches do not guard all of that. So `check_catalog` accepts nothing but what
is listed here, and the catalog is built from the very text that was checked. It is a first line, not a proof: an
entry may still point at any file or address.
"""

import os
import re
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, cast

import pystac
import xarray as xr
from intake.readers import datatypes
from intake.readers.entry import Catalog
from intake.readers.readers import BaseReader

from . import grid
from ._trust import assert_image, check_href, plain_yaml, understood
from .errors import ParameterError, SearchError

OWN_FOLDER = "OGIVE_CATALOGS"
"""The environment variable that names the folder of the user's catalogs; default `~/.ogive/catalogs`."""
READERS = (
    "ogive.catalog:StacItems",
    "ogive.catalog:StacCube",
    "ogive.catalog:Velocity",
    "ogive.catalog:Mosaic",
    "intake.readers.readers:GeoPandasReader",
)
DATATYPES = tuple(
    f"intake.readers.datatypes:{name}" for name in ("STACJSON", "Zarr", "GeoJSON", "GeoPackage", "Shapefile", "TIFF")
)
OUTPUTS = ("pystac:ItemCollection", "xarray:Dataset", "geopandas:GeoDataFrame")
_LEVELS = {
    "catalog": {"version", "metadata", "user_parameters", "aliases", "data", "entries"},
    "data": {"datatype", "kwargs", "metadata", "user_parameters"},
    "entries": {"reader", "output_instance", "kwargs", "metadata", "user_parameters"},
}


def catalog_folder() -> Path:
    """The folder of the shipped catalogs: inside the installed package, or at the top of a source checkout."""
    inside = Path(str(resources.files(__package__))) / "catalogs"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "catalogs"


def own_folder() -> Path:
    """The folder of the user's own catalogs; it need not be there."""
    return Path(os.environ.get(OWN_FOLDER) or "~/.ogive/catalogs").expanduser()


def catalog_files() -> dict[str, Path]:
    """Shipped catalogs and the user's own, by name.

    Raises
    ------
    SearchError
        One of the user's has the name of a shipped one.
    """
    shipped, own = ({f.stem: f for f in sorted(d.glob("*.yaml"))} for d in (catalog_folder(), own_folder()))
    if both := sorted(set(shipped) & set(own)):
        raise SearchError(f"catalogs in {own_folder()}", rule="need names of their own", value=both, fix="rename them")
    return shipped | own


def open_catalog(name_or_path: str | Path | None = None, /, **parameters: str | float | Path) -> Catalog:
    """Open an intake-2 catalog after checking that it names nothing but known readers; also `og.catalog(...)`.

    Parameters
    ----------
    name_or_path : str or Path, optional
        `stac` or `products` (shipped), one of the user's folder by its name, or the path of a YAML file on this
        machine. Addresses are not accepted. By default all shipped ones and all of the user's folder as one.
    **parameters
        Values for parameters of the catalog.

    Returns
    -------
    intake.readers.entry.Catalog
        `list(cat)` shows the public entries, `cat[name].read()` reads one.

    Raises
    ------
    SearchError
        No such catalog, or one that names code, templates or fields outside the allowed lists, or two catalogs that
        give one name to different things.
    ParameterError
        The catalog has no such parameter, or it has another type.

    Examples
    --------
    >>> sorted(open_catalog("products"))
    ['itslive-annual', 'itslive-cube', 'itslive-cubes', 'itslive-mosaic', 'rgi60', 'rgi70']
    """
    known = catalog_files()
    if name_or_path is None:
        doc, name = _united({key: _document(path) for key, path in known.items()}), "all catalogs"
    else:
        path = known.get(str(name_or_path)) or Path(name_or_path)
        if not path.is_file():
            fix = f"use one of {sorted(known)} or the path of a YAML file"
            raise SearchError(f"catalog {str(name_or_path)!r}", rule="must be a file on this machine", fix=fix)
        doc, name = _document(path), str(path)
    doc = {**doc, "user_parameters": _set(doc["user_parameters"], parameters)}
    with understood(f"catalog {name}", SearchError):
        # Again: values given here may be templates, too.
        check_catalog(doc, name)
        return Catalog.from_dict(doc)


def _document(path: Path) -> dict[str, Any]:
    """A catalog, read and checked."""
    try:
        doc = plain_yaml(path.read_text())
    except (ValueError, OSError) as error:
        raise SearchError(
            f"catalog {path}", rule="must be plain YAML", value=str(error), fix="correct the file"
        ) from error
    with understood(f"catalog {path}", SearchError):
        check_catalog(doc, str(path))
    checked: dict[str, Any] = doc
    return checked


def _united(docs: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Several catalogs as one; what two of them call alike must be one thing."""
    levels = ("user_parameters", "aliases", "data", "entries")
    united: dict[str, Any] = {"version": 2, "metadata": {}, **{level: {} for level in levels}}
    for name, doc in docs.items():
        for level in levels:
            both = [key for key in doc[level] if key in united[level] and united[level][key] != doc[level][key]]
            if both:
                raise SearchError(f"catalog {name}", rule=f"must not take {level} of others", value=both, fix="rename")
            united[level] |= doc[level]
    return united


def _set(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with some values in place of their defaults; intake would take any name and any type."""
    told = {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
    for key, value in told.items():
        if key not in defaults:
            raise ParameterError(f"catalog parameter {key!r}", rule=f"must be one of {sorted(defaults)}")
        number = isinstance(defaults[key], int | float)
        if isinstance(value, bool) or not isinstance(value, int | float if number else str):
            kind = "a number" if number else "a text"
            raise ParameterError(f"catalog parameter {key!r}", rule=f"must be {kind}", value=repr(value))
    return {**defaults, **told}


def check_catalog(doc: Any, name: str) -> None:
    """Refuse a catalog that names anything outside our lists.

    Parameters
    ----------
    doc : parsed YAML
    name : str
        What to call the catalog in the error.

    Raises
    ------
    SearchError
        Lists everything that was refused.
    """
    if not isinstance(doc, dict) or doc.get("version") != 2 or not _LEVELS["catalog"] <= set(doc):
        needs = ", ".join(sorted(_LEVELS["catalog"]))
        raise SearchError(
            f"catalog {name}", rule=f"must be an intake catalog of version 2 with {needs}", fix="add them"
        )
    wrong = [level for level in ("aliases", "data", "entries", "user_parameters") if not isinstance(doc[level], dict)]
    if wrong:
        raise SearchError(f"catalog {name}", rule="must map names to values", value=wrong, fix="correct them")
    lacking = [
        f"{level} {key!r}: {field}"
        for level in ("data", "entries")
        for key, entry in doc[level].items()
        if isinstance(entry, dict)
        for field in sorted(_LEVELS[level] - set(entry))
    ]
    if lacking:  # intake would only fail on use, with an AttributeError
        raise SearchError(
            f"catalog {name}", rule="lacks fields", value="; ".join(lacking), fix="add them, empty ones too"
        )
    bad = sorted(str(key) for key in set(doc) - _LEVELS["catalog"])
    # intake would make objects of them; those of the whole catalog are plain values.
    bad += [
        f"{level} {key!r}: user_parameters"
        for level in ("data", "entries")
        for key, entry in doc[level].items()
        if isinstance(entry, dict) and entry["user_parameters"]
    ]
    for level, field, allowed in (("data", "datatype", DATATYPES), ("entries", "reader", READERS)):
        for key, entry in doc[level].items():
            if not isinstance(entry, dict):
                bad.append(f"{level} {key!r}")
                continue
            bad += [f"{level} {key!r}: {extra}" for extra in sorted(map(str, set(entry) - _LEVELS[level]))]
            bad += [] if entry.get(field) in allowed else [f"{level} {key!r}: {field} {entry.get(field)!r}"]
            output = entry.get("output_instance", OUTPUTS[0])  # data entries have none
            bad += [] if output in OUTPUTS else [f"{level} {key!r}: output_instance {output!r}"]
    simple = {
        key for key, value in doc["user_parameters"].items() if value is None or isinstance(value, str | int | float)
    }
    bad += [f"user parameter {key!r}: not a plain value" for key in doc["user_parameters"] if key not in simple]
    references = {f"data({key})" for key in doc["data"]} | simple
    for text in _strings(doc):
        # `cls` and `func` are keys by which intake imports and calls what the value names.
        bad += [text] if text in ("cls", "func", "other_funcs") else []
        bad += [text for inside in re.findall(r"\{([^{}]*)\}", text) if inside.strip() not in references]
        bad += [text] if "{{" in text or "{%" in text else []
    if bad:
        fix = "remove them; a catalog is code, so open only those that you trust"
        raise SearchError(f"catalog {name}", rule="names code outside the allowed lists", value="; ".join(bad), fix=fix)


def _strings(node: Any) -> Iterator[str]:
    """Every string of a parsed YAML document, keys included; regular expressions in `metadata` are only data."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield str(key)
            yield from () if key == "metadata" else _strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from _strings(value)


class StacItems(BaseReader):  # type: ignore[misc]
    """intake reader: a STAC endpoint -> `pystac.ItemCollection`, through `ogive.search`."""

    implements: ClassVar = {datatypes.STACJSON}
    imports: ClassVar = {"pystac_client"}
    output_instance = "pystac:ItemCollection"

    def _read(self, data: Any, aoi: Any = None, **query: Any) -> pystac.ItemCollection:
        from .search import search

        return search(aoi, source=data.url, **query)


class StacCube(BaseReader):  # type: ignore[misc]
    """intake reader: a STAC endpoint -> lazy cube, through `ogive.search` and `ogive.cube.open_cube`.

    `load` holds the arguments of `open_cube` (band, resolution ...); the rest is the query.
    """

    implements: ClassVar = {datatypes.STACJSON}
    imports: ClassVar = {"pystac_client", "odc.stac"}
    output_instance = "xarray:Dataset"

    def _read(self, data: Any, load: dict[str, Any] | None = None, **query: Any) -> xr.Dataset:
        from .cube import open_cube

        items = StacItems(data).read(**query)
        return open_cube(items, **(load or {}))


class Velocity(BaseReader):  # type: ignore[misc]
    """intake reader: a store of ogive, or a cube of ITS_LIVE, through `ogive.open_velocity`."""

    implements: ClassVar = {datatypes.Zarr}
    imports: ClassVar = {"zarr"}
    output_instance = "xarray:Dataset"

    def _read(self, data: Any, partial: bool = False) -> xr.Dataset:
        from .store import open_velocity

        return open_velocity(data.url, partial=partial)


class Mosaic(BaseReader):  # type: ignore[misc]
    """intake reader: a velocity mosaic of ITS_LIVE, one GeoTIFF for each variable, read where and when it is asked for.

    The address lacks `_vx.tif`. Dimensions (y, x), [meter/year], NaN where there is nothing.
    """

    implements: ClassVar = {datatypes.TIFF}
    imports: ClassVar = {"rioxarray"}
    output_instance = "xarray:Dataset"

    def _read(self, data: Any, variables: tuple[str, ...] = ("vx", "vy", "v")) -> xr.Dataset:
        import rioxarray

        bands = {}
        for name in variables:
            href = check_href(f"{data.url}_{name}.tif", f"mosaic {data.url}")
            assert_image(href)
            # One file with one band is one array.
            band = cast(xr.DataArray, rioxarray.open_rasterio(href, chunks={}, masked=True))
            bands[name] = band.isel(band=0, drop=True)
        box = grid.geobox_of(next(iter(bands.values())))
        units = {"units": "meter/year", "grid_mapping": "mapping"}
        mosaic = {name: (("y", "x"), band.data, units) for name, band in bands.items()}
        return xr.Dataset(mosaic, {**grid.coordinates(box), "mapping": grid.mapping(box)})
