"""Layers of diffusers' Flux that compute only some of the canvas tokens: the lab's twin of nodes/blocks.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from hilo_core import Run
from hilo_core.contexts import Forward
from hilo_core.families.base import replaced
from hilo_core.methods import Cut, Layer


@dataclass
class Running:
    """What the running layer computes; ``None`` for all of the canvas."""

    cut: Cut | None = None


def blocks_of(dit: FluxTransformer2DModel) -> list[Any]:
    """The transformer's blocks in the order they run, both kinds; each takes and gives text and picture apart."""
    return [*dit.transformer_blocks, *dit.single_transformer_blocks]


@contextmanager
def each_block(dit: FluxTransformer2DModel, around: Callable[[int, Callable[..., Any], dict], Any]) -> Iterator[None]:
    """Inside the `with`, `around(index, block, arguments)` is called in place of every block."""
    with ExitStack() as stack:
        for index, block in enumerate(blocks_of(dit)):

            def forward(index: int = index, inner: Callable[..., Any] = block.forward, **arguments: Any) -> Any:
                return around(index, inner, arguments)

            stack.enter_context(replaced(block, "forward", forward))
        yield


def embedding_low(dit: FluxTransformer2DModel, run: Run, forward: Forward) -> AbstractContextManager[None]:
    """Inside the `with`, low tokens go through the patch embedding of a tuned model, where the method has one."""
    embedding = getattr(run.method, "low_embedding", None)
    if embedding is None or not forward.canvas.low:
        return nullcontext()
    return replaced(dit, "x_embedder", embedding.beside(dit.x_embedder, forward.canvas))


@contextmanager
def cutting(dit: FluxTransformer2DModel, run: Run, forward: Forward) -> Iterator[Running]:
    """Let the run's method choose what each layer of one forward computes."""
    running = Running()
    if not run.method.cuts_layers:
        yield running
        return
    count = len(blocks_of(dit))

    def around(index: int, block: Callable[..., Any], arguments: dict) -> tuple[Tensor, Tensor]:
        rows, text = arguments["hidden_states"], arguments["encoder_hidden_states"].shape[1]
        layer = Layer(index, count, rows)
        cut = run.work.cut(forward, layer)
        if cut is None:
            words, out = block(**arguments)
            run.work.computed(forward, layer, out, None)
            return words, out
        reduced = cut.reduce(rows)
        kept = torch.cat([torch.arange(text, device=rows.device), text + cut.index])
        angles = tuple(part[kept] for part in arguments["image_rotary_emb"])
        running.cut = cut
        try:
            words, out = block(**{**arguments, "hidden_states": reduced, "image_rotary_emb": angles})
        finally:
            running.cut = None
        restored = cut.restore(rows, reduced, out)
        run.work.computed(forward, layer, restored, cut)
        return words, restored

    with each_block(dit, around):
        yield running
