"""Fixtures of the host tests. Without a ComfyUI every test here is skipped, and the terminal says so once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from host.host import HOW_TO_GET_A_HOST, ROOT, Host, find_hosts, import_host, import_pack

_HOSTS = find_hosts()
collect_ignore_glob = [] if _HOSTS else ["test_*.py"]


if _HOSTS:
    # Before any test module is collected, because those import comfy at their top.
    import_host(_HOSTS[0])


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say once, and loudly, that a whole part of the tests did not run."""
    if not _HOSTS:
        terminalreporter.write_line(HOW_TO_GET_A_HOST, red=True, bold=True)


@pytest.fixture(scope="session")
def host() -> Host:
    """The imported ComfyUI."""
    return import_host(_HOSTS[0])


@pytest.fixture(scope="session")
def server(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A running `lab.comfyui.server.Server` with this pack, and a tiny Flux Fill and VAE to load.

    Models: `tiny_fill.safetensors`, `tiny_vae.safetensors`, and the lab's own where they are there.
    """
    from host import tiny
    from lab.comfyui.server import Server

    running = Server(host.path, tmp_path_factory.mktemp("server"))
    models = running.base / "models"
    tiny.save_flux(tiny.build("flux_fill", context_in_dim=1024), models / "diffusion_models" / "tiny_fill.safetensors")
    tiny.save_taesd(models / "vae" / "tiny_vae.safetensors")
    for name, folder in (("hilo_lab_fill", "diffusion_models"), ("hilo_lab_vae", "vae")):
        file = ROOT / "lab" / "weights" / f"{name}.safetensors"
        if file.exists():
            shutil.copy(file, models / folder)
    with running:
        yield running


@pytest.fixture
def flux_server(server: Any, host: Host) -> Any:
    """The `server`, where it can load a Flux as small as the tests' and the lab's."""
    if host.version < (0, 33):
        pytest.skip("older hosts take a Flux of hidden width 3072 only")
    return server


@pytest.fixture(scope="session")
def pack(host: Host) -> ModuleType:
    """This pack, imported as ComfyUI imports a folder of custom_nodes: its own top-level package, from its root."""
    return import_pack()
