"""Models that are known and cannot run on a canvas, and why; by the name of their class in ComfyUI."""

from __future__ import annotations

REFUSED: dict[str, str] = {
    "comfy.ldm.wan.model.VaceWanModel": "it reads control frames as large as the whole picture",
    "comfy.ldm.wan.model.CameraWanModel": "it reads a camera's rays over the whole picture",
    "comfy.ldm.wan.model.WanModel_S2V": "it reads sound, a pose and other frames beside the picture",
    "comfy.ldm.wan.model.HumoWanModel": "it reads sound and other frames beside the picture",
    "comfy.ldm.wan.model.SCAILWanModel": "it reads a pose as large as the whole picture",
    "comfy.ldm.wan.model.SCAIL2WanModel": "it reads a pose as large as the whole picture",
    "comfy.ldm.wan.model_animate.AnimateWanModel": "it reads a pose and a face beside the picture",
    "comfy.ldm.hidream_o1.model.HiDreamO1Transformer": "its conditioning holds the position of every token",
    "comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel": "it is a UNet, whose convolutions see neighbours",
    "comfy.ldm.hydit.models.HunYuanDiT": "its positions are made outside it, for the whole picture",
    "comfy.ldm.lightricks.model.LTXVModel": "it makes video",
}
