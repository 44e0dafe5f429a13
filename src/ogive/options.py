"""Settings of the whole package: how to read, how often to try again.

One frozen value, read where it is needed, changed for a block of code with `using(...)`. Everything that changes a
*result* is a parameter of a function instead, so that it ends up in the store's provenance.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Options:
    """How ogive behaves towards the outside world.

    Parameters
    ----------
    attempts : int
        How often a read or a request is tried in all.
    backoff : float
        Pause before the second attempt [s]; doubles each time.
    timeout : float
        Longest wait for one answer of a server or a worker [s].
    patience : float
        How long a run on a cluster waits for a first or another worker, and for a word of the scheduler, before it
        gives up [s].
    """

    attempts: int = 4
    backoff: float = 0.5
    timeout: float = 60.0
    patience: float = 300.0


_current: ContextVar[Options | None] = ContextVar("ogive_options", default=None)


def current() -> Options:
    """The options in force.

    Examples
    --------
    >>> current().attempts
    4
    """
    return _current.get() or Options()


@contextmanager
def using(**changes: float) -> Iterator[Options]:
    """Change options within a `with` block.

    Examples
    --------
    >>> with using(attempts=1) as options:
    ...     options.attempts
    1
    """
    token = _current.set(replace(current(), **changes))  # type: ignore[arg-type]
    try:
        yield current()
    finally:
        _current.reset(token)
