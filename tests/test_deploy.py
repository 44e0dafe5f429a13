"""What operators get: image, versions, values of charts, objects of Kubernetes; checked without a cluster.

The Gateway's part of the values is run as the Gateway runs it, and the notebooks' part as JupyterHub does: both make
their pods, and the pods are held against the schemas of Kubernetes.
"""

import asyncio
import copy
import json
import os
import re
import tomllib
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from dask_gateway_server.auth import JupyterHubAuthenticator
from dask_gateway_server.backends.kubernetes.backend import KubeBackend, KubeClusterConfig
from dask_gateway_server.backends.kubernetes.controller import KubeController
from dask_gateway_server.models import User
from kubespawner import KubeSpawner
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from traitlets.config import Config
from yamllint import linter
from yamllint.config import YamlLintConfig

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
LINT = YamlLintConfig(yaml.safe_dump({"extends": "default", "rules": {
    "line-length": {"max": 120}, "document-start": "disable", "comments": {"min-spaces-from-content": 1},
}}))  # fmt: skip
KUBERNETES = kubernetes_validate.latest_version()


def merged(base: Any, over: Any) -> Any:
    """Values with others on top, as Helm lays them."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return copy.deepcopy(over)
    return {key: merged(base.get(key), over[key]) if key in over else base[key] for key in {**base, **over}}


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


VALUES = {
    "daskhub": read("daskhub.yaml"),
    "kind": merged(read("daskhub.yaml"), read("daskhub-kind.yaml")),
    "gateway": read("dask-gateway.yaml"),
}
OBJECTS = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
GATEWAYS = {name: values.get("dask-gateway", values)["gateway"] for name, values in VALUES.items()}
HUBS = {name: values["jupyterhub"] for name, values in VALUES.items() if "jupyterhub" in values}


def extras_of_the_image() -> set[str]:
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    (extras,) = re.findall(r'pip install[^"]*"\.\[([a-z0-9,]+)\$\{EXTRAS\}\]"', text)
    return set(extras.split(","))


def test_the_image_copies_and_installs_what_exists() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    copied = [word for line in re.findall(r"^COPY (.+)$", text, re.M) for word in line.split()[:-1]]
    assert {"pyproject.toml", "src", "catalogs", "deploy/versions.txt"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    assert {"hub", "notebook", "gateway", "s3"} <= extras_of_the_image() <= set(project["optional-dependencies"])
    (python,) = re.findall(r"^FROM python:(\d+\.\d+)", text, re.M)
    (locked,) = re.findall(r"--python-version (\S+)", (ROOT / "Makefile").read_text())
    assert python == locked == project["requires-python"].removeprefix(">=")


def locked() -> dict[str, list[Requirement]]:
    """The lines of the lock file that hold here, by package."""
    found: dict[str, list[Requirement]] = {}
    for line in (DEPLOY / "versions.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate():
                found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def asked(extras: set[str]) -> list[Requirement]:
    """What the project requires here with some of its extras; extras may name others."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    todo, found, seen = set(extras), [*map(Requirement, project["dependencies"])], set()
    while todo:
        extra = todo.pop()
        seen.add(extra)
        for requirement in map(Requirement, project["optional-dependencies"][extra]):
            todo |= requirement.extras - seen if requirement.name == "ogive" else set()
            found += [requirement] if requirement.name != "ogive" else []
    return [r for r in found if r.marker is None or r.marker.evaluate()]


def closure(requirements: list[Requirement]) -> dict[str, str]:
    """The installed packages that meet some requirements, directly or not: name -> version."""
    found: dict[str, str] = {}
    todo, seen = [(r.name, frozenset(r.extras)) for r in requirements], set()
    while todo:
        name, wanted = node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        package = distribution(name)
        found[canonicalize_name(name)] = package.version
        for requirement in map(Requirement, package.requires or ()):
            if any(not requirement.marker or requirement.marker.evaluate({"extra": e}) for e in ("", *wanted)):
                todo.append((requirement.name, frozenset(requirement.extras)))
    return found


