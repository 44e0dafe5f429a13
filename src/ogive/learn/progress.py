"""A fine-tuning that can be interrupted: its state, in memory and in one file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import AdamW

from ..errors import OgiveError
from .judge import Score
from .nets import FlowNetwork
from .train import MOMENTS

WARMED = 10
"""Steps in which the learning rate rises."""


class Progress:
    """Network, optimiser, steps done, scores so far, and the best state.

    Parameters
    ----------
    net : FlowNetwork
    rate : float
        Learning rate.
    told : dict
        All that the outcome depends on; a checkpoint of another one is refused.
    path : Path
        The checkpoint.
    """

    def __init__(self, net: FlowNetwork, rate: float, told: dict[str, Any], path: Path) -> None:
        self.net, self.rate, self.path, self.told = net, rate, path, json.dumps(told)
        self.optimiser = AdamW(net.parameters(), rate, weight_decay=1e-3)
        self.done, self.scores = 0, list[Score]()
        self.kept = self._parameters()

    def step(self, loss: Callable[[], Tensor]) -> None:
        """One step of the optimiser."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * min(1.0, (self.done + 1) / WARMED)
        self.optimiser.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimiser.step()
        self.done += 1

    def keep(self) -> None:
        """Remember the present state as the best."""
        self.kept = self._parameters()

    def restore(self) -> None:
        """Go back to the best state."""
        with torch.no_grad():
            for name, p in self.net.named_parameters():
                p.copy_(self.kept[name])

    def save(self) -> None:
        """The whole state, or what was there before."""
        arrays = self._parameters() | {f"{name}:kept": value for name, value in self.kept.items()}
        for name, p in self.net.named_parameters():
            arrays |= {f"{name}:{key}": value for key, value in self.optimiser.state[p].items()}
        part = self.path.with_name(self.path.name + ".part")
        save_file(arrays, part, {"told": self.told, "done": str(self.done), "scores": json.dumps(self.scores)})
        part.replace(self.path)

    def resume(self) -> None:
        """The state of the checkpoint, if there is one.

        Raises
        ------
        OgiveError
            It was begun with something else.
        """
        if not self.path.exists():
            return
        with safe_open(self.path, "pt") as file:
            about = file.metadata()
            if about["told"] != self.told:
                was, now = json.loads(about["told"]), json.loads(self.told)
                other = ", ".join(key for key in now if was.get(key) != now[key])
                raise OgiveError(str(self.path), rule="was begun with others", value=other, fix="choose another output")
            self.done, self.scores = int(about["done"]), json.loads(about["scores"])
            with torch.no_grad():
                for name, p in self.net.named_parameters():
                    p.copy_(file.get_tensor(name))
                    self.kept[name] = file.get_tensor(f"{name}:kept").to(p.device)
                    if self.done:
                        state = {key: file.get_tensor(f"{name}:{key}") for key in MOMENTS}
                        self.optimiser.state[p] = {k: t if k == "step" else t.to(p.device) for k, t in state.items()}

    def _parameters(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.net.named_parameters()}
