"""Where to compute: on this machine, on a running scheduler, or on a Dask Gateway.

Whatever the cluster, its scheduler and workers must have our packages in our versions: a function from a module that a
worker cannot import does not fail, it takes the whole cluster down with it. So `connect` compares versions before the
first task, and a run compares them again for every worker that joins.
"""

from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version
from platform import python_version
from typing import Any

import dask

from .errors import ClusterError, ParameterError

PACKAGES = ("ogive", "numpy", "dask", "distributed", "xarray", "zarr", "numba")
"""Packages whose versions must agree between client, scheduler and workers; Python's must up to the minor version."""
SCHEDULER = "scheduler"
"""The scheduler's name beside the addresses of workers."""


def connect(
    where: str = "local", *, workers: int | tuple[int, int] | None = None, threads: int = 1, timeout: float = 300.0,
    **options: Any,
) -> Any:  # fmt: skip
    """A Dask client, its scheduler and workers checked.

    Parameters
    ----------
    where : str
        `"local"`, a scheduler address (`"tcp://..."`), or `"gateway"` (needs the extra `ogive[gateway]`).
    workers : int or (int, int), optional
        Number of workers to start (local: one per core; Gateway: 2) and to wait for; the least, at least 1, and the
        most of a cluster that grows and shrinks with its work. A scheduler or a running Gateway cluster keeps the
        workers that it has; then it is the number to wait for.
    threads : int
        Threads per local worker. One by default: matching keeps a core busy.
    timeout : float
        Longest wait for scheduler and workers [s].
    **options
        Local: passed to LocalCluster. Gateway: `address`, `proxy_address`, `public_address` and `auth`, by default from
        `DASK_GATEWAY__*`; `name` of a running cluster to use, which then outlives the client; all others are options
        of a new cluster as that Gateway offers them, often `worker_cores` and `worker_memory`.

    Returns
    -------
    distributed.Client
        Closing it stops the workers that it started, and no others.

    Raises
    ------
    ClusterError
        The scheduler or the Gateway does not answer, refuses us or our options, a cluster or a worker did not start in
        time, or a package is missing or has another version.
    """
    least, most = workers if isinstance(workers, tuple) else (workers, None)
    if (least is not None and least < 1) or (most is not None and least is not None and most < least):
        raise ParameterError("workers", rule="must be at least 1, the most not below the least", value=workers)
    if where == "local":
        client = _local(least, most, threads, options)
    elif where == "gateway":
        from . import _gateway

        client = _gateway.connect(least, most, timeout, options)
    elif "://" in where:
        client = _scheduler(where, timeout)
    else:
        raise ParameterError("cluster", rule="must be 'local', 'gateway' or a scheduler address", value=repr(where))
    try:
        client.wait_for_workers(least or 1, timeout=timeout)
        check_versions(client)
    except TimeoutError:
        client.close()
        raise ClusterError(
            "cluster",
            rule=f"must have {least or 1} workers within {timeout:.0f} s",
            fix="look at the scheduler's log",
        ) from None
    except BaseException:
        client.close()
        raise
    return client


def _local(least: int | None, most: int | None, threads: int, options: dict[str, Any]) -> Any:
    from distributed import Client

    # Started by the client itself, so that closing the client stops the workers too; a free port for the dashboard.
    options = {"dashboard_address": "127.0.0.1:0", **options}
    if not options.get("processes", True):
        # Each would take the memory of the whole process for its own, and pause for ever.
        options.setdefault("memory_limit", None)
    # The scheduler keeps its last thousand messages to every worker, and the graphs of the blocks with them.
    with dask.config.set({"distributed.admin.low-level-log-length": 10}):
        client: Any = Client(n_workers=least, threads_per_worker=threads, **options)  # type: ignore[no-untyped-call]
    if most is not None:
        client.cluster.adapt(minimum=least, maximum=most)
    return client


def _scheduler(address: str, timeout: float) -> Any:
    from distributed import Client
    from distributed.comm.registry import get_backend

    try:
        # Asked first: a client that fails over its protocol stays behind as the default one, and whatever is computed
        # next waits for it for ever.
        get_backend(address.split("://")[0])
        return Client(address, timeout=timeout)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:  # ValueError: a protocol that nobody speaks
        raise ClusterError(
            f"scheduler {address}", rule=f"must answer within {timeout:.0f} s",
            value=f"{type(error).__name__}: {error}", fix="start the scheduler, or check its address",
        ) from error  # fmt: skip


