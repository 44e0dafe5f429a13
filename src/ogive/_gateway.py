"""Clusters of a Dask Gateway: started for one client, or one that runs already."""

import asyncio
import logging
import weakref
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

from distributed import Client

from .errors import ClusterError

log = logging.getLogger("ogive")

_SERVER = ("address", "proxy_address", "public_address", "auth")
"""Options that say which Gateway; all others say what cluster."""


class GatewayClient(Client):
    """A client that stops the cluster that was started for it: when it is closed, or else when the program ends."""

    stop_cluster: Any = None

    def close(self, *arguments: Any, **options: Any) -> None:
        """Close the client, and then its cluster."""
        super().close(*arguments, **options)  # type: ignore[no-untyped-call]
        if self.stop_cluster is not None:
            self.stop_cluster()


def connect(least: int | None, most: int | None, timeout: float, options: dict[str, Any]) -> GatewayClient:
    """A client of a new cluster with at least some workers, or of the running one that `options["name"]` names.

    Raises
    ------
    ClusterError
        dask-gateway is not installed, no Gateway is configured or answers, it refuses us or our options, or the cluster
        does not start in time.
    """
    try:
        import dask_gateway  # noqa: F401
    except ImportError as error:
        raise ClusterError(
            "gateway", rule="needs the package dask-gateway", fix='pip install "ogive[gateway]"'
        ) from error
    server = {key: options[key] for key in _SERVER if key in options}
    wanted = {key: value for key, value in options.items() if key not in (*_SERVER, "name")}
    name = options.get("name")
    report = _run(_cluster(server, name, wanted, (least, most), timeout))
    new: Any = GatewayClient  # has no types
    try:
        client: GatewayClient = new(report.scheduler_address, security=report.security, timeout=timeout)
    except BaseException as error:
        if name is None:
            _stop_cluster(server, report.name)
        if isinstance(error, OSError):
            raise _refused(f"gateway cluster {report.name}", error) from error
        raise
    if name is None:
        client.stop_cluster = weakref.finalize(client, _stop_cluster, server, report.name)
    return client


async def _cluster(
    server: dict[str, Any],
    name: str | None,
    wanted: dict[str, Any],
    workers: tuple[int | None, int | None],
    timeout: float,
) -> Any:
    """Start a cluster unless one is named, and give it its workers; the Gateway's report of it."""
    from dask_gateway import Gateway

    try:
        gateway = Gateway(**server, asynchronous=True)
    except ValueError as error:
        raise ClusterError(
            "gateway", rule="must be configured", value=error, fix="set DASK_GATEWAY__ADDRESS, or say address=..."
        ) from error
    ours = name is None
    least, most = workers
    async with gateway:
        try:
            async with asyncio.timeout(timeout):
                name = name or await gateway.submit(**wanted)
                while (report := await gateway.get_cluster(name)).status.name == "PENDING":
                    await asyncio.sleep(0.2)
                if report.status.name != "RUNNING":
                    raise ClusterError(
                        f"gateway cluster {name}", rule="must start", value=report.status.name.lower(),
                        fix=f"search the Gateway's log for {name}",
                    )  # fmt: skip
                if most is not None:
                    await gateway.adapt_cluster(name, minimum=least, maximum=most)
                elif ours:
                    await gateway.scale_cluster(name, least or 2)
                return report
        except BaseException as error:
            if ours and name is not None:
                await gateway.stop_cluster(name)
            if isinstance(error, ClusterError) or not isinstance(error, Exception):
                raise
            # Beside OSError there are aiohttp's errors and the Gateway's own.
            raise _refused(f"gateway {gateway.address}", error) from error


def _stop_cluster(server: dict[str, Any], name: str) -> None:
    from dask_gateway import Gateway

    async def stop() -> None:
        async with Gateway(**server, asynchronous=True) as gateway:
            await gateway.stop_cluster(name)

    try:
        _run(stop())
    except Exception as error:  # the work is done; what remains is said, not raised
        log.warning("gateway cluster %s may still run: %s: %s", name, type(error).__name__, error)


def _run(task: Coroutine[Any, Any, Any]) -> Any:
    """Run to the end in a thread of its own: in a notebook, this one already has a loop."""
    loop = asyncio.new_event_loop()
    main = loop.create_task(task)
    with closing(loop), ThreadPoolExecutor(1) as thread:
        try:
            return thread.submit(loop.run_until_complete, main).result()
        except BaseException:
            # Interrupted by the user: then what was started is stopped before this returns.
            loop.call_soon_threadsafe(main.cancel)
            raise


def _refused(what: str, error: Exception) -> ClusterError:
    if getattr(error, "status", None) in (401, 403):
        fix = "check user and password or token: DASK_GATEWAY__AUTH__*, or auth=..."
    elif isinstance(error, OSError):
        fix = "check that it runs, and its address: DASK_GATEWAY__ADDRESS, or address=..."
    else:
        fix = "check the options; dask_gateway.Gateway().cluster_options() lists what it offers"
    return ClusterError(
        what, rule="must let us have a cluster in time", value=f"{type(error).__name__}: {error}", fix=fix
    )
