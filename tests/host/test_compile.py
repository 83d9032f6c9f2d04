"""Behind the host's TorchCompileModel: the same result, the linear layers in graphs, and none made anew for the next
picture."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras import nodes_torch_compile
from torch._dynamo.utils import counters

from host.inpaint import Job
from host.test_references import edit_job


class Graphs:
    """A backend that runs graphs as they are, and counts them and the linear layers run in them."""

    def __init__(self) -> None:
        self.made = self.linear = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        self.made += 1
        linear = sum(node.op == "call_function" and "linear" in str(node.target) for node in graph.graph.nodes)

        def run(*args: Any) -> Any:
            self.linear += linear
            return graph.forward(*args)

        return run


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(patcher: Any, graphs: Graphs) -> Any:
    """What TorchCompileModel does, with a backend that needs no C++ compiler."""
    clone = patcher.clone()
    unguarded = getattr(nodes_torch_compile, "skip_torch_compile_dict", None)  # newer than 0.3.64
    options = {"guard_filter_fn": unguarded} if unguarded else None
    set_torch_compile_wrapper(model=clone, backend=graphs, options=options)
    return clone


def job_of(pack: ModuleType, name: str, box: tuple[int, int, int, int], seed: int) -> Job:
    job = edit_job(pack, name) if name == "flux_kontext" else Job(pack, name)
    job.box = box
    job.__post_init__()
    job.latent = job.model.latent(job.height, job.width, seed=seed)
    if name == "flux_kontext":
        for part in ("positive", "negative"):
            for _, extra in getattr(job, part):
                extra["reference_latents"] = [job.latent]
    return job


@pytest.mark.parametrize(
    ("name", "context"),
    [("flux_dev", context) for context in ("none", "low", "cache", "rolling")]
    + [(name, "low") for name in ("flux_kontext", "sd3", "qwen_image", "lumina2")],
)
def test_a_second_picture_needs_no_new_graph(name: str, context: str, pack: ModuleType) -> None:
    """Both have as many canvas tokens, but others; a value traced from the first one would show in the second."""
    pictures = [job_of(pack, name, (100, 150, 70, 120), 0), job_of(pack, name, (30, 80, 20, 70), 5)]
    tokens = {job.on_grid(context == "low").tokens for job in pictures}
    assert len(tokens) == 1, "the test needs two canvases of one size"
    dense, graphs, widgets = Graphs(), Graphs(), {"context": context}
    first = pictures[0]
    first.sample(compiled(first.model.patcher, dense), steps=3)
    model = compiled(first.model.patcher, graphs)
    made = []
    for job in (*pictures, *pictures):
        result = job.sample(job.patched(model, **widgets), steps=3)
        torch.testing.assert_close(result, job.hilo(widgets, steps=3), rtol=0, atol=1e-5)
        made.append(graphs.made)
    assert made[1:] == made[:1] * 3 and made[0] > 0
    assert graphs.linear >= 4 * 0.9 * dense.linear > 0, "all but what embeds Lumina's tokens"
    assert not [reason for reason in counters["graph_break"] if "recompile_limit" in reason]


def test_compiling_the_patched_model(pack: ModuleType) -> None:
    """TorchCompileModel may also come after HiLo Patch Model."""
    job, graphs = Job(pack, "flux_dev"), Graphs()
    torch.testing.assert_close(job.sample(compiled(job.patched(), graphs)), job.hilo(), rtol=0, atol=1e-5)
    assert graphs.made and graphs.linear
