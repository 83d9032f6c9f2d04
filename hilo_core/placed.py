"""Tensors that every layer needs on its device."""

from __future__ import annotations

import torch


class Placed:
    """A tensor made on the CPU, brought to each device once.

    A copy from the CPU makes the GPU's queue run dry: the CPU waits until it is done. Once a run that does not matter;
    in each of a model's attention calls it does.

    Args:
        tensor: wherever it was made.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self._on = {tensor.device: tensor}

    def __len__(self) -> int:
        return len(self.tensor)

    def on(self, device: torch.device) -> torch.Tensor:
        """The tensor on a device."""
        if device not in self._on:
            self._on[device] = self.tensor.to(device)
        return self._on[device]


__all__ = ["Placed"]