def check_versions(client: Any, *, timeout: float = 60.0) -> None:
    """Refuse to start unless the scheduler and every worker have our packages in our versions.

    Parameters
    ----------
    client : distributed.Client
    timeout : float
        Longest wait for one answer [s].

    Raises
    ------
    ClusterError
        Names every package that differs, the version found, ours, and where.
    """
    if found := differences(client, (SCHEDULER, *workers_of(client, timeout)), timeout=timeout):
        raise mismatch(found)


def mismatch(found: dict[str, list[str]]) -> ClusterError:
    """The error that says what `differences` found."""
    return ClusterError(
        "cluster", rule="must have the versions of the client", value=described(found),
        fix="use one environment or image for client, scheduler and workers",
    )  # fmt: skip


def workers_of(client: Any, timeout: float) -> dict[str, dict[str, Any]]:
    """The workers that a scheduler knows now, by address: `nthreads`, `resources` and more.

    Raises
    ------
    OSError
        No answer, or none in time.
    """
    workers: dict[str, dict[str, Any]] = client.sync(client.scheduler.identity, callback_timeout=timeout)["workers"]
    return workers


def differences(client: Any, places: Collection[str], *, timeout: float) -> dict[str, list[str]]:
    """What is not as it is here, for each of some places that has such a thing.

    Parameters
    ----------
    client : distributed.Client
    places : collection of str
        Addresses of workers, and `SCHEDULER`.
    timeout : float
        Longest wait for one answer [s].
    """
    found: dict[str, list[str]] = {}
    for name in ("python", *PACKAGES):
        # Both are in the standard library and travel by name, so this question is safe on any worker.
        question = (python_version,) if name == "python" else (version, name)
        ours = _essential(name, question[0](*question[1:]))
        silent = {place for place, said in found.items() if said[-1].startswith("no answer")}
        for place, answer in _answers(client, question, set(places) - silent, timeout).items():
            if isinstance(answer, TimeoutError):
                found.setdefault(place, []).append(f"no answer within {timeout:g} s")
            elif isinstance(answer, PackageNotFoundError):
                found.setdefault(place, []).append(f"no {name} (here {ours})")
            elif isinstance(answer, Exception):
                found.setdefault(place, []).append(f"{name}: {answer!r}")
            elif _essential(name, answer) != ours:
                found.setdefault(place, []).append(f"{name} {answer} (here {ours})")
    return found


def described(found: dict[str, list[str]]) -> str:
    """What `differences` found, as words; places that differ alike are named together.

    Examples
    --------
    >>> described({"tcp://a:1": ["zarr 3.0 (here 3.1)"], "tcp://b:1": ["zarr 3.0 (here 3.1)", "no numba (here 0.68)"]})
    'zarr 3.0 (here 3.1) on tcp://a:1, tcp://b:1; no numba (here 0.68) on tcp://b:1'
    """
    by_text: dict[str, list[str]] = {}
    for place, texts in sorted(found.items()):
        for text in texts:
            by_text.setdefault(text, []).append(place)
    shown = (
        f"{text} on {', '.join(places[:3])}{f' and {len(places) - 3} more' if len(places) > 3 else ''}"
        for text, places in by_text.items()
    )
    return "; ".join(shown)


def _answers(client: Any, question: tuple[Any, ...], places: set[str], timeout: float) -> dict[str, Any]:
    """The answer of each place, or the exception that came instead."""
    answers: dict[str, Any] = {}
    if SCHEDULER in places:
        try:
            answers[SCHEDULER] = client.run_on_scheduler(*question, callback_timeout=timeout)
        except (PackageNotFoundError, TimeoutError) as error:
            answers[SCHEDULER] = error
    workers = sorted(places - {SCHEDULER})
    if not workers:
        return answers
    try:
        answers.update(client.run(*question, workers=workers, on_error="return", callback_timeout=timeout))
        return answers
    except TimeoutError as error:
        if len(workers) == 1:
            return answers | {workers[0]: error}
    # One that is silent keeps back the answers of all.
    for worker in workers:
        answers |= _answers(client, question, {worker}, timeout)
    return answers


def _essential(name: str, found: str) -> str:
    """What must agree: of Python's version the first two numbers, because byte code changes with them."""
    return ".".join(found.split(".")[:2]) if name == "python" else found
