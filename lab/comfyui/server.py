"""A real ComfyUI server on loopback, in a base folder of its own, driven through HTTP.

with Server(host, base) as server:
    server.upload(picture, "source.png")
    entry = server.queue(prompt)
    picture, = server.images(entry)
"""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import requests
from PIL import Image

from lab.comfyui.in_process import OFFLINE
from lab.environment import ROOT

START_SECONDS = 120
RUN_SECONDS = 600
FOLDERS = ("custom_nodes", "input", "output", "temp", "user", "models/diffusion_models", "models/vae", "models/loras")


class ServerError(Exception):
    """The server did not start, refused a prompt, or failed while running it; says where and why."""


def free_port() -> int:
    """A TCP port of loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """One server process with this pack in its custom_nodes; a context manager.

    Args:
        host: the ComfyUI to start.
        base: an empty folder for models, input, output and the log; put models into `base`/models before `start`.
        pack: the folder to link into custom_nodes, or None for a plain ComfyUI.
        threads: what OMP_NUM_THREADS is set to.
        cpu: leave an accelerator alone.
    """

    def __init__(self, host: Path, base: Path, pack: Path | None = ROOT, threads: int = 1, cpu: bool = True) -> None:
        self.host, self.base, self.threads, self.cpu = host, base, threads, cpu
        self.log_file = base / "server.log"
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None
        for folder in FOLDERS:
            (base / folder).mkdir(parents=True, exist_ok=True)
        if pack:
            _link(pack, base / "custom_nodes" / "hilo-token")

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process and wait until it answers.

        Raises:
            ServerError: it ended or stayed silent; holds the end of its log.
        """
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [
            sys.executable, str(Path(__file__).with_name("launch.py")), str(self.host), *["--cpu"][: self.cpu],
            "--use-pytorch-cross-attention", "--database-url", "sqlite:///:memory:", "--base-directory", str(self.base),
            "--listen", "127.0.0.1", "--port", str(port), "--disable-auto-launch", "--disable-api-nodes",
        ]  # fmt: skip
        calm = {"OMP_NUM_THREADS": str(self.threads), "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **calm, **OFFLINE}
            )
        give_up = time.monotonic() + START_SECONDS
        while time.monotonic() < give_up and self._process.poll() is None:
            try:
                requests.get(f"{self.url}/system_stats", timeout=5).raise_for_status()
                return
            except requests.RequestException:
                time.sleep(0.1)
        code = self._process.poll()
        self.stop()
        how = f"did not answer within {START_SECONDS} s" if code is None else f"ended with exit code {code}"
        raise ServerError(f"The ComfyUI server from {self.host} {how}:\n{self.log[-3000:]}")

    def stop(self) -> None:
        """End the process; harmless when it is not running."""
        if self._process and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None

    @property
    def log(self) -> str:
        """Everything the server has printed so far."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str, **parameters: str) -> requests.Response:
        """GET `path` from the server; raises requests.HTTPError on anything but success."""
        answer = requests.get(f"{self.url}{path}", params=parameters, timeout=60)
        answer.raise_for_status()
        return answer

    def object_info(self) -> dict[str, Any]:
        """Every node's definition by node id, as the page gets it."""
        return self.get("/object_info").json()

    def upload(self, picture: np.ndarray, name: str) -> str:
        """Upload an (H, W, 3 or 4) uint8 picture to the input folder; the name to give LoadImage."""
        data = io.BytesIO()
        Image.fromarray(picture).save(data, "PNG")
        files = {"image": (name, data.getvalue(), "image/png")}
        answer = requests.post(f"{self.url}/upload/image", files=files, data={"overwrite": "true"}, timeout=60)
        answer.raise_for_status()
        return answer.json()["name"]

    def queue(self, prompt: dict[str, Any], timeout: float = RUN_SECONDS) -> dict[str, Any]:
        """Queue an API-format prompt, wait for its end, and return its history entry.

        Raises:
            ServerError: the prompt was refused, a node failed (names it and says why), or `timeout` seconds passed.
        """
        body = {"prompt": prompt, "client_id": uuid.uuid4().hex}
        answer = requests.post(f"{self.url}/prompt", json=body, timeout=60)
        # Of a prompt with several outputs the server runs those that are good and only mentions the rest.
        if answer.status_code != 200 or answer.json().get("node_errors"):
            raise ServerError(f"The server refused the prompt: {answer.text}")
        identity = answer.json()["prompt_id"]
        give_up = time.monotonic() + timeout
        while time.monotonic() < give_up:
            history = self.get(f"/history/{identity}").json()
            if identity in history:
                return _checked(history[identity])
            if self._process is None or self._process.poll() is not None:
                raise ServerError(f"The server died while running the prompt:\n{self.log[-3000:]}")
            time.sleep(0.02)
        raise ServerError(f"The prompt did not end within {timeout:.0f} s:\n{self.log[-3000:]}")

    def faults(self, prompt: dict[str, Any]) -> list[tuple[str, str, str]]:
        """What the server finds wrong with a prompt that must not run: (node type, input, what is wrong) for each.

        Raises:
            ServerError: the server found the prompt good and has queued it.
        """
        answer = requests.post(f"{self.url}/prompt", json={"prompt": prompt}, timeout=60)
        if answer.status_code == 200:
            raise ServerError("The prompt is good, so it was queued.")
        return [
            (found["class_type"], error.get("extra_info", {}).get("input_name", ""), error["type"])
            for found in answer.json()["node_errors"].values()
            for error in found["errors"]
        ]

    def images(self, entry: dict[str, Any], node: str | None = None) -> list[np.ndarray]:
        """The pictures a finished prompt gave (only those of `node`, if named), each (H, W, 3) uint8."""
        found = []
        for identity, output in entry["outputs"].items():
            if node in (None, identity):
                for image in output.get("images", []):
                    data = self.get("/view", **{key: image[key] for key in ("filename", "subfolder", "type")})
                    found.append(np.asarray(Image.open(io.BytesIO(data.content)).convert("RGB")))
        return found


def seconds(entry: dict[str, Any]) -> float:
    """How long a finished prompt ran on the server, in seconds."""
    at = {name: message["timestamp"] for name, message in entry["status"]["messages"] if "timestamp" in message}
    return (at["execution_success"] - at["execution_start"]) / 1000


def _checked(entry: dict[str, Any]) -> dict[str, Any]:
    if entry["status"]["status_str"] != "success":
        for name, message in entry["status"]["messages"]:
            if name == "execution_error":
                raise ServerError(
                    f"Node {message['node_id']} ({message['node_type']}) failed: {message['exception_message'].strip()}"
                )
        raise ServerError(f"The prompt failed: {entry['status']}")
    return entry


def _link(pack: Path, target: Path) -> None:
    """Link the pack into custom_nodes, or copy it where links are not allowed."""
    try:
        target.symlink_to(pack, target_is_directory=True)
    except OSError:
        leave = shutil.ignore_patterns(".*", "runs", "__pycache__")
        shutil.copytree(pack, target, ignore=leave)
