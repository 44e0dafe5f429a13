"""Where tasks run: threads of this process, or the workers of a cluster.

Tasks are handed out as others finish, a few more than can run at once, so that a large job never sits in memory or in a
scheduler as a whole.
"""

import os
import uuid
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

Task = tuple[str, tuple[Any, ...]]
"""A name and the arguments of the function."""
AHEAD = 2
"""Tasks per thread of a cluster that are handed out: one runs, the next waits beside it."""


def execute(
    function: Callable[..., Any], tasks: Iterator[Task], *, client: Any = None, workers: int | None = None
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

    Yields
    ------
    name, result
        The result is an exception where the task killed its workers.
    """
    run = _on_cluster(function, tasks, client) if client is not None else _in_threads(function, tasks, workers)
    yield from run


def _on_cluster(function: Callable[..., Any], tasks: Iterator[Task], client: Any) -> Iterator[tuple[str, Any]]:
    import distributed

    ahead = AHEAD * max(1, sum(client.nthreads().values()))
    # A name of its own for each run: the scheduler would answer a known one with the result of the run before.
    run = uuid.uuid4().hex
    completed: Any = distributed.as_completed()  # type: ignore[no-untyped-call]
    running: dict[str, str] = {}
    for name, arguments in tasks:
        future = client.submit(function, *arguments, key=f"block-{run}-{name}", retries=2)
        running[future.key] = name
        completed.add(future)
        if len(running) >= ahead:
            yield _outcome(next(completed), running)
    for future in completed:
        yield _outcome(future, running)


def _outcome(future: Any, running: dict[str, str]) -> tuple[str, Any]:
    error = future.exception()
    return running.pop(future.key), future.result() if error is None else error


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