def test_the_image_has_the_versions_of_these_tests() -> None:
    # The image has JupyterLab, which tests do not need.
    versions, here = locked(), closure(asked(extras_of_the_image() - {"notebook"}))
    assert len(here) > 100
    assert {"dask", "distributed", "numpy", "zarr", "jupyterhub", "dask-gateway"} <= set(here)
    differs = {
        name: version for name, version in here.items()
        if [str(r.specifier) for r in versions.get(name, [])] != [f"=={version}"]
    }  # fmt: skip
    assert differs == {}, "run make lock, or make the environment anew"


def test_the_lock_file_meets_the_project() -> None:
    """Every requirement that tests and image have, in one version that it allows."""
    versions = locked()
    for requirement in asked({"test", "docs", "interop"} | extras_of_the_image()):
        (line,) = versions[canonicalize_name(requirement.name)]
        (pin,) = line.specifier
        assert requirement.specifier.contains(Version(pin.version), prereleases=True), f"make lock: {requirement}"


@pytest.mark.parametrize("path", sorted([*DEPLOY.glob("*.yaml"), *(ROOT / "catalogs").rglob("*.yaml")]), ids=str)
def test_yaml_is_tidy(path: Path) -> None:
    assert [str(problem) for problem in linter.run(path.read_text(), LINT)] == []


def problems(values: Any, chart: str) -> list[str]:
    """What a chart would refuse."""
    schema = yaml.safe_load((ROOT / "tests" / "charts.yaml").read_text())
    validator = jsonschema.Draft202012Validator({**schema, "$ref": f"#/$defs/{chart}"})
    jsonschema.Draft202012Validator.check_schema(schema)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(values)]


def refused(values: Any, charts: Path) -> list[str]:
    """What the schemas refuse that come with the charts, of values on top of the charts' own: what Helm does."""
    found = []
    for name, part in (values if "jupyterhub" in values else {"dask-gateway": values}).items():
        schema = json.loads((charts / name / "values.schema.json").read_text())
        whole = {"global": {}} | merged(yaml.safe_load((charts / name / "values.yaml").read_text()), part)
        for error in jsonschema.validators.validator_for(schema)(schema).iter_errors(whole):
            found.append(f"{name} {error.json_path}: {error.message}")
    return found


# Where `helm pull --untar` has left the charts of daskhub: no package has them.
CHARTS = [Path(os.environ["OGIVE_CHARTS"])] if "OGIVE_CHARTS" in os.environ else []


def small_charts(folder: Path) -> Path:
    """Charts that know the first names of our values, and want one that only their own values have."""
    known = {"jupyterhub": HUBS["daskhub"] | HUBS["kind"], "dask-gateway": VALUES["gateway"]}
    for chart, names in known.items():
        (folder / chart).mkdir()
        schema = {"properties": dict.fromkeys([*names, "global", "rbac"], True), "additionalProperties": False}
        (folder / chart / "values.schema.json").write_text(json.dumps({**schema, "required": ["rbac"]}))
        (folder / chart / "values.yaml").write_text("rbac: {create: true}\n")
    return folder


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("charts", [None, *CHARTS], ids=lambda charts: "own" if charts else "small")
def test_charts_take_the_values(name: str, charts: Path | None, tmp_path: Path) -> None:
    charts = charts or small_charts(tmp_path)
    assert refused(VALUES[name], charts) == []
    chart, wrong = ("dask-gateway", {"typo": 1}) if name == "gateway" else ("jupyterhub", {"jupyterhub": {"typo": 1}})
    (problem,) = refused(merged(VALUES[name], wrong), charts)
    assert problem.startswith(f"{chart} $")
    assert "'typo' was unexpected" in problem


