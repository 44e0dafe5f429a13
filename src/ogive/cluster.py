"""Where to compute: on this machine, on a running scheduler, or on a Dask Gateway.

Whatever the cluster, its workers must have our packages in our versions: a function from a module that a worker cannot
import does not fail, it takes the whole cluster down with it. So `connect` compares versions before the first task.
"""

from importlib.metadata import version
from typing import Any

from .errors import ClusterError, ParameterError

PACKAGES = ("ogive", "numpy", "dask", "distributed", "xarray", "zarr", "numba")
"""Packages whose versions must agree between client and workers."""


def connect(
    where: str = "local", *, workers: int | None = None, threads: int = 1, timeout: float = 300.0, **options: Any
) -> Any:
    """A Dask client, its workers checked.

    Parameters
    ----------
    where : str
        `"local"`, a scheduler address (`"tcp://..."`), or `"gateway"` (configured as Dask Gateway is, by
        `DASK_GATEWAY__*`; needs the extra `ogive[gateway]`).
    workers : int, optional
        Number of workers to start (local: one per core) and to wait for.
    threads : int
        Threads per worker. One by default: matching keeps a core busy.
    timeout : float
        Longest wait for the workers [s].
    **options
        Passed to LocalCluster or to the Gateway's cluster.

    Returns
    -------
    distributed.Client

    Raises
    ------
    ClusterError
        The scheduler does not answer, no worker came in time, or a worker lacks a package or has another version of it.
    """
    from distributed import Client
    from distributed.comm.registry import get_backend

    client: Any
    if where == "local":
        # Started by the client itself, so that closing the client stops the workers too; a free port for the dashboard.
        options = {"dashboard_address": "127.0.0.1:0", **options}
        client = Client(n_workers=workers, threads_per_worker=threads, **options)  # type: ignore[no-untyped-call]
    elif where == "gateway":
        from dask_gateway import Gateway

        cluster = Gateway().new_cluster(**options)
        cluster.scale(workers or 2)
        client = cluster.get_client()
    elif "://" in where:
        try:
            # Asked first: a client that fails over its protocol stays behind as the default one, and whatever is
            # computed next waits for it for ever.
            get_backend(where.split("://")[0])
            client = Client(where, timeout=timeout)  # type: ignore[no-untyped-call]
        except (OSError, ValueError) as error:  # ValueError: a protocol that nobody speaks
            raise ClusterError(
                f"scheduler {where}", rule=f"must answer within {timeout:.0f} s",
                value=f"{type(error).__name__}: {error}", fix="start the scheduler, or check its address",
            ) from error  # fmt: skip
    else:
        raise ParameterError("cluster", rule="must be 'local', 'gateway' or a scheduler address", value=repr(where))
    try:
        client.wait_for_workers(workers or 1, timeout=timeout)
        check_workers(client)
    except TimeoutError:
        client.close()
        raise ClusterError(
            "cluster",
            rule=f"must have {workers or 1} workers within {timeout:.0f} s",
            fix="look at the scheduler's log",
        ) from None
    except ClusterError:
        client.close()
        raise
    return client


def check_workers(client: Any, packages: tuple[str, ...] = PACKAGES) -> None:
    """Refuse to start unless every worker has our packages in our versions.

    Raises
    ------
    ClusterError
        Names the package, our version, the worker and its version.
    """
    for name in packages:
        ours = version(name)
        # importlib.metadata is in the standard library, so this call is safe on any worker.
        for worker, theirs in client.run(version, name, on_error="return").items():
            if theirs != ours:
                raise ClusterError(
                    f"package {name}", rule="must have the same version on client and workers",
                    value=f"{ours} here, {theirs!r} on {worker}", fix="use one environment or image for both",
                )  # fmt: skip
