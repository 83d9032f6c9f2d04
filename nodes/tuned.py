"""A model that was tuned for a method: its file is chosen on HiLo Patch Model, among the LoRAs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import comfy.sd
import folder_paths

from ..hilo_core.contexts import Forward
from ..hilo_core.families import Family
from ..hilo_core.families.base import replaced
from ..hilo_core.methods import Method
from ..hilo_core.tuned import Tuned

FOLDER, NONE = "loras", "none"


def tuned_files() -> list[str]:
    """What the widget offers."""
    return [NONE, *folder_paths.get_filename_list(FOLDER)]


def load_tuned(file: str, method: str, family: Family, model: Any) -> tuple[Any, dict[str, Any]]:
    """A clone of a ``ModelPatcher`` with the file's LoRA, and what the method needs of the file.

    Raises:
        ValueError: the file is none of ours, was tuned for another method, or for another model.
    """
    if file == NONE:
        return model, {}
    try:
        tuned = Tuned.load(Path(folder_paths.get_full_path_or_raise(FOLDER, file)))
    except ValueError as error:
        raise ValueError(f"HiLo Patch Model: tuned: {error}") from error
    parts = tuned.parts
    wanted = {"hilo": "low_embedding", "hilo + todo": "low_embedding", "diffcr": "routers"}
    if parts.get(wanted.get(method, "")) is None:
        right = "diffcr" if tuned.low_embedding is None else "hilo"
        raise ValueError(
            f"HiLo Patch Model: tuned: {file} was made for method {right}, not for {method}; choose that method, or "
            "tuned none"
        )
    if tuned.low_embedding is not None:
        own = getattr(model.get_model_object("diffusion_model"), family.patch_embedding or " ", None)
        if own is None or tuple(own.weight.shape) != tuple(tuned.low_embedding.weight.shape):
            raise ValueError(
                f"HiLo Patch Model: tuned: {file} was made for another model; choose the file that was made for it"
            )
    if tuned.lora:
        known = _patches(model)
        model = comfy.sd.load_lora_for_models(model, None, tuned.lora, 1.0, 0.0)[0]
        if _patches(model) == known:
            raise ValueError(
                f"HiLo Patch Model: tuned: nothing of {file} fits this model; choose the file that was made for it"
            )
    return model, parts


def _patches(model: Any) -> int:
    """How many patches a ``ModelPatcher`` has; several may lie on one weight."""
    return sum(map(len, model.patches.values()))


def low_embedded(family: Family, model: Any, forward: Forward, method: Method) -> AbstractContextManager[None]:
    """Inside it low tokens go through the patch embedding of a tuned model, where the method has one."""
    embedding = getattr(method, "low_embedding", None)
    if embedding is None or not forward.canvas.low:
        return nullcontext()
    name = family.patch_embedding
    return replaced(model, name, embedding.beside(getattr(model, name), forward.canvas))
