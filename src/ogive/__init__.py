"""ogive: glacier velocity cubes and time series from satellite scene archives.

search -> open_cube -> make_pairs -> track -> write -> open_velocity -> correct / filter -> invert -> write -> view
"""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version

from . import catalog, cluster, correct, diagnose, export, filters, learn, masks, validate, view
from ._append import append
from .cover import scene_cover
from .cube import open_cube
from .diagnose import why
from .errors import OgiveError
from .explain import explain
from .flowline import along, flowline
from .fuse import fuse, regrid
from .invert import Screening, invert, season
from .itslive import itslive_cubes
from .kernels import NCC
from .local import local_items
from .mosaic import mosaic
from .overview import overview
from .pairs import PairRules, make_pairs
from .pathrow import query_pathrow
from .search import scene_table, search
from .store import open_velocity, status, verify, write
from .tile import try_tile
from .track import track
from .update import update

try:
    __version__ = _version("ogive")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "NCC",
    "OgiveError",
    "PairRules",
    "Screening",
    "__version__",
    "along",
    "append",
    "catalog",
    "cluster",
    "correct",
    "diagnose",
    "explain",
    "export",
    "filters",
    "flowline",
    "fuse",
    "invert",
    "itslive_cubes",
    "learn",
    "local_items",
    "make_pairs",
    "masks",
    "mosaic",
    "open_cube",
    "open_velocity",
    "overview",
    "query_pathrow",
    "regrid",
    "scene_cover",
    "scene_table",
    "search",
    "season",
    "status",
    "track",
    "try_tile",
    "update",
    "validate",
    "verify",
    "view",
    "why",
    "write",
]
