"""The demo's picture through a real ComfyUI server: `workflows/lab_fill_demo.json`, dense and with HiLo Token."""

from __future__ import annotations

import json
import shutil
import tempfile
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lab import autoencoder, dit
from lab.comfyui.find import HOW_TO_GET_ONE, find_hosts
from lab.comfyui.server import Server, ServerError, seconds
from lab.comfyui.workflow import WorkflowError, to_api
from lab.environment import ROOT
from lab.inputs import InputError, Inputs

WORKFLOW = ROOT / "workflows" / "lab_fill_demo.json"
Prompt = dict[str, Any]


@dataclass(frozen=True)
class HostReport:
    """What ComfyUI gave.

    Attributes:
        dense, hilo: seconds of the whole graph, models loaded.
        picture: (H, W, 3) uint8, made with HiLo Token.
    """

    dense: float
    hilo: float
    picture: np.ndarray


def find_host() -> Path:
    """The folder of the first ComfyUI found.

    Raises:
        InputError: there is none; says how to get one.
    """
    try:
        hosts = find_hosts()
    except FileNotFoundError as error:
        raise InputError(f"--host: {error}") from None
    if not hosts:
        raise InputError(f"--host: {HOW_TO_GET_ONE}")
    return hosts[0]


def run(host: Path, inputs: Inputs, weights: Path, steps: int, seed: int, preset: str) -> HostReport:
    """Start a ComfyUI and queue the workflow three times: to load the models, dense, and with HiLo Token.

    Args:
        host: folder of the ComfyUI.
        inputs: the picture and its mask.
        weights: folder of the two weight files.
        steps, seed, preset: of the sampler, and of the planner.

    Raises:
        InputError: it did not start, or failed; says why.
    """
    with tempfile.TemporaryDirectory(prefix="hilo-demo-") as base:
        server = Server(host, Path(base), threads=torch.get_num_threads(), cpu=not torch.cuda.is_available())
        for file, folder in ((dit.WEIGHTS.name, "diffusion_models"), (autoencoder.WEIGHTS.name, "vae")):
            shutil.copy(weights / file, Path(base) / "models" / folder / file)
        try:
            with server:
                workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
                hilo = to_api(workflow, server.object_info())
                _set(hilo, "LoadImage", image=server.upload(rgba(inputs), "hilo_demo.png"))
                _set(hilo, "HiLoTokenPlanner", preset=preset)
                _set(hilo, "KSampler", steps=steps, seed=seed)
                warm_up = deepcopy(hilo)
                _set(warm_up, "KSampler", steps=1)
                server.queue(warm_up)
                # The server keeps results of unchanged nodes, so both runs time the sampler and what follows it.
                dense_entry, hilo_entry = server.queue(unpatched(hilo)), server.queue(hilo)
                saved = next(name for name, node in hilo.items() if node["class_type"] == "SaveImage")
                picture = server.images(hilo_entry, saved)[0]
        except (ServerError, WorkflowError) as error:
            raise InputError(f"--host: {error}") from None
    return HostReport(seconds(dense_entry), seconds(hilo_entry), picture)


def rgba(inputs: Inputs) -> np.ndarray:
    """The picture as LoadImage wants it, (H, W, 4) uint8: transparent where it is painted."""
    pixels = torch.cat([inputs.image, 1 - inputs.mask], 1)[0]
    return pixels.permute(1, 2, 0).mul(255).round().to(torch.uint8).numpy()


def unpatched(prompt: Prompt) -> Prompt:
    """The same prompt with HiLo Patch Model bypassed, which makes the run dense."""
    plain = deepcopy(prompt)
    patches = [name for name, node in plain.items() if node["class_type"] == "HiLoPatchModel"]
    for name in patches:
        model = plain.pop(name)["inputs"]["model"]
        for node in plain.values():
            node["inputs"] = {key: model if value == [name, 0] else value for key, value in node["inputs"].items()}
    return plain


def _set(prompt: Prompt, kind: str, **values: Any) -> None:
    """Set widgets of every node of a kind."""
    for node in prompt.values():
        if node["class_type"] == kind:
            node["inputs"].update(values)
