"""HiLo Token for ComfyUI: inpainting with diffusion transformers on the tokens that matter."""

from __future__ import annotations

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Called by ComfyUI's loader. Imports live here, so that importing the folder (tools, tests) needs no host."""
    from comfy_api.latest import ComfyExtension, io

    from .nodes.patch import HiLoPatchModel
    from .nodes.planner import HiLoTokenPlanner
    from .nodes.replacements import register
    from .nodes.route import add_route
    from .nodes.unpack import HiLoUnpack

    class HiLoTokenExtension(ComfyExtension):
        async def on_load(self) -> None:
            await register()

        async def get_node_list(self) -> list[type[io.ComfyNode]]:
            return [HiLoTokenPlanner, HiLoPatchModel, HiLoUnpack]

    add_route()
    return HiLoTokenExtension()
