"""JupyterHub on this machine alone, with Dask Gateway as its service: `make hub`.

Reads `hub.json` in the folder where it runs, which `ogive.testing.hub` writes: addresses and secrets, new for every
start. Everybody who has the password is the user who started it: for tests and demonstrations only.
"""

import json
import os
import shutil
import sys
from pathlib import Path

told = json.loads(Path("hub.json").read_text())
here = Path(__file__).parent
programs = Path(sys.executable).parent
shared = Path("shared").resolve()
shared.mkdir(exist_ok=True)
# Below the hub's own address: its proxy leads there.
gateway = f"{told['hub']}/services/dask-gateway/"

c = get_config()
c.JupyterHub.bind_url = told["hub"]
c.JupyterHub.hub_bind_url = told["hub_private"]
c.JupyterHub.db_url = "sqlite:///:memory:"
c.JupyterHub.cookie_secret = bytes.fromhex(told["cookie_secret"])
c.ConfigurableHTTPProxy.command = told["proxy_command"]
c.ConfigurableHTTPProxy.api_url = told["proxy_private"]
c.ConfigurableHTTPProxy.auth_token = told["proxy_token"]
c.ConfigurableHTTPProxy.pid_file = str(Path("proxy.pid").resolve())

c.JupyterHub.authenticator_class = "shared-password"
c.SharedPasswordAuthenticator.user_password = told["password"]
c.Authenticator.allow_all = True

c.JupyterHub.spawner_class = "simple"
c.SimpleLocalProcessSpawner.home_dir_template = str(Path("home").resolve() / "{username}")
c.Spawner.cmd = [str(programs / "jupyterhub-singleuser")]
c.Spawner.args = ["--allow-root"] if os.getuid() == 0 else []
c.Spawner.default_url = "/lab"
c.Spawner.start_timeout = c.Spawner.http_timeout = told["timeout"]
c.Spawner.environment = {
    "DASK_GATEWAY__ADDRESS": gateway,
    "DASK_GATEWAY__PROXY_ADDRESS": told["gateway_schedulers"],
    "DASK_GATEWAY__PUBLIC_ADDRESS": "/services/dask-gateway/",
    "DASK_GATEWAY__AUTH__TYPE": "jupyterhub",
    # What all workers see; on one machine that is easy.
    "OGIVE_SHARED": str(shared),
}


def bring_notebooks(spawner):
    """Copy the notebooks that a user does not have yet."""
    home = Path(spawner.home_dir)
    home.mkdir(parents=True, exist_ok=True)
    for notebook in Path(told["notebooks"]).glob("*.ipynb"):
        if not (home / notebook.name).exists():
            shutil.copy(notebook, home)


c.Spawner.pre_spawn_hook = bring_notebooks

c.JupyterHub.services = [
    {
        "name": "dask-gateway",
        "url": told["gateway"],
        "command": [str(programs / "dask-gateway-server"), "-f", str(here / "gateway_config.py")],
        "cwd": str(Path.cwd()),
    }
]
# Notebooks may use the Gateway, and not the rest of what their user may.
c.JupyterHub.load_roles = [
    {"name": "user", "scopes": ["self", "access:services!service=dask-gateway"]},
    {
        "name": "server",
        "scopes": ["users:activity!user", "access:servers!server", "access:services!service=dask-gateway"],
    },
]
