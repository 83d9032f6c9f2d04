"""Reference latents of edit models, packed by the plan where they show the run's own source picture.

Edit models append the source picture as clean tokens, which doubles the sequence. What the plan leaves out of the
picture is left out of such a reference, too; another picture stays whole. Under the context ``low`` clean low tokens
stand for the rest, weighed as the picture's are. Under a cached context the reference is whole in each dense call, and
in the first one; keys and values of what is left out of it are kept until the next. It has no noise, so they change
less than the picture's, and nothing of them is renewed between."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass, field

import torch

from .canvas import Canvas, to_tokens
from .contexts import AttentionCall, Context, Forward
from .contexts.base import KeysValuesMask
from .contexts.cache import append
from .contexts.kvcache import Layers
from .contexts.memory import Memory
from .families.base import Reference

# Largest difference between a reference and the source on the tokens that are left out, relative to the source's
# deviation. Encoding a picture again or resizing it by nothing gives hundredths, another picture 1 and more.
SAME = 0.1

Pack = Callable[[torch.Tensor], torch.Tensor]  # a clean latent ``(n * B, C, h, w)``, laid out on the canvas


@dataclass
class References:
    """The reference latents of a run.

    Attributes:
        source: ``(B, C, h, w)`` the clean source latent, in the model's own scale.
        patch: latent cells a token side.
        canvas: the tokens of a reference that are computed.
        context: how what is left out stays visible.
        memory: where kept keys and values live, shared with the context's.
        found: for each conditioning and turn what stands in for the reference, ``None`` for another picture.
        layers: for each conditioning and attention call, keys and values of what is left out.
        packed: a reference has been packed.
    """

    source: torch.Tensor
    patch: int
    canvas: Canvas
    context: Context
    memory: Memory = field(default_factory=Memory)
    found: dict[Hashable, Reference | None] = field(default_factory=dict)
    layers: dict[Hashable, Layers] = field(default_factory=dict)
    packed: bool = False

    def __post_init__(self) -> None:
        dropped = torch.ones(self.canvas.grid_rows * self.canvas.grid_cols, dtype=torch.bool)
        dropped[self.canvas.index] = False
        self.dropped = torch.nonzero(dropped).flatten()

    def begin(self, latents: Iterable[torch.Tensor], forward: Forward, pack: Pack) -> ReferenceCall | None:
        """The references in one model call; ``None`` when all of them stay whole.

        Args:
            latents: what the model is given, each ``(n * B, C, h, w)``, or with a time axis.
            forward: what the call computes.
            pack: the run's. It is not kept: a run and its references that held each other would hold the caches too,
                until Python collects its garbage.
        """
        stand_ins = tuple(self._stand_in(latent, (forward.conds, turn), pack) for turn, latent in enumerate(latents))
        if not any(stand_ins):
            return None
        cached = self.context.needs_attention
        if forward.dense and not cached:
            return None
        whole = cached and (forward.dense or forward.conds not in self.layers)
        self.packed = self.packed or not whole
        return ReferenceCall(self, forward.conds, stand_ins, whole)

    def keep_only(self, conds: Collection[Hashable]) -> None:
        """Let go of what was kept for other conditionings."""
        for key in [key for key in list(self.layers) if key not in conds]:
            self.layers.pop(key, None)

    def done(self, call: ReferenceCall) -> None:
        """The model call has returned."""
        if call.whole and call.layers:  # empty where a step cache answered in the model's place
            self.layers[call.conds] = call.layers

    def left_out(self, latents: Iterable[torch.Tensor]) -> int:
        """How many tokens of references are left out, and kept as keys and values.

        Args:
            latents: references, each ``(n * B, C, h, w)`` or ``(1, C, h, w)``, or with a time axis.
        """
        return len(self.dropped) * sum(self._shows(latent) for latent in latents)

    def _shows(self, latent: torch.Tensor) -> bool:
        latent = _flat(latent)
        if len(latent) == 1:  # as a prompt holds it, for every picture of a batch
            latent = latent.expand(len(self.source), *latent.shape[1:])
        return is_same_picture(latent, self.source, self.dropped, self.patch)

    def _stand_in(self, latent: torch.Tensor, key: Hashable, pack: Pack) -> Reference | None:
        key = (key, latent.shape)
        if key not in self.found:
            flat = _flat(latent)
            same = is_same_picture(flat, self.source, self.dropped, self.patch)
            self.found[key] = Reference(self.canvas, pack(flat)) if same else None
        return self.found[key]


@dataclass
class ReferenceCall:
    """The references in one model call.

    Attributes:
        run: of which run.
        conds: identifies the conditionings of the call.
        stand_ins: see ``families.base.Sequence.references``.
        whole: the call computes the references whole and keeps keys and values of what is left out afterwards.
        layers: what it has kept.
    """

    run: References
    conds: Hashable
    stand_ins: tuple[Reference | None, ...]
    whole: bool
    layers: Layers = field(default_factory=dict)

    @property
    def references(self) -> tuple[Reference | None, ...]:
        """What the model is given in place of its references."""
        return (None,) * len(self.stand_ins) if self.whole else self.stand_ins

    def weigh(self, mask: torch.Tensor | None, q: torch.Tensor, keys: int, starts: list[int]) -> torch.Tensor | None:
        """The mask of an attention call, with the weights of the references' low tokens; see ``Context.mask``."""
        for reference, start in zip(self.references, starts, strict=False):
            if reference is not None:
                mask = self.run.context.mask(mask, q, keys, start, reference.canvas)
        return mask

    def keep(self, call: AttentionCall, starts: list[int]) -> None:
        """Keep keys and values of what is left out, in a call where the references are whole.

        Args:
            call: as the model made it.
            starts: where each reference begins among its keys.
        """
        if not self.whole or not starts:
            return
        shown = [start for reference, start in zip(self.stand_ins, starts, strict=False) if reference is not None]
        index = torch.cat([self.run.dropped + start for start in shown]).to(call.k.device)
        k, v = (rows.index_select(call.dim, index) for rows in (call.k, call.v))
        pair = self.run.layers.get(self.conds, {}).get(call.layer)
        if pair is not None and pair[0].shape == k.shape:  # its memory is written over
            pair[0].write(None, k)
            pair[1].write(None, v)
        else:
            hold, head_dim = self.run.memory.hold, call.head_dim
            pair = hold(k, call.dim, head_dim), hold(v, call.dim, head_dim)
        self.layers[call.layer] = pair

    def recall(
        self, call: AttentionCall, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
    ) -> KeysValuesMask:
        """Keys, values and mask of an attention call, as the context leaves them, with what was kept at their end."""
        layers = {} if self.whole else self.run.layers.get(self.conds, {})
        if call.layer not in layers:
            return k, v, mask
        for held in layers.get(call.layer + 1, ()):
            held.coming()
        kept_k, kept_v = (held.read() for held in layers[call.layer])
        return append(call.q, k, v, mask, kept_k, kept_v, call.dim)


def _flat(latent: torch.Tensor) -> torch.Tensor:
    return latent[:, :, 0] if latent.ndim == 5 and latent.shape[2] == 1 else latent


def is_same_picture(latent: torch.Tensor, source: torch.Tensor, dropped: torch.Tensor, patch: int) -> bool:
    """Whether a clean latent shows the source on every token that is left out; in the edit region it may differ.

    Args:
        latent: ``(n * B, C, h, w)``.
        source: ``(B, C, h, w)``.
        dropped: ``(D,)`` long, those tokens.
        patch: latent cells a token side.
    """
    if latent.ndim != 4 or latent.shape[1:] != source.shape[1:] or latent.shape[0] % source.shape[0]:
        return False
    index = dropped.to(source.device)
    known = to_tokens(source.float(), patch)[:, index].flatten(1)
    shown = to_tokens(latent.to(known), patch)[:, index].flatten(1)
    known = known.repeat(latent.shape[0] // source.shape[0], 1)
    difference = (shown - known).square().mean(1).sqrt()
    return bool((difference <= SAME * known.std(1)).all())
