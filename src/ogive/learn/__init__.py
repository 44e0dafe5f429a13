"""Learning: training sets of image tiles with the displacements that a kernel found, and training of the matchers.

The modules `train`, `nets` and `samples` need `pip install 'ogive[train]'`; nothing here loads them.
"""

from ._sources import TileSource
from .tiles import Tiles, export_tiles, read_tiles, tile_table, turned

__all__ = ["TileSource", "Tiles", "export_tiles", "read_tiles", "tile_table", "turned"]
