"""Ways to add log n to the logits of a few keys, and what each costs. `python -m lab.bench.logn`

A low-frequency token stands for n others, so its key gets + log n. A mask takes the fast kernels of most libraries
away; this compares it with ways that need none. Every way is checked against the softmax in double precision.
Writes logn.json and logn.md into lab/results.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lab.bench import record

RESULTS = Path(__file__).parents[1] / "results"
STANDS_FOR = 16  # tokens a low token stands for: blocks of 4 x 4

# name: batch, heads, keys besides the low ones, low keys, channels of a head
SHAPES = {
    "Flux.1, 1024 px, small mask": (1, 24, 1376, 224, 128),
    "SD3.5 large, 1024 px, small mask": (1, 38, 1120, 224, 64),
}

Way = Callable[[Tensor, Tensor, Tensor, int, float], Tensor]


def without(q: Tensor, k: Tensor, v: Tensor, low: int, weight: float) -> Tensor:
    """No log n at all: the floor of the cost."""
    return F.scaled_dot_product_attention(q, k, v)


def bias(q: Tensor, k: Tensor, v: Tensor, low: int, weight: float) -> Tensor:
    """An additive mask, one row for all queries and heads."""
    mask = q.new_zeros(1, 1, 1, k.shape[2])
    mask[..., -low:] = weight
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def extra_dimension(q: Tensor, k: Tensor, v: Tensor, low: int, weight: float) -> Tensor:
    """One more channel, padded to eight: 1 in every query, log n sqrt(d) in the low keys. Works with any kernel that
    takes the wider head and has no mask; the scale is corrected in q, because not every kernel takes one."""
    channels = q.shape[-1]
    wider = channels + 8
    wide_q, wide_k, wide_v = (F.pad(one, (0, 8)) for one in (q * math.sqrt(wider / channels), k, v))
    wide_q[..., channels] = 1
    wide_k[..., -low:, channels] = weight * math.sqrt(wider)
    return F.scaled_dot_product_attention(wide_q, wide_k, wide_v)[..., :channels]


def merged(q: Tensor, k: Tensor, v: Tensor, low: int, weight: float) -> Tensor:
    """Two attentions, one over the low keys alone, merged by their log-sum-exp (as flash and ring attention do). The
    kernel must give its log-sum-exp."""
    main, main_sum = flash(q, k[..., :-low, :].contiguous(), v[..., :-low, :].contiguous())
    some, some_sum = flash(q, k[..., -low:, :].contiguous(), v[..., -low:, :].contiguous())
    share = torch.sigmoid(some_sum + weight - main_sum)[..., None].to(main)
    return torch.lerp(main, some, share)


def flash(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """PyTorch's flash attention with its log-sum-exp, `(B, H, Q, D)` and `(B, H, Q)`."""
    if q.device.type == "cuda":
        out, total, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)
        return out, total[..., : q.shape[2]]
    out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    return out, total.view(q.shape[:3]) if total.shape[1] == q.shape[1] else total.transpose(1, 2)


def repeated(q: Tensor, k: Tensor, v: Tensor, low: int, weight: float) -> Tensor:
    """Every low key n times: any kernel can, and it costs what it stands for."""
    times = round(math.exp(weight))
    more = [one[..., -low:, :].repeat(1, 1, times - 1, 1) for one in (k, v)]
    return F.scaled_dot_product_attention(q, torch.cat([k, more[0]], 2), torch.cat([v, more[1]], 2))


