"""Learning: training sets of image tiles with the displacements that a kernel found, and training of the matchers.

Its modules `train` and `finetune` need `pip install 'ogive[train]'`; nothing here loads PyTorch.
"""

from ._sources import TileSource
from .tiles import Tiles, export_tiles, read_tiles, tile_table, turned

__all__ = ["TileSource", "Tiles", "export_tiles", "read_tiles", "tile_table", "turned"]
