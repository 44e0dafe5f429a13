"""Learning from pairs: training sets of image tiles with the displacements that a kernel found."""

from ._sources import TileSource
from .tiles import Tiles, export_tiles, read_tiles, tile_table, turned

__all__ = ["TileSource", "Tiles", "export_tiles", "read_tiles", "tile_table", "turned"]
