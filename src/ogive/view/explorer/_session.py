"""What the user has chosen so far; the only thing that the steps of the explorer share."""

from collections.abc import Mapping
from typing import Any

import traitlets
from pydantic import ValidationError

from ...errors import ParameterError
from ...run import RunConfig


class Session(traitlets.HasTraits):
    """What the user has chosen so far. A step sets what it is about and observes what it needs.

    Attributes
    ----------
    aoi : shapely geometry or None
        Longitude, latitude. `config.search.aoi` says the same in the words of a run file.
    items : pystac.ItemCollection or None
        What the search found.
    chosen : tuple of str
        Ids of the scenes that are ticked.
    pairs : pd.DataFrame or None
        As from `make_pairs` on the chosen scenes.
    kernel : Kernel or None
        What matches. Of a run file where `config.kernel` says it, else a user's own.
    config : RunConfig or None
        Everything that a run file can say.
    stores : dict of str to str
        Stores that can be looked at, "matches", "velocity", "series" or any name, and their paths or addresses.
    point : (x, y) or None
        Where the user looks, in the coordinate system of the grid.
    view : View or None
        What is looked at, see `ogive.script.View`.
    message : str
        The last error or notice.
    """

    aoi = traitlets.Any(None)
    items = traitlets.Any(None)
    chosen = traitlets.Tuple()
    pairs = traitlets.Any(None)
    kernel = traitlets.Any(None)
    config = traitlets.Any(None)
    stores = traitlets.Dict()
    point = traitlets.Any(None)
    view = traitlets.Any(None)
    message = traitlets.Unicode("")

    def configure(self, **sections: Any) -> None:
        """Change sections or fields of `config`; of a section given as a mapping, only the fields named.

        Raises
        ------
        ParameterError
            A field that does not exist, or a wrong value.

        Examples
        --------
        >>> session = Session()
        >>> session.configure(title="Aletsch", search={"max_cloud": 40})
        >>> session.config.title, session.config.search.max_cloud, session.config.search.source
        ('Aletsch', 40.0, 'earth-search')
        """
        content = (self.config or RunConfig()).model_dump()
        for name, value in sections.items():
            part = content.get(name)
            merged = name in _MERGED and isinstance(value, Mapping) and isinstance(part, dict)
            content[name] = {**(part or {}), **value} if merged else value
        try:
            self.config = RunConfig.model_validate(content)
        except ValidationError as error:
            found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ParameterError("run file", rule="has a field that is unknown or wrong", value=found) from None

    def look_at(self, name: str, store: Any) -> None:
        """Add a store to `stores`; observers see a new dict."""
        self.stores = {**self.stores, name: str(store)}


_MERGED = ("search", "cube", "stable", "invert")
"""Sections with fields of their own; `pairs`, `kernel` and `filters` are replaced as a whole."""
