"""Where tasks run: threads of this process, or the workers of a cluster.

Tasks are handed out as others finish, a few more than can run at once, so that a large job never sits in memory or in a
scheduler as a whole.
"""

import os
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from ._dispatch import Dispatch

Task = tuple[str, tuple[Any, ...]]
"""A name and the arguments of the function."""


def execute(
    function: Callable[..., Any],
    tasks: Iterator[Task],
    *,
    client: Any = None,
    workers: int | None = None,
    resources: dict[str, float] | None = None,
) -> Generator[tuple[str, Any]]:
    """Run a function on every task, in any order.

    Parameters
    ----------
    function : callable
        Must not raise; what it returns is passed on.
    tasks : iterator of (name, arguments)
    client : distributed.Client, optional
        Default: threads of this process.
    workers : int, optional
        Threads without a client; default the number of cores.
    resources : dict of str to float, optional
        What a task takes of its worker on a cluster, such as `{"GPU": 1}`; only workers that have it get tasks.

    Yields
    ------
    name, result
        The result is an exception where the task killed its workers.

    Raises
    ------
    ClusterError
        The scheduler is gone, or no worker that can be used was there for `options.patience` seconds.
    """
    if client is None:
        yield from _in_threads(function, tasks, workers)
    else:
        yield from Dispatch(function, client, resources or {}).outcomes(tasks)


def _in_threads(function: Callable[..., Any], tasks: Iterator[Task], workers: int | None) -> Iterator[tuple[str, Any]]:
    threads = workers or os.cpu_count() or 1
    pool = ThreadPoolExecutor(threads)
    pending: dict[Future[Any], str] = {}
    try:
        for name, arguments in tasks:
            pending[pool.submit(function, *arguments)] = name
            if len(pending) > threads:
                yield from _finished(pending)
        while pending:
            yield from _finished(pending)
    finally:
        pool.shutdown(cancel_futures=True)


def _finished(pending: dict[Future[Any], str]) -> list[tuple[str, Any]]:
    done, _ = wait(pending, return_when=FIRST_COMPLETED)
    return [(pending.pop(future), future.result()) for future in done]