@pytest.mark.parametrize("name", VALUES)
def test_values_have_the_names_and_types_of_their_charts(name: str) -> None:
    assert problems(VALUES[name], "gateway" if name == "gateway" else "daskhub") == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dask-gateway": {"gateway": {"extraConf": {}}}}, "'extraConf' was unexpected"),
        ({"dask-gateway": {"gateway": {"backendd": {}}}}, "'backendd' was unexpected"),
        ({"jupyterhub": {"singleuser": {"memory": {"limits": "8G"}}}}, "'limits' was unexpected"),
        ({"jupyterhub": {"singleuser": {"profileList": [{"display_name": "x"}]}}}, "'description' is a required"),
        ({"jupyterhub": {"cull": {"timeout": "1h"}}}, "'1h' is not of type 'integer'"),
        ({"dask-kubernets": {}}, "'dask-kubernets' was unexpected"),
    ],
)
def test_a_misspelt_value_is_seen(change: Any, said: str) -> None:
    (problem,) = problems(merged(VALUES["daskhub"], change), "daskhub")
    assert said in problem


@pytest.mark.parametrize("document", OBJECTS, ids=lambda document: document["kind"])
def test_objects_of_kubernetes_are_right(document: Any) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**document, "specc": {}}, KUBERNETES, strict=True)


def configured(name: str) -> Config:
    """What the Gateway's pod has as its configuration: the values, then the programs in the order of their keys."""
    gateway, config = GATEWAYS[name], Config()
    image, scheduler = gateway["backend"]["image"], gateway["backend"]["scheduler"]
    config.KubeClusterConfig.image = f"{image['name']}:{image['tag']}"
    config.KubeClusterConfig.scheduler_cores = scheduler["cores"]["request"]
    config.KubeClusterConfig.scheduler_cores_limit = scheduler["cores"]["limit"]
    config.KubeClusterConfig.scheduler_memory = scheduler["memory"]["request"].replace("G", " G").replace("M", " M")
    for key in sorted(gateway["extraConfig"]):
        exec(compile(gateway["extraConfig"][key], f"{name}: {key}", "exec"), {"c": config})
    return config


@pytest.mark.parametrize("name", GATEWAYS)
def test_the_programs_set_what_the_gateway_has(name: str) -> None:
    """A name that a class does not have would be ignored without a word."""
    config = configured(name)
    classes = {"KubeClusterConfig": KubeClusterConfig, "Backend": KubeBackend}
    classes |= {"JupyterHubAuthenticator": JupyterHubAuthenticator} if name != "gateway" else {}
    assert set(config) == set(classes)
    for section, kind in classes.items():
        assert set(config[section]) <= set(kind.class_traits(config=True)), section
    assert config.KubeClusterConfig.idle_timeout > 0


def cluster_of(name: str, **options: Any) -> tuple[KubeClusterConfig, dict[str, Any], dict[str, Any]]:
    """A cluster as the Gateway would start it: its configuration, and the pods of its scheduler and of a worker."""
    common: Any = {"gateway_instance": "ogive", "config": configured(name)}
    backend = KubeBackend(**common)
    _, config = asyncio.run(backend.process_cluster_options(User("mathilde"), options))
    controller = KubeController(**common, api_url="http://127.0.0.1:8000/api")
    scheduler, worker = (controller.make_pod("ogive", "abc", config, is_worker=w) for w in (False, True))
    return config, scheduler, worker


@pytest.mark.parametrize("name", GATEWAYS)
@pytest.mark.parametrize("options", [{}, {"gpus": 1, "worker_cores": 4, "worker_memory": 6.5}], ids=["cpu", "gpu"])
def test_the_gateway_makes_right_pods(name: str, options: dict[str, Any]) -> None:
    config, scheduler, worker = cluster_of(name, **options)
    for pod in (scheduler, worker):
        # Their names come from Kubernetes.
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        assert pod["spec"]["serviceAccountName"] == "ogive"
        (container,) = pod["spec"]["containers"]
        assert container["image"].endswith("ogive:0.1.0")
    assert scheduler["spec"]["containers"][0]["args"][:2] == ["dask", "scheduler"]
    args, resources = (worker["spec"]["containers"][0][key] for key in ("args", "resources"))
    cores, memory = options.get("worker_cores", 2), options.get("worker_memory", 8)
    assert resources["limits"]["cpu"] == f"{cores:.3f}"
    assert resources["limits"]["memory"] == str(int(memory * 2**30))
    assert 1 <= config.cluster_max_workers <= 100
    assert config.cluster_max_workers * cores <= config.cluster_max_cores
    if options:
        assert args[:4] == ["dask", "worker", "--resources", "GPU=1"]
        assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == "1"
        assert worker["spec"]["tolerations"][0]["key"] == "nvidia.com/gpu"
    else:
        assert args[0:3] == ["dask", "worker", "tls://dask-abc.ogive:8786"]
        assert "nvidia.com/gpu" not in resources["limits"]
        assert "tolerations" not in worker["spec"]


