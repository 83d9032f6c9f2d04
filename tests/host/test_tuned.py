"""A model that was tuned for a method: its file is chosen on the node, counts, and leaves nothing behind."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

import comfy.sd
import pytest
import torch
from safetensors.torch import save_file

from host.host import Host
from host.inpaint import Job, assert_untouched, snapshot

WIDTH = 256


def lora(name: str = "transformer.single_transformer_blocks.0.attn.to_q", scale: float = 0.5) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    return {
        f"{name}.lora_A.weight": torch.randn(2, WIDTH, generator=generator) * scale,
        f"{name}.lora_B.weight": torch.randn(WIDTH, 2, generator=generator) * scale,
    }


@pytest.fixture
def files(host: Host, pack: ModuleType) -> dict[str, str]:
    """Names of files among the LoRAs: for both methods, as the model already is, and foreign ones."""
    core = import_module(f"{pack.__name__}.hilo_core.tuned")
    folder = host.base / "models" / "loras"
    img_in = Job(pack, "flux_dev").model.patcher.model.diffusion_model.img_in
    own = core.LowEmbedding(img_in.weight.detach(), img_in.bias.detach())
    other = core.LowEmbedding(own.weight.flip(0), own.bias)
    routers = core.Routers(torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1)), torch.zeros(3),
                           torch.full((3, 4), 0.5))  # fmt: skip
    tuned = {
        "same": core.Tuned({}, low_embedding=own),
        "hilo": core.Tuned({}, low_embedding=other),
        "hilo_lora": core.Tuned(lora(), low_embedding=own),
        "diffcr": core.Tuned(lora(), routers=routers),
        "unfit": core.Tuned({}, low_embedding=core.LowEmbedding(own.weight[:, :3], own.bias)),
        "unfit_lora": core.Tuned(lora("transformer.blocks.99.nowhere"), low_embedding=own),
        "unfit_routers": core.Tuned({}, routers=core.Routers(torch.zeros(5, 8), torch.zeros(5), torch.zeros(5, 2))),
    }
    for name, one in tuned.items():
        one.save(folder / f"{name}.safetensors", torch.float32)
    save_file(lora(), folder / "plain_lora.safetensors")
    return {name: f"{name}.safetensors" for name in (*tuned, "plain_lora")}


def test_the_files_of_the_node(files: dict[str, str], pack: ModuleType) -> None:
    job = Job(pack, "flux_dev")
    plain, dense = job.hilo(), job.dense()
    before = snapshot(job.model.patcher)
    assert torch.equal(job.hilo({"tuned": files["same"]}), plain), "the model's own embedding changes nothing"
    assert_untouched(job.model.patcher, before)
    for name in ("hilo", "hilo_lora"):
        patched = job.patched(tuned=files[name])
        result = job.sample(patched)
        assert job.error_outside(result) <= 1e-6
        assert job.change_inside(result, plain) > 1e-4
        assert torch.equal(job.sample(patched), result), "a second queue equals the first"
    routed = job.hilo({"method": "diffcr", "tuned": files["diffcr"]})
    assert job.error_outside(routed) <= 1e-6
    assert job.change_inside(routed, job.hilo({"method": "diffcr"})) > 1e-4
    other = comfy.sd.load_lora_for_models(job.model.patcher, None, lora(), 1.0, 0.0)[0]
    assert other.patches and job.sample(job.patched(other, tuned=files["hilo_lora"])).isfinite().all(), "LoRAs add up"
    assert torch.equal(job.dense(), dense), "bypassing the node is vanilla, the LoRA is off again"


@pytest.mark.parametrize(("file", "method", "message"), [
    ("plain_lora", "hilo", "not a file that was tuned for HiLo Token; choose one that lab/tune.py wrote"),
    ("diffcr", "hilo", "was made for method diffcr, not for hilo"),
    ("hilo", "sdtm", "was made for method hilo, not for sdtm"),
    ("unfit", "hilo", "was made for another model"),
    ("unfit_lora", "hilo", "nothing of .* fits this model"),
])  # fmt: skip
def test_a_file_that_does_not_fit_is_refused(
    file: str, method: str, message: str, files: dict[str, str], pack: ModuleType
) -> None:
    with pytest.raises(ValueError, match=f"HiLo Patch Model: tuned: .*{message}"):
        Job(pack, "flux_dev").patched(method=method, tuned=files[file])


def test_routers_of_another_model_are_refused_when_they_are_used(files: dict[str, str], pack: ModuleType) -> None:
    with pytest.raises(ValueError, match="routers were trained for 5 layers of 8 channels"):
        Job(pack, "flux_dev").hilo({"method": "diffcr", "tuned": files["unfit_routers"]})


def test_the_node_offers_the_files(files: dict[str, str], pack: ModuleType) -> None:
    offered = import_module(f"{pack.__name__}.nodes.tuned").tuned_files()
    assert offered[0] == "none" and files["hilo"] in offered
