"""The exception tree.

Every error that ogive raises on purpose names four things: *what* is concerned (a file, a parameter, a scene), the
*rule* it breaks, the *value* found, and the *fix*. They all derive from `OgiveError`, so a caller that wants to
catch "anything ogive complains about" has one name for it.
"""

from typing import Any


class OgiveError(Exception):
    """Base class of every error raised on purpose.

    Parameters
    ----------
    what : str
        The thing concerned.
    rule : str, optional
        The rule that it breaks.
    value : Any, optional
        The value found; left out of the message when None.
    fix : str, optional
        What to do about it.

    Examples
    --------
    >>> print(OgiveError("search_range", rule="must be at least 1 px", value=0, fix="use 16"))
    search_range: must be at least 1 px (found 0). Fix: use 16
    """

    def __init__(self, what: str, *, rule: str = "", value: Any = None, fix: str = "") -> None:
        message = what
        if rule:
            message += f": {rule}"
        if value is not None:
            message += f" (found {value})"
        if fix:
            message += f". Fix: {fix}"
        # One positional argument, so that the exception pickles back unchanged from a Dask worker.
        super().__init__(message)


class ParameterError(OgiveError, ValueError):
    """A parameter is outside its range, or two parameters contradict each other."""


class SearchError(OgiveError):
    """A search cannot be made, or finds nothing that can be used."""


class ItemError(OgiveError):
    """A STAC item lacks what is needed: a band, its projection, its date."""


class GridError(OgiveError):
    """Scenes and grid do not fit: two coordinate systems, almost equal pixels, no overlap."""


class ReadError(OgiveError, OSError):
    """Pixels could not be read; names scene, URL, window and cause.

    Parameters
    ----------
    what : str
    scene, url, window : str
        The scene, its address without a signature, the window in words.
    permanent : bool
        Whether trying again later can help: not where the file is missing or damaged.
    rule, value, fix
        As in `OgiveError`.

    Examples
    --------
    >>> ReadError("scene a", scene="a", permanent=True).permanent
    True
    """

    def __init__(
        self, what: str, *, scene: str = "", url: str = "", window: str = "", permanent: bool = False, **parts: Any
    ) -> None:
        super().__init__(what, **parts)
        self.scene, self.url, self.window, self.permanent = scene, url, window, permanent


class PairError(OgiveError):
    """No pair of scenes can be formed."""


class MaskError(OgiveError):
    """A mask or an outline cannot be used: nothing in it, everything in it, no coordinate system."""


class StoreError(OgiveError):
    """A store cannot be written, resumed or opened."""


class CancelledError(OgiveError):
    """The user stopped a run; every block that was finished stays."""


class ClusterError(OgiveError):
    """The Dask cluster cannot be used: no worker, other package versions."""
