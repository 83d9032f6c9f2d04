"""Weights and attention kernels that other packs and the host's own options bring."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import comfy.ldm.modules.attention as attention
import comfy.ops
import comfy.sd
import pytest
import torch

from host import tiny
from host.attention import count_attention_tokens
from host.host import Host
from host.inpaint import TEXT, Job
from host.specs import V0_33


def samples_compressed(job: Job, patcher: Any, context: str) -> torch.Tensor:
    """Sample through HiLo Patch Model; its result, exact outside the edit region, the same again, and on few tokens."""
    patched = job.patched(patcher, context=context)
    with count_attention_tokens() as calls:
        result = job.sample(patched)
    assert min(queries for queries, _ in calls) == job.on_grid(context == "low").tokens + TEXT
    assert result.isfinite().all() and job.error_outside(result) <= 1e-6
    assert torch.equal(job.sample(patched), result)
    return result


@pytest.mark.parametrize("context", ["low", "cache"])
@pytest.mark.parametrize("weight_dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_fp8_weights(weight_dtype: str, context: str, host: Host, pack: ModuleType, tmp_path: Path) -> None:
    """As Load Diffusion Model loads them with `weight_dtype` fp8."""
    if host.version < V0_33:
        pytest.skip("this ComfyUI knows Flux by its full width only")
    job = Job(pack, "flux_dev")
    tiny.save_flux(job.model, tmp_path / "flux.safetensors")
    patcher = comfy.sd.load_diffusion_model(
        str(tmp_path / "flux.safetensors"), model_options={"dtype": getattr(torch, weight_dtype)}
    )
    assert patcher.model.diffusion_model.double_blocks[0].img_attn.qkv.weight.dtype == getattr(torch, weight_dtype)
    result = samples_compressed(job, patcher, context)
    assert job.change_inside(result, job.hilo({"context": context})) > 1e-3, "the weights were rounded"


class Dequantising(comfy.ops.disable_weight_init):
    """Linear layers that hold whole numbers and a scale, and make their weight when it is needed, as GGUF's do."""

    class Linear(comfy.ops.disable_weight_init.Linear):
        scale: torch.Tensor

        def quantise(self) -> None:
            weight = self.weight.detach()
            self.scale = weight.abs().amax(1, keepdim=True) / 127
            self.weight = torch.nn.Parameter((weight / self.scale).round().to(torch.int8), requires_grad=False)

        def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            weight = self.weight.to(x.dtype) * self.scale.to(x)
            return torch.nn.functional.linear(x, weight, None if self.bias is None else self.bias.to(x))


def quantised(name: str) -> Any:
    """A tiny model whose layers come from another pack's operations."""
    patcher = tiny.build(name, operations=Dequantising).patcher
    for layer in patcher.model.diffusion_model.modules():
        if isinstance(layer, Dequantising.Linear):
            layer.quantise()
    return patcher


@pytest.mark.parametrize("context", ["low", "cache"])
@pytest.mark.parametrize("name", ["flux_dev", "qwen_image"])
def test_layers_that_dequantise(name: str, context: str, pack: ModuleType) -> None:
    job = Job(pack, name)
    result = samples_compressed(job, quantised(name), context)
    difference = job.change_inside(result, job.hilo({"context": context}))
    assert 1e-6 < difference < 0.2, "near the whole weights' result, and not it"


@pytest.mark.parametrize("takes_masks", [True, False])
@pytest.mark.parametrize("context", ["none", "low", "pooled cache"])
def test_sage_attention(context: str, takes_masks: bool, pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's own path to SageAttention, with a kernel in its place that does as older and newer versions do: with
    weights of low tokens, the older one's host falls back to PyTorch's attention."""
    if not hasattr(attention, "SAGE_ATTENTION_SUPPORTS_MASK"):
        pytest.skip("this ComfyUI hands masks to every SageAttention and goes back when it fails")
    calls: list[bool] = []

    def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        mask = options.get("attn_mask")
        calls.append(mask is not None)
        assert takes_masks or mask is None
        if options["tensor_layout"] == "NHD":
            q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return out.transpose(1, 2) if options["tensor_layout"] == "NHD" else out

    job = Job(pack, "flux_dev")
    expected = job.hilo({"context": context})
    monkeypatch.setattr(attention, "sageattn", kernel, raising=False)
    monkeypatch.setattr(attention, "SAGE_ATTENTION_SUPPORTS_MASK", takes_masks, raising=False)
    monkeypatch.setattr("comfy.ldm.flux.math.optimized_attention", attention.attention_sage)
    assert job.change_inside(job.hilo({"context": context}), expected) <= 1e-5
    assert any(calls) == (takes_masks and context != "none")
    assert calls or context == "low"


def test_sage_attention_itself(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sageattention")
    if not torch.cuda.is_available():
        pytest.skip("SageAttention needs a GPU")
    job = Job(pack, "flux_dev")
    monkeypatch.setattr("comfy.ldm.flux.math.optimized_attention", attention.attention_sage)
    assert job.error_outside(job.hilo({"context": "cache"})) <= 1e-6
