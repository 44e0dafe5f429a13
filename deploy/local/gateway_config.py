"""Dask Gateway as a service of the hub of this folder: clusters are processes of the user who started the hub.

The hub says in the environment who it is and what this service is called; `hub.json` has the addresses.
"""

import json
import sys
from pathlib import Path

from dask_gateway_server.options import Float, Integer, Mapping, Options

told = json.loads(Path("hub.json").read_text())
dask = str(Path(sys.executable).parent / "dask")

c = get_config()
c.DaskGateway.backend_class = "dask_gateway_server.backends.local.UnsafeLocalBackend"
c.DaskGateway.authenticator_class = "dask_gateway_server.auth.JupyterHubAuthenticator"
c.DaskGateway.address = told["gateway_private"].removeprefix("http://")
c.Proxy.address = told["gateway"].removeprefix("http://")
c.Proxy.prefix = "/services/dask-gateway"
c.Proxy.tcp_address = told["gateway_schedulers"].removeprefix("gateway://")
c.UnsafeLocalBackend.clusters_directory = str(Path("clusters").resolve())
c.UnsafeLocalBackend.sigint_timeout = 3
# A scheduler that shares two busy cores with its workers may be silent for longer than the default, half a minute.
c.UnsafeLocalBackend.cluster_heartbeat_timeout = told["timeout"]
# The scripts that it starts by default are gone since distributed 2026.6.
c.ClusterConfig.scheduler_cmd = [dask, "scheduler"]
c.ClusterConfig.worker_cmd = [dask, "worker"]
c.ClusterConfig.cluster_start_timeout = c.ClusterConfig.worker_start_timeout = told["timeout"]
c.ClusterConfig.cluster_max_workers = 8
c.ClusterConfig.idle_timeout = 1800


def handler(options):
    memory = int(options.worker_memory * 2**30)
    return {"worker_cores": options.worker_cores, "worker_memory": memory, "environment": options.environment}


c.Backend.cluster_options = Options(
    Integer("worker_cores", 1, min=1, max=8),
    Float("worker_memory", 2, min=0.25, max=16),
    Mapping("environment", {}),
    handler=handler,
)
