"""Log n reaches attention whatever function the host uses."""

from __future__ import annotations

from collections import Counter
from types import ModuleType
from typing import Any

import comfy.ldm.flux.math as flux_math
import comfy.ldm.modules.attention as host_attention
import pytest
import torch

from host.inpaint import Job


def sage(seen: Counter[str], refuses: bool) -> Any:
    """A stand-in for sage attention, which is not here: it ignores a mask, or it raises on one."""

    def attention_sage(q: Any, k: Any, v: Any, heads: int, mask: Any = None, **kwargs: Any) -> Any:
        seen["masked" if mask is not None else "fast"] += 1
        if mask is not None and refuses:
            raise RuntimeError("no masks here")
        return host_attention.attention_pytorch(q, k, v, heads, mask=None, **kwargs)

    return attention_sage


def results(pack: ModuleType, monkeypatch: pytest.MonkeyPatch, context: str, old: bool, refuses: bool = False) -> Any:
    """The picture with PyTorch's attention, with the stand-in, and what the stand-in saw."""
    job, seen = Job(pack, "flux_fill"), Counter[str]()
    settings = {"context": context, "refresh": 0, "forecast": "hold"}
    plain = job.sample(job.patched(**settings))
    with monkeypatch.context() as patch:
        if old:
            patch.delattr(host_attention, "SAGE_ATTENTION_SUPPORTS_MASK", raising=False)
        wrapped = host_attention.wrap_attn(sage(seen, refuses))
        patch.setattr(flux_math, "optimized_attention", wrapped)
        return job, plain, job.sample(job.patched(**settings)), seen


@pytest.mark.parametrize("refuses", [False, True])
def test_an_old_hosts_sage_attention_is_passed_by_where_it_would_not_see_log_n(
    pack: ModuleType, monkeypatch: pytest.MonkeyPatch, refuses: bool
) -> None:
    _, plain, result, seen = results(pack, monkeypatch, "low", True, refuses)
    assert torch.equal(result, plain) and not seen["masked"]


@pytest.mark.parametrize("context", ["cache", "rolling", "none"])
def test_a_context_without_log_n_stays_on_the_fast_kernel(
    pack: ModuleType, monkeypatch: pytest.MonkeyPatch, context: str
) -> None:
    _, plain, result, seen = results(pack, monkeypatch, context, True)
    assert seen["fast"] > 0 and not seen["masked"]
    assert torch.equal(result, plain)


@pytest.mark.skipif(
    not hasattr(host_attention, "SAGE_ATTENTION_SUPPORTS_MASK"), reason="this host lets sage attention ignore masks"
)
def test_a_host_that_looks_after_masks_is_left_to_it(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    job, plain, result, seen = results(pack, monkeypatch, "low", False)
    assert seen["masked"] > 0
    assert job.change_inside(result, plain) > 1e-4, "the stand-in ignores the mask: the tests above prove something"


def test_flash_attention_is_not_asked_for_what_it_refuses(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host would say so in the log for every call of every layer."""
    job, seen = Job(pack, "flux_fill"), Counter[str]()
    plain = job.hilo({"context": "low"})

    def attention_flash(q: Any, k: Any, v: Any, heads: int, mask: Any = None, **kwargs: Any) -> Any:
        seen["masked" if mask is not None else "fast"] += 1
        return host_attention.attention_pytorch(q, k, v, heads, mask=mask, **kwargs)

    monkeypatch.setattr(flux_math, "optimized_attention", host_attention.wrap_attn(attention_flash))
    assert torch.equal(job.hilo({"context": "low"}), plain) and not seen["masked"]
    job.hilo({"context": "none"})
    assert seen["fast"]
