"""The shipped catalogs, and the two intake readers that they name.

A catalog is code: its entries name Python objects that intake imports and calls, and templates that read environment
variables or unpickle text. intake's own switches do not guard all of that. So `check_catalog` accepts nothing but what
is listed here, and the catalog is built from the very text that was checked. It is a first line, not a proof: an
entry may still point at any file or address.
"""

import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pystac
from intake.readers import datatypes
from intake.readers.entry import Catalog
from intake.readers.readers import BaseReader

from ._trust import plain_yaml, understood
from .errors import SearchError

if TYPE_CHECKING:
    import xarray as xr

READERS = (
    "ogive.catalog:StacItems",
    "ogive.catalog:StacCube",
    "intake.readers.readers:XArrayDatasetReader",
    "intake.readers.readers:GeoPandasReader",
)
DATATYPES = tuple(
    f"intake.readers.datatypes:{name}" for name in ("STACJSON", "Zarr", "GeoJSON", "GeoPackage", "Shapefile")
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


def open_catalog(name_or_path: str | Path) -> Catalog:
    """Open an intake-2 catalog after checking that it names nothing but known readers.

    Parameters
    ----------
    name_or_path : str or Path
        `stac` or `products` (shipped), or the path of a YAML file on this machine. Addresses are not accepted.

    Returns
    -------
    intake.readers.entry.Catalog
        `list(cat)` shows the public entries, `cat[name].read()` reads one, `cat(parameter=value)` sets a parameter.

    Raises
    ------
    SearchError
        No such catalog, or one that names code, templates or fields outside the allowed lists.

    Examples
    --------
    >>> sorted(open_catalog("products"))
    ['itslive-cubes', 'rgi60', 'rgi70']
    """
    shipped = {path.stem: path for path in catalog_folder().glob("*.yaml")}
    path = shipped.get(str(name_or_path)) or Path(name_or_path)
    if not path.is_file():
        fix = f"use one of {sorted(shipped)} or the path of a YAML file"
        raise SearchError(f"catalog {str(name_or_path)!r}", rule="must be a file on this machine", fix=fix)
    try:
        doc = plain_yaml(path.read_text())
    except (ValueError, OSError) as error:
        raise SearchError(
            f"catalog {path}", rule="must be plain YAML", value=str(error), fix="correct the file"
        ) from error
    with understood(f"catalog {path}", SearchError):
        check_catalog(doc, str(path))
        return Catalog.from_dict(doc)


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

    def _read(self, data: Any, load: dict[str, Any] | None = None, **query: Any) -> "xr.Dataset":
        from .cube import open_cube

        items = StacItems(data).read(**query)
        return open_cube(items, **(load or {}))
