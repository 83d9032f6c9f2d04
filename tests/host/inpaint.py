"""An inpainting job on a small picture, run through the pack's nodes: what the tests of sampling share."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import comfy.model_patcher
import torch
from core.pictures import painted, picture

from host import tiny

HEIGHT, WIDTH = 256, 192  # 16 x 12 tokens
TOKENS = 192
TEXT = 8
BOX = (100, 150, 70, 120)  # what is painted: top, bottom, left, right
SETTINGS = {"dilation": 8, "detail": 0.1, "threshold": 0.1, "low_factor": "4"}
WIDGETS = {"context": "low", "start_percent": 0.0, "end_percent": 1.0, "on_unsupported": "error"}

model = cache(tiny.build)
taesd = cache(tiny.taesd)


def node(pack: ModuleType, name: str) -> Any:
    """One of the pack's node classes."""
    files = {"HiLoTokenPlanner": "planner", "HiLoPatchModel": "patch", "HiLoUnpack": "unpack"}
    return getattr(import_module(f"{pack.__name__}.nodes.{files[name]}"), name)


def plan_of(pack: ModuleType, image: torch.Tensor, mask: torch.Tensor, **settings: Any) -> Any:
    """HiLo Token Planner's plan."""
    return node(pack, "HiLoTokenPlanner").execute(image, mask, "custom", **(SETTINGS | settings)).args[0]


def patch(pack: ModuleType, patcher: Any, plan: Any, **widgets: Any) -> Any:
    """HiLo Patch Model's model."""
    return node(pack, "HiLoPatchModel").execute(patcher, plan, **(WIDGETS | widgets)).args[0]


@dataclass
class Job:
    """A tiny model, a picture with a mask, and everything a sampler is given.

    `dense(...)` samples the untouched model, `hilo(...)` the patched one; both take `tiny.sample`'s options, and `hilo`
    takes the node's widgets as `widgets`.
    """

    pack: ModuleType
    name: str
    batch: int = 1
    height: int = HEIGHT
    width: int = WIDTH
    box: tuple[int, int, int, int] = BOX
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model = model(self.name)
        self.image = picture(self.height, self.width)
        self.mask = painted(self.height, self.width, self.box)
        self.plan = plan_of(self.pack, self.image, self.mask, **self.settings)
        self.latent = self.model.latent(self.height, self.width, self.batch)
        self.positive = self.conditioning(1)
        self.negative = self.conditioning(2)

    def conditioning(self, seed: int) -> tiny.Conditioning:
        cond = self.model.make_conditioning(tokens=TEXT, seed=seed)
        if self.name == "flux_fill":
            grey = self.model.latent(self.height, self.width, seed=9)
            return tiny.inpaint_conditioning(cond, grey, self.mask[:, None])
        return cond

    def on_grid(self, low: bool = True) -> Any:
        """The plan on this latent's token grid."""
        grid = import_module(f"{self.pack.__name__}.hilo_core.grid").Grid.of_picture((self.height, self.width))
        return self.plan.on_grid(grid, low)

    def patched(self, patcher: Any = None, **widgets: Any) -> Any:
        return patch(self.pack, patcher or self.model.patcher, self.plan, **widgets)

    def sample(self, patcher: Any, noise_mask: bool = True, **options: Any) -> torch.Tensor:
        mask = self.mask[:, None] if noise_mask else None
        options = {"steps": 2, **options}
        return tiny.sample(patcher, self.positive, self.negative, self.latent, mask, **options)

    def dense(self, **options: Any) -> torch.Tensor:
        return self.sample(self.model.patcher, **options)

    def hilo(self, widgets: dict[str, Any] | None = None, **options: Any) -> torch.Tensor:
        return self.sample(self.patched(**(widgets or {})), **options)

    def edited(self) -> torch.Tensor:
        """``(h, w)`` bool, the latent's cells that belong to the tokens of the edit region."""
        on_grid = self.on_grid()
        tokens = on_grid.edit.view(on_grid.grid.rows, on_grid.grid.cols)
        cells = tokens.repeat_interleave(self.model.patch, 0).repeat_interleave(self.model.patch, 1)
        return cells[: self.latent.shape[-2], : self.latent.shape[-1]]

    def error_outside(self, result: torch.Tensor) -> float:
        """Largest deviation from the source outside the edit region, relative to the latent's scale."""
        change = (result - self.latent)[..., ~self.edited()].abs().max()
        return float((change / self.latent.abs().max()).detach())

    def change_inside(self, result: torch.Tensor, other: torch.Tensor) -> float:
        """Largest difference between two results in the edit region, relative to the latent's scale."""
        change = (result - other)[..., self.edited()].abs().max()
        return float((change / self.latent.abs().max()).detach())


def snapshot(patcher: Any) -> dict[str, Any]:
    """All that a run could leave behind on the shared model: weights, modules, attributes, the patcher's lists.

    Take it after a first run, because the host marks a module's layers when it loads them.
    """
    module = patcher.model.diffusion_model
    logged = {"affline_scale_log_info", "affline_emb", "crossattn_emb"}  # Cosmos keeps those of its last forward
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    places = {
        name: {
            key: id(value)
            for key, value in [*vars(one).items(), *one._modules.items(), *one._parameters.items()]
            if key not in logged
        }
        for name, one in module.named_modules()
    }
    lists = ("wrappers", "callbacks", "object_patches", "patches")
    options = comfy.model_patcher.create_model_options_clone(patcher.model_options)
    return {
        "weights": weights,
        "places": places,
        "base": set(vars(patcher.model)),
        "patcher": {name: len(getattr(patcher, name)) for name in lists},
        "options": options,
    }


def assert_untouched(patcher: Any, before: dict[str, Any]) -> None:
    """The model and its patcher are as they were when `before` was taken."""
    after = snapshot(patcher)
    assert after["weights"].keys() == before["weights"].keys()
    assert all(torch.equal(after["weights"][name], before["weights"][name]) for name in before["weights"])
    for part in ("places", "base", "patcher", "options"):
        assert after[part] == before[part], f"the run left something behind: {part}"
