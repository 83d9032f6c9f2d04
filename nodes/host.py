"""The one place that touches ComfyUI's model: a clone with two wrappers, and nothing left behind.

``SAMPLER_SAMPLE`` makes the state of a run, ``APPLY_MODEL`` runs the model on the canvas. No forward is replaced, no
slot of another pack is taken, an attention override that is already set is chained."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP

from ..hilo_core import Context, Grid, Run, TokenPlan, UnsupportedModel, Window
from ..hilo_core.contexts.reuse import Reuse
from ..hilo_core.families import Family
from ..hilo_core.families.base import Sequence
from ..hilo_core.lowres import low_picture
from ..hilo_core.methods import HiLo, Method
from .attention import override
from .blocks import Blocks, why_whole
from .conditions import flat, pack_attention_mask, pack_control, shaped, why_dense, without_step_caches
from .encode import encoded_once
from .events import announce
from .foretell import expected
from .model_patches import pack_patches
from .reuse import freed_with, name, share
from .tuned import low_embedded

KEY = "hilo_token"

log = logging.getLogger("hilo_token")


@dataclass(frozen=True)
class HiLoPatch:
    """What HiLo Patch Model adds to a model.

    Attributes:
        plan: which tokens to compute.
        family: how the model takes positions.
        context: how left out tokens stay visible.
        start_percent, end_percent: part of the schedule that is compressed, 0 to 1.
        dense_when_unsupported: run dense, and say so, where a run cannot be compressed; else raise.
        low: ``(B, C, h, w)`` the encoded low-frequency picture, in the autoencoder's scale.
        references: pack the references of edit models that show the source picture.
        method: which of the tokens each step and layer computes.
        reuse: what runs of this model share, where that is wanted.
        node: id of the node on the page that shows what a run did, if any.
    """

    plan: TokenPlan
    family: Family
    context: Context
    start_percent: float = 0.0
    end_percent: float = 1.0
    dense_when_unsupported: bool = False
    low: torch.Tensor | None = None
    references: bool = True
    method: Method = field(default_factory=HiLo)
    reuse: Reuse | None = None
    node: str | None = None

    @property
    def packs_references(self) -> bool:
        """References that show the picture are packed as it is."""
        return self.references and self.family.refers and not self.method.whole

    def apply(self, model: Any) -> Any:
        """A clone of a ``ModelPatcher`` that runs compressed; the model given stays as it is."""
        patched = taken_off(model)  # a second HiLo Patch Model replaces the first
        patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, self.sample)
        patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, self.apply_model)
        if self.reuse is not None:
            patched.add_callback_with_key(CallbacksMP.ON_DETACH, KEY, freed_with(self.reuse))
        return patched

    def sample(
        self,
        executor: Any,
        guider: Any,
        sigmas: Any,
        extra_args: dict,
        callback: Any,
        noise: Any,
        latent_image: Any,
        *rest: Any,
    ) -> Any:
        """``SAMPLER_SAMPLE``: one ``Run`` for one sampling, reachable through the options of this sampling alone."""
        run = self._begin(guider.inner_model, sigmas, noise, latent_image)
        if run is not None:
            foretold = run.state.expect(expected(guider, run, self.family if self.packs_references else None))
            if foretold:
                log.info("HiLo Token: %s", foretold)
            run.masked = bool(rest) and rest[0] is not None
            share(self.reuse, run, guider)
            options = dict(extra_args["model_options"])
            options["transformer_options"] = {**options.get("transformer_options", {}), KEY: run}
            extra_args = {**extra_args, "model_options": options}
        try:
            return executor(guider, sigmas, extra_args, callback, noise, latent_image, *rest)
        finally:
            if run is not None:
                log.info("HiLo Token: %s", run.summary())
                announce(self.node, run.facts())

    def apply_model(
        self,
        executor: Any,
        x: torch.Tensor,
        t: torch.Tensor,
        c_concat: torch.Tensor | None = None,
        c_crossattn: Any = None,
        control: dict | None = None,
        transformer_options: dict | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """``APPLY_MODEL``: the model sees the canvas; what comes back is the whole latent, denoised."""
        options = transformer_options or {}
        given = (x, t, c_concat, c_crossattn, control, options), kwargs
        run: Run | None = options.get(KEY)
        if run is None:
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        if not run.fits(x):
            _say(run, "a conditioning covers only an area of the picture; that part runs dense")
            run.dense_calls += 1
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

        reason = run.given_up or why_dense(run, x, c_concat, control, options, kwargs)
        if reason is None and self.method.cuts_layers:
            reason = why_whole(_plain(executor.class_obj.diffusion_model), kwargs)
        if not reason and run.window.active(float(t.max())):
            try:
                return self._planned(executor, run, *given)
            except UnsupportedModel as error:
                if not self.dense_when_unsupported:
                    raise UnsupportedModel(f"HiLo Patch Model: {error}; or set on_unsupported to dense") from error
                reason = run.given_up = str(error)
        if reason:
            _say(run, f"{reason}; the model runs dense")
        if run.given_up or float(t.max()) < run.window.end:
            run.release()
        return self._whole(executor, run, *given)

    def _planned(self, executor: Any, run: Run, given: tuple, kwargs: dict) -> torch.Tensor:
        """A call that computes what the run plans for it.

        Raises:
            UnsupportedModel: the model turned out to be another than it seemed.
        """
        x, t, c_concat, c_crossattn, control, options = given
        base = executor.class_obj
        model = _plain(base.diffusion_model)

        def noiser(sigma: torch.Tensor, noise: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
            if not run.masked:  # for some models a mask means a clean surrounding
                return base.model_sampling.noise_scaling(sigma.view(-1, *[1] * (noise.ndim - 1)), noise, clean)
            mask = torch.zeros_like(clean[:, :1])
            return base.scale_latent_inpaint(x=clean, sigma=sigma, noise=noise, latent_image=clean, denoise_mask=mask)

        forward = run.forward(float(t.max()), name(run, options, control, c_concat, c_crossattn, kwargs))
        latents, kwargs = self.family.take_references(kwargs)
        sequence = Sequence(forward.canvas, run.spans, references=(None,) * len(latents), latents=tuple(latents))
        references = None
        if self.packs_references:
            references = run.references.begin(latents, forward, run.pack_clean)
        if references is not None:
            sequence.references = references.references
        cuts = self.method.cuts_layers and not forward.dense
        blocks = Blocks(self.family, model, run, forward, sequence) if cuts else None
        if blocks is not None:
            options = blocks.replaced(options)
        if forward.attends:
            attention = override(self.family, model, run, forward, sequence, references, options, blocks)
            options = {**options, "optimized_attention_override": attention}
        options = pack_patches(run, forward, options)
        x = shaped(run.with_fixed_noise(flat(x), t, noiser), x)
        embedding = low_embedded(self.family, model, forward, self.method)
        with self.family.positions(model, sequence), embedding:
            if forward.dense:
                options = without_step_caches(options)
                with run.timed(True, x.device):
                    denoised = executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
            else:
                canvas = shaped(run.pack(flat(x), t, noiser, forward.canvas), x)
                if c_concat is not None:
                    c_concat = shaped(run.pack_condition(flat(c_concat), forward.canvas), c_concat)
                control = pack_control(run, forward, control)
                kwargs = pack_attention_mask(run, forward, kwargs)
                with run.timed(False, x.device):
                    denoised = executor(canvas, t, c_concat, c_crossattn, control, options, **kwargs)
        if sequence.asked and not sequence.placed:
            raise UnsupportedModel(
                f"this {self.family.name} model asked for positions in a form that is not known, so "
                "the result would be wrong; report the model"
            )
        run.done(forward)
        if references is not None:
            run.references.done(references)
        result = flat(denoised)
        return shaped(run.pin(result) if forward.dense else run.unpack(result, forward.canvas), x)

    @staticmethod
    def _whole(executor: Any, run: Run, given: tuple, kwargs: dict) -> torch.Tensor:
        """A call as the host made it, with the source put back outside the edit region."""
        x = given[0]
        run.dense_calls += 1
        with run.timed(True, x.device):
            denoised = executor(*given, **kwargs)
        return shaped(run.pin(flat(denoised)), x)

    def _begin(self, base: Any, sigmas: torch.Tensor, noise: torch.Tensor, latent_image: torch.Tensor) -> Run | None:
        """The run's state; ``None`` where everything is computed anyway, so the model stays untouched."""
        if getattr(noise, "is_nested", False) or noise.ndim not in (4, 5) or (noise.ndim == 5 and noise.shape[2] != 1):
            nested = getattr(noise, "is_nested", False)
            shape = "several latents at once" if nested else f"a latent of shape {tuple(noise.shape)}"
            return self._refuse(f"the sampler was given {shape}; HiLo Token edits single pictures, not video")
        like = noise
        noise, source = flat(noise), flat(latent_image)
        patch = self.family.patch_size(_plain(base.diffusion_model))
        grid = _named(Grid.of_latent, self.plan.size, tuple(source.shape[-2:]), patch)
        plan = _named(self.method.on_grid, self.plan, grid, self.context.uses_low)
        if self.method.idle(plan):
            return self._dense("the edit region and its details cover the picture", logging.INFO)
        if not torch.count_nonzero(noise):
            return self._dense(
                "this sampler goes on from a noisy latent without adding noise, so the source picture is not known"
            )
        if not torch.count_nonzero(source):
            raise ValueError(
                "HiLo Patch Model: the sampler's latent is empty, so nothing is known outside the mask; connect the "
                "latent of VAE Encode or InpaintModelConditioning to the sampler instead of an empty latent"
            )
        percent = base.model_sampling.percent_to_sigma
        window = Window(float(percent(self.start_percent)), float(percent(self.end_percent)))
        low = None
        if self.low is not None and plan.low is not None:
            low = flat(base.process_latent_in(shaped(self.low, like)))
            low = low.repeat(-(-source.shape[0] // low.shape[0]), 1, 1, 1)[: source.shape[0]].to(source)
        return Run(plan, self.context, window, source, noise, low, sigmas.detach().cpu(), self.method)

    def _refuse(self, reason: str) -> None:
        if not self.dense_when_unsupported:
            raise UnsupportedModel(f"HiLo Patch Model: {reason}; bypass the node, or set on_unsupported to dense")
        self._dense(reason)

    def _dense(self, reason: str, level: int = logging.WARNING) -> None:
        """Say why this run has no ``Run``."""
        log.log(level, "HiLo Token: %s; the model runs dense", reason)
        announce(self.node, {"dense": reason})


def taken_off(model: Any) -> Any:
    """A clone of a ``ModelPatcher`` without what an earlier HiLo Patch Model has added to it."""
    plain = model.clone()
    for kind in (WrappersMP.SAMPLER_SAMPLE, WrappersMP.APPLY_MODEL):
        plain.remove_wrappers_with_key(kind, KEY)
    plain.remove_callbacks_with_key(CallbacksMP.ON_DETACH, KEY)
    return plain


def encode_low_picture(plan: TokenPlan, family: Family, model: Any, vae: Any) -> torch.Tensor:
    """The low-frequency picture through the autoencoder, ``(B, C, h, w)``.

    Encoded when the graph is built and not while sampling, where loading an autoencoder could push the model out of
    memory."""
    factor = int(vae.spacial_compression_encode())
    grid = Grid.of_picture(plan.size, factor, family.patch_size(model))

    def encode() -> torch.Tensor:
        pictures = low_picture(plan.image, plan.edit_region, grid, plan.settings.low_factor)
        return torch.cat([flat(vae.encode(one)) for one in pictures.split(1)])  # a batch may be taken for a video

    return encoded_once(plan, vae, grid, encode)


def _plain(diffusion_model: Any) -> Any:
    """The module itself where torch.compile has wrapped it."""
    return getattr(diffusion_model, "_orig_mod", diffusion_model)


def _named(function: Any, *args: Any) -> Any:
    """Call, and name the node in the sentence of a bad input."""
    try:
        return function(*args)
    except ValueError as error:
        raise ValueError(f"HiLo Patch Model: {error}") from error


def _say(run: Run, sentence: str) -> None:
    if sentence not in run.said:
        run.said.add(sentence)
        log.warning("HiLo Token: %s", sentence)


__all__ = ["HiLoPatch", "encode_low_picture", "taken_off"]