@pytest.mark.parametrize("options", [{"gpus": 2}, {"worker_cores": 99}, {"worker_memory": 1000}, {"image": "other"}])
def test_the_gateway_offers_nothing_else(options: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=r"must be <=|Unknown fields"):
        cluster_of("daskhub", **options)


@pytest.mark.parametrize("name", HUBS)
def test_every_profile_makes_a_right_pod(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # There is no Kubernetes to be found, and none is needed to make a pod.
    monkeypatch.setattr("kubespawner.spawner.load_config", lambda **options: None)
    monkeypatch.setattr("kubespawner.spawner.shared_client", lambda name: None)
    single = HUBS[name]["singleuser"]
    spawned = {
        "image": f"{single['image']['name']}:{single['image']['tag']}", "service_account": single["serviceAccountName"],
        "cpu_guarantee": single["cpu"]["guarantee"], "cpu_limit": single["cpu"]["limit"],
        "mem_guarantee": single["memory"]["guarantee"], "mem_limit": single["memory"]["limit"],
        "default_url": single["defaultUrl"], "start_timeout": single["startTimeout"], "namespace": "ogive",
    }  # fmt: skip
    assert len([p for p in single["profileList"] if p.get("default")]) == 1
    for profile in single["profileList"]:
        overrides = profile.get("kubespawner_override", {})
        assert set(overrides) <= set(KubeSpawner.class_traits(config=True))
        spawner = KubeSpawner(_mock=True, **{**spawned, **overrides})
        pod = asyncio.run(spawner.get_pod_manifest())
        body = serialised(pod)
        kubernetes_validate.validate(body, KUBERNETES, strict=True)
        (container,) = body["spec"]["containers"]
        assert body["spec"]["serviceAccountName"] == "ogive"
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == ("GPU" in profile["display_name"])


def serialised(pod: Any) -> Any:
    """A pod of the Kubernetes client as it is sent."""
    from kubernetes_asyncio.client import ApiClient

    async def convert() -> Any:
        async with ApiClient() as client:
            return client.sanitize_for_serialization(pod)

    return asyncio.run(convert())


def test_hub_and_gateway_agree() -> None:
    for name, values in HUBS.items():
        gateway = GATEWAYS[name]
        assert values["singleuser"]["image"] == gateway["backend"]["image"]
        assert "dask-gateway" in values["hub"]["services"]
        assert gateway["prefix"] == "/services/dask-gateway"
        assert gateway["auth"]["jupyterhub"]["apiTokenFromSecretKey"] == "hub.services.dask-gateway.apiToken"
        roles = values["hub"]["loadRoles"]
        assert all("access:services!service=dask-gateway" in roles[role]["scopes"] for role in ("user", "server"))
        assert configured(name).JupyterHubAuthenticator.jupyterhub_service_name == "dask-gateway"
    assert OBJECTS[0]["metadata"]["name"] == HUBS["daskhub"]["singleuser"]["serviceAccountName"]
    programs = [GATEWAYS[name]["extraConfig"]["10-ogive"] for name in ("daskhub", "gateway")]
    assert programs[0] == programs[1]


def test_no_secret_is_kept() -> None:
    secret = r"(?i)(?:secret|password|token)\w*[\"']?\s*[:=]\s*[\"']?[0-9a-z]{16,}"
    assert re.findall(secret, "apiToken: 0123456789abcdef")
    for path in DEPLOY.rglob("*"):
        if path.suffix in (".yaml", ".py", ".md"):
            assert re.findall(secret, path.read_text()) == []
