"""The file of a model that was tuned for a method (lab/tune.py), one for every host.

A LoRA in diffusers' names (``transformer.*``), which hosts load as any other, and beside it what a method adds:
``hilo.low_in.*`` the low-frequency patch embedding of HiLo, ``hilo.router.*`` and ``hilo.ratio`` the routers of
DiffCR."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .methods.diffcr import Routers
from .methods.hilo import LowEmbedding

PREFIX = "transformer."


@dataclass(frozen=True, eq=False)
class Tuned:
    """What the file holds.

    Attributes:
        lora: in diffusers' names, with their prefix.
        low_embedding: for method ``hilo``.
        routers: for method ``diffcr``.
    """

    lora: dict[str, torch.Tensor]
    low_embedding: LowEmbedding | None = None
    routers: Routers | None = None

    @property
    def parts(self) -> dict[str, Any]:
        """What goes to the method, by the name of its setting."""
        return {"low_embedding": self.low_embedding, "routers": self.routers}

    @classmethod
    def load(cls, path: Path) -> Tuned:
        """Read a file.

        Raises:
            ValueError: it holds nothing that HiLo Token knows.
        """
        state = load_file(path)
        lora = {name: value for name, value in state.items() if name.startswith(PREFIX)}
        own = {name.removeprefix("hilo."): value for name, value in state.items() if name.startswith("hilo.")}
        low = routers = None
        if "low_in.weight" in own:
            low = LowEmbedding(own["low_in.weight"], own["low_in.bias"])
        if "router.weight" in own:
            routers = Routers(own["router.weight"], own["router.bias"], own["ratio"])
        if low is None and routers is None:
            raise ValueError(
                f"{path.name} is not a file that was tuned for HiLo Token; choose one that lab/tune.py wrote, and load "
                "an ordinary LoRA with a LoRA loader"
            )
        return cls(lora, low, routers)

    def save(self, path: Path, dtype: torch.dtype = torch.bfloat16) -> None:
        """Write a file; its folder is made. Ratios stay float32."""
        state = {name: value.to(dtype) for name, value in self.lora.items()}
        if self.low_embedding is not None:
            state["hilo.low_in.weight"] = self.low_embedding.weight.to(dtype)
            state["hilo.low_in.bias"] = self.low_embedding.bias.to(dtype)
        if self.routers is not None:
            state["hilo.router.weight"] = self.routers.weight.to(dtype)
            state["hilo.router.bias"] = self.routers.bias.to(dtype)
            state["hilo.ratio"] = self.routers.ratio.float()
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, path)