def flex(q: Tensor, k: Tensor, v: Tensor, low: int, weight: float) -> Tensor:
    """FlexAttention with a score function, compiled."""
    from torch.nn.attention.flex_attention import flex_attention

    first = k.shape[2] - low

    def score(value: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return value + torch.where(key >= first, weight, 0.0)

    global _flex
    _flex = _flex or torch.compile(flex_attention, dynamic=False)
    return _flex(q, k, v, score_mod=score)


_flex: Any = None

WAYS: dict[str, Way] = {
    "without log n": without,
    "mask": bias,
    "extra dimension": extra_dimension,
    "merged": merged,
    "repeated keys": repeated,
    "FlexAttention": flex,
}


def exact(q: Tensor, k: Tensor, v: Tensor, low: int, weight: float) -> Tensor:
    """The answer, in double precision."""
    logits = q.double() @ k.double().mT / math.sqrt(q.shape[-1])
    logits[..., -low:] += weight
    return logits.softmax(-1) @ v.double()


def measure(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype, times: int) -> dict[str, Any]:
    """Milliseconds and error of every way at one shape; a way that cannot run says why."""
    batch, heads, keys, low, channels = shape
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, batch, heads, keys + low, channels, generator=generator).to(device, dtype)
    weight = math.log(STANDS_FOR)
    probe = q[:, :2, :256], k[:, :2], v[:, :2]
    truth = exact(*probe, low, weight)
    results: dict[str, Any] = {}
    for name, way in WAYS.items():
        try:
            answer = way(q, k, v, low, weight)[:, :2, :256]
            seconds = []
            for _ in range(times):
                started = _now(device)
                way(q, k, v, low, weight)
                seconds.append(_now(device) - started)
        except Exception as error:  # a kernel may refuse a device, a type or a shape in its own way
            results[name] = {"refused": f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"}
            continue
        off = float((answer.double() - truth).abs().max() / truth.abs().max())
        results[name] = {"milliseconds": statistics.median(seconds) * 1000, "error": off}
    return results


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()  # on a shared machine the steadier measure


def table(content: dict[str, Any]) -> str:
    """The results as a page."""
    lines = [
        "# Log n on the keys of low-frequency tokens",
        "",
        f"`python -m lab.bench.logn` on {content['environment']['device']}, {content['dtype']}, one attention call. "
        "Milliseconds (of one thread's own time on a CPU), in brackets the cost over attention without log n. "
        "Error: largest deviation from the softmax in double precision, on the scale of the answer; *without log n* "
        "shows what is lost when a kernel ignores a mask.",
        "",
    ]
    rows = []
    for way in WAYS:
        cells, errors = [], []
        for results in content["shapes"].values():
            one = results[way]
            if "refused" in one:
                cells.append("refused")
                continue
            floor = results["without log n"]["milliseconds"]
            cells.append(f"{one['milliseconds']:.1f} ({one['milliseconds'] / floor - 1:+.0%})")
            errors.append(one["error"])
        rows.append([way, *cells, f"{max(errors, default=math.nan):.4f}"])
    lines.append(record.table(["way", *content["shapes"], "largest error"], rows))
    for shape, results in content["shapes"].items():
        ways = {way: one["milliseconds"] for way, one in results.items() if "milliseconds" in one}
        first = min(set(ways) - {"without log n"}, key=lambda way: ways[way])
        mask = f"; the mask takes {ways['mask'] / ways[first] - 1:.0%} longer" if "mask" in ways else ""
        lines.append(f"- Cheapest at {shape}: {first}{mask}.")
    refusals = {one["refused"] for shape in content["shapes"].values() for one in shape.values() if "refused" in one}
    lines += [f"- Refused: {reason}" for reason in sorted(refusals)]
    return "\n".join(lines).rstrip() + "\n"


def main(argv: list[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="default: lab/results")
    args = parser.parse_args(argv)
    dtype = torch.bfloat16
    if args.device.type == "cpu":
        torch.set_num_threads(1)
    content = {
        "environment": record.environment(args.device, dtype),
        "dtype": str(dtype).removeprefix("torch."),
        "stands_for": STANDS_FOR,
        "shapes": {name: measure(shape, args.device, dtype, args.times) for name, shape in SHAPES.items()},
    }
    record.write_json(args.out / "logn.json", content)
    page = table(content)
    (args.out / "logn.md").write_text(page, encoding="utf-8")
    print(page)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
