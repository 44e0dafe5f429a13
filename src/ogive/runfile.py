"""The text of run files: the commented template, and a configuration as a file that can be run again."""

from dataclasses import fields
from typing import Any

import yaml

from .kernels import KERNELS
from .pairs import PairRules
from .run import RunConfig, Section


def template() -> str:
    """A commented run file with every field and its default.

    Examples
    --------
    >>> config = RunConfig.model_validate(yaml.safe_load(template()))
    >>> config.search == RunConfig().search, config.make_kernel() == RunConfig().make_kernel()
    (True, True)
    """
    lines = ["# A run of ogive: `ogive explain run.yaml` shows what it costs, `ogive run run.yaml` does it."]
    for name, info in RunConfig.model_fields.items():
        default = info.get_default(call_default_factory=True)
        if isinstance(default, Section):
            lines += ["", f"{name}:  # {(type(default).__doc__ or '').strip()}"]
            lines += [
                f"  {key}: {_yaml(getattr(default, key))}  # {f.description}"
                for key, f in type(default).model_fields.items()
            ]
        elif name in ("pairs", "kernel"):
            source = PairRules if name == "pairs" else KERNELS["ncc"]
            lines += ["", f"{name}:  # {info.description}"] + (["  name: ncc"] if name == "kernel" else [])
            lines += [f"  {f.name}: {_yaml(f.default)}" for f in fields(source)]  # type: ignore[arg-type]
        else:
            lines += [f"{name}: {_yaml(default)}  # {info.description}"]
    return "\n".join(lines) + "\n"


def dump(config: RunConfig) -> str:
    """A run file that `load` reads back, with help at every field that is not a default.

    Examples
    --------
    >>> text = dump(RunConfig(title="Aletsch", search={"max_cloud": 40}))
    >>> print(text)
    title: Aletsch  # heading of the report
    search:  # Which scenes.
      max_cloud: 40.0  # most cloud of a scene [percent]
    """
    lines, plain = [], config.model_dump(mode="json")
    for name, info in RunConfig.model_fields.items():
        section = getattr(config, name)
        if section == info.get_default(call_default_factory=True):
            continue
        if isinstance(section, Section):
            changed = [
                f"  {key}: {_yaml(plain[name][key])}  # {f.description}"
                for key, f in type(section).model_fields.items()
                if getattr(section, key) != f.get_default(call_default_factory=True)
            ]
            lines += [f"{name}:  # {(type(section).__doc__ or '').strip()}", *changed]
        else:
            lines += [f"{name}: {_yaml(plain[name])}  # {info.description}"]
    return "\n".join(lines or ["{}"]) + "\n"


def _yaml(value: Any) -> str:
    text = yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True, width=1000)
    return text.replace("\n...", "").strip()
