"""How to build one tiny model of each kind: its config class of `comfy.supported_models`, its sizes, what it is fed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

V0_8, V0_33 = (0, 8, 0), (0, 33, 0)


def as_many(tokens: int) -> int:
    """Attention sees as many text tokens as the text encoder gives."""
    return tokens


@dataclass(frozen=True)
class Spec:
    """How to build one model small.

    Attributes:
        title: as people call it; the README lists it.
        config: its class in `comfy.supported_models`.
        unet: its transformer's sizes.
        text_width, pooled_width: of its text encoder's output; older hosts ask every Flux for a pooled vector.
        latent_ndim: 5 where latents have a time axis.
        references: also give it a reference latent.
        cell: pixels a latent cell side. The transformer does not know its autoencoder, so all models are fed such that
            a token covers 16 pixels.
        joint_text: text tokens in attention together with the picture, by how many are given; None where the picture
            reads them through cross-attention.
        mask: the text encoder gives a mask, too.
        clip_vision: a picture encoder's output is read through cross-attention, too.
        llama_layers: HiDream's second text encoder, by layer.
        extra: what other nodes put into the conditioning.
        attends: its attention calls can be overridden.
        since: the oldest of the tested versions of ComfyUI that has it.
    """

    title: str
    config: str
    unet: dict[str, Any]
    text_width: int
    pooled_width: int | None = None
    latent_ndim: int = 4
    references: bool = False
    cell: int = 8
    joint_text: Callable[[int], int] | None = as_many
    mask: bool = False
    clip_vision: bool = False
    llama_layers: int = 0
    extra: dict[str, Any] = field(default_factory=dict)
    attends: bool = True
    since: tuple[int, ...] = (0, 3, 64)

    @property
    def patch(self) -> int:
        """Latent cells a token side."""
        return 16 // self.cell


_FLUX = dict(
    image_model="flux", in_channels=16, out_channels=16, vec_in_dim=32, context_in_dim=48, hidden_size=256,
    mlp_ratio=4.0, num_heads=2, depth=1, depth_single_blocks=2, axes_dim=[16, 56, 56], theta=10000, patch_size=2,
    qkv_bias=True, guidance_embed=True, txt_ids_dims=[],
)  # fmt: skip
_FLUX2 = dict(
    image_model="flux2", in_channels=128, out_channels=128, vec_in_dim=None, context_in_dim=48, hidden_size=256,
    mlp_ratio=3.0, num_heads=2, depth=1, depth_single_blocks=2, axes_dim=[32, 32, 32, 32], theta=2000, patch_size=1,
    qkv_bias=False, guidance_embed=True, txt_ids_dims=[3], global_modulation=True, mlp_silu_act=True, ops_bias=False,
    default_ref_method="index", ref_index_scale=10.0,
)  # fmt: skip
_CHROMA = dict(
    image_model="chroma", in_channels=64, out_channels=64, context_in_dim=48, hidden_size=256, mlp_ratio=4.0,
    num_heads=2, depth=1, depth_single_blocks=2, axes_dim=[16, 56, 56], theta=10000, patch_size=2, qkv_bias=True,
    in_dim=64, out_dim=256, hidden_dim=64, n_layers=1, txt_ids_dims=[], vec_in_dim=None,
)  # fmt: skip
_RADIANCE = _CHROMA | dict(
    image_model="chroma_radiance", in_channels=3, out_channels=3, patch_size=16, nerf_hidden_size=16, nerf_mlp_ratio=2,
    nerf_depth=1, nerf_max_freqs=4, nerf_tile_size=0, nerf_final_head_type="linear", nerf_embedder_dtype=None,
    use_x0=False, use_sequential_txt_ids=True,
)  # fmt: skip
_SD3 = dict(
    in_channels=16, out_channels=16, patch_size=2, depth=2, input_size=None, adm_in_channels=32, num_patches=48 * 48,
    context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 48, "out_features": 128}},
    pos_embed_max_size=48, pos_embed_scaling_factor=None, qk_norm="rms", x_block_self_attn_layers=[],
)  # fmt: skip
_LUMINA = dict(
    image_model="lumina2", patch_size=2, in_channels=16, dim=192, cap_feat_dim=48, n_layers=2, n_refiner_layers=1,
    qk_norm=True, n_heads=2, n_kv_heads=1, axes_dims=[32, 32, 32], axes_lens=[300, 512, 512], rope_theta=10000.0,
    ffn_dim_multiplier=4.0,
)  # fmt: skip
_Z_IMAGE = _LUMINA | dict(
    dim=256, n_kv_heads=2, axes_dims=[32, 48, 48], axes_lens=[1536, 512, 512], rope_theta=256.0,
    ffn_dim_multiplier=8.0 / 3.0, z_image_modulation=True, time_scale=1000.0, pad_tokens_multiple=32,
)  # fmt: skip
_QWEN = dict(
    image_model="qwen_image", in_channels=64, out_channels=16, num_layers=2, attention_head_dim=128,
    num_attention_heads=2, joint_attention_dim=48,
)  # fmt: skip
_AURA = dict(
    in_channels=4, out_channels=4, patch_size=2, dim=128, n_layers=2, n_double_layers=1, n_heads=2, global_conddim=128,
    cond_seq_dim=48, max_seq=64,
)  # fmt: skip
_HIDREAM = dict(
    image_model="hidream", attention_head_dim=128, axes_dims_rope=[64, 32, 32], caption_channels=[48, 48],
    max_resolution=[128, 128], in_channels=16, llama_layers=[0, 1], num_attention_heads=1, num_routed_experts=2,
    num_activated_experts=1, num_layers=1, num_single_layers=1, out_channels=16, patch_size=2, text_emb_dim=32,
)  # fmt: skip
_WAN = dict(
    image_model="wan2.1", model_type="t2v", dim=256, out_dim=16, num_heads=2, ffn_dim=256, num_layers=2,
    patch_size=(1, 2, 2), freq_dim=256, in_dim=16, text_dim=48,
)  # fmt: skip
_HUNYUAN = dict(
    image_model="hunyuan_video", in_channels=16, patch_size=[1, 2, 2], out_channels=16, vec_in_dim=32,
    context_in_dim=48, hidden_size=256, mlp_ratio=4.0, num_heads=2, depth=1, depth_single_blocks=2,
    axes_dim=[16, 56, 56], theta=256, qkv_bias=True, guidance_embed=True, byt5=False, meanflow=False,
    use_cond_type_embedding=False, vision_in_dim=None, meanflow_sum=False,
)  # fmt: skip
_OMNIGEN2 = dict(
    image_model="omnigen2", patch_size=2, in_channels=16, hidden_size=240, num_layers=2, num_refiner_layers=1,
    num_attention_heads=2, num_kv_heads=1, multiple_of=32, axes_dim_rope=[40, 40, 40], axes_lens=[1024, 1664, 1664],
    text_feat_dim=48, timestep_scale=1000.0,
)  # fmt: skip
_BOOGU = dict(
    image_model="boogu", hidden_size=240, num_layers=1, num_double_stream_layers=1, num_refiner_layers=1,
    num_attention_heads=2, num_kv_heads=1, multiple_of=32, instruction_feat_dim=48,
)  # fmt: skip
_KREA2 = dict(
    image_model="krea2", features=256, tdim=64, txtdim=24, heads=2, kvheads=1, multiplier=2, layers=2, patch=2,
    channels=16, txtlayers=2, txtheads=2, txtkvheads=2,
)  # fmt: skip
_ERNIE = dict(
    image_model="ernie", hidden_size=256, num_attention_heads=2, num_layers=2, ffn_hidden_size=256, text_in_dim=48,
)  # fmt: skip
_LENS = dict(
    image_model="lens", in_channels=128, out_channels=32, num_layers=2, num_attention_heads=2, enc_hidden_dim=24,
    selected_layer_index=(0, 1),
)  # fmt: skip
_MAGE = dict(image_model="mage_flow", num_layers=2, num_attention_heads=2, joint_attention_dim=48)
_IDEOGRAM = dict(
    image_model="ideogram4", num_layers=2, num_attention_heads=2, attention_head_dim=128, intermediate_size=256,
    adaln_dim=64, llm_features_dim=48,
)  # fmt: skip
_KANDINSKY = dict(
    image_model="kandinsky5", in_text_dim=48, in_text_dim2=32, time_dim=64, model_dim=256, ff_dim=256,
    visual_embed_dim=64, num_text_blocks=1, num_visual_blocks=2, axes_dims=(32, 48, 48),
    rope_scale_factor=(1.0, 1.0, 1.0),
)  # fmt: skip
_COSMOS = dict(
    image_model="cosmos_predict2", max_img_h=240, max_img_w=240, max_frames=128, in_channels=16, out_channels=16,
    patch_spatial=2, patch_temporal=1, model_channels=192, concat_padding_mask=True, crossattn_emb_channels=48,
    pos_emb_cls="rope3d", pos_emb_learnable=True, pos_emb_interpolation="crop", min_fps=1, max_fps=30,
    use_adaln_lora=True, adaln_lora_dim=32, num_blocks=2, num_heads=2, extra_per_block_abs_pos_emb=False,
    rope_h_extrapolation_ratio=4.0, rope_w_extrapolation_ratio=4.0, rope_t_extrapolation_ratio=1.0,
    extra_h_extrapolation_ratio=1.0, extra_w_extrapolation_ratio=1.0, extra_t_extrapolation_ratio=1.0,
    rope_enable_fps_modulation=False,
)  # fmt: skip
# PixArt divides by its latent's side over 64, rounded: one of 32 cells is too small for the host itself.
_PIXART = dict(
    image_model="pixart_sigma", num_heads=2, patch_size=16, hidden_size=192, in_channels=4, depth=2,
    caption_channels=48, micro_condition=False, input_size=None, pe_interpolation=1,
)  # fmt: skip
_JOY = dict(
    image_model="joyimage", in_channels=16, hidden_size=256, num_attention_heads=2, text_dim=48, num_layers=2,
    patch_size=[1, 2, 2],
)  # fmt: skip

SPECS: dict[str, Spec] = {
    "flux_dev": Spec("Flux.1 dev", "Flux", _FLUX, 48, 32),
    "flux_schnell": Spec("schnell", "FluxSchnell", _FLUX | {"guidance_embed": False}, 48, 32),
    "flux_fill": Spec("Fill", "FluxInpaint", _FLUX | {"in_channels": 96}, 48, 32),
    "flux_kontext": Spec("Kontext", "Flux", _FLUX, 48, 32, references=True),
    "flux2": Spec("Flux.2", "Flux2", _FLUX2, 48, 32, cell=16, joint_text=lambda tokens: 512, since=V0_8),
    "flux2_edit": Spec(
        "Flux.2 with a reference",
        "Flux2",
        _FLUX2,
        48,
        32,
        references=True,
        cell=16,
        joint_text=lambda tokens: 512,
        since=V0_8,
    ),
    "chroma": Spec("Chroma", "Chroma", _CHROMA, 48, 32),
    "chroma_radiance": Spec("Chroma Radiance", "ChromaRadiance", _RADIANCE, 48, 32, cell=1),
    "sd3": Spec("SD3", "SD3", _SD3, 48, 32),
    "sd35_medium": Spec("SD3.5 medium", "SD3", _SD3 | {"x_block_self_attn_layers": [0]}, 48, 32),
    "qwen_image": Spec("Qwen-Image", "QwenImage", _QWEN, 48, latent_ndim=5),
    "qwen_image_edit": Spec("Qwen-Image-Edit", "QwenImage", _QWEN, 48, latent_ndim=5, references=True),
    "lumina2": Spec("Lumina 2", "Lumina2", _LUMINA, 48, mask=True),
    "z_image": Spec(
        "Z-Image", "ZImage", _Z_IMAGE, 48, joint_text=lambda tokens: -(-tokens // 32) * 32, mask=True, since=V0_8
    ),
    "z_image_omni": Spec(
        "Z-Image-Omni",
        "ZImage",
        _Z_IMAGE | dict(siglip_feat_dim=48),
        48,
        references=True,
        # Everything is padded to 32: both captions, both pictures' features, and the reference.
        joint_text=lambda tokens: 32 + -(-tokens // 32) * 32 + 2 * 32 + 64 - 36,
        mask=True,
        since=V0_33,
    ),
    "aura_flow": Spec("AuraFlow", "AuraFlow", _AURA, 48, joint_text=lambda tokens: 8 + tokens),
    "hidream_i1": Spec("HiDream-I1", "HiDream", _HIDREAM, 48, 32, joint_text=lambda tokens: 3 * tokens, llama_layers=2),
    "wan21": Spec("Wan 2.1", "WAN21_T2V", _WAN, 48, latent_ndim=5, joint_text=None),
    "wan21_i2v": Spec(
        "2.1 image-to-video",
        "WAN21_I2V",
        _WAN | dict(model_type="i2v", in_dim=36),
        48,
        latent_ndim=5,
        joint_text=None,
        clip_vision=True,
    ),
    "wan22_5b": Spec("2.2 5B", "WAN22_T2V", _WAN | dict(in_dim=48, out_dim=48), 48, latent_ndim=5, joint_text=None),
    "hunyuan_video": Spec("HunyuanVideo", "HunyuanVideo", _HUNYUAN, 48, 32, latent_ndim=5),
    "hunyuan_image": Spec(
        "HunyuanImage 2.1",
        "HunyuanImage21",
        _HUNYUAN | dict(in_channels=64, out_channels=64, patch_size=[1, 1], axes_dim=[64, 64], vec_in_dim=None),
        48,
        cell=16,
    ),
    "omnigen2": Spec("OmniGen2", "Omnigen2", _OMNIGEN2, 48, mask=True),
    "omnigen2_edit": Spec("with a reference", "Omnigen2", _OMNIGEN2, 48, references=True, mask=True),
    "krea2": Spec("Krea 2", "Krea2", _KREA2, 48, latent_ndim=5, since=V0_33),
    "krea2_edit": Spec(
        "with a reference",
        "Krea2",
        _KREA2,
        48,
        latent_ndim=5,
        references=True,
        extra={"reference_latents_method": "index"},
        since=V0_33,
    ),
    "ernie_image": Spec("Ernie-Image", "ErnieImage", _ERNIE, 48, cell=16, attends=False, since=V0_33),
    "lens": Spec("Lens", "Lens", _LENS, 48, cell=16, mask=True, since=V0_33),
    "mage_flow": Spec("Mage-Flow", "MageFlow", _MAGE, 48, cell=16, since=V0_33),
    "mage_flow_edit": Spec("with a reference", "MageFlow", _MAGE, 48, references=True, cell=16, since=V0_33),
    "ideogram4": Spec("Ideogram 4", "Ideogram4", _IDEOGRAM, 48, cell=16, since=V0_33),
    "boogu": Spec("Boogu", "Boogu", _BOOGU, 48, mask=True, since=V0_33),
    "boogu_edit": Spec("with a reference", "Boogu", _BOOGU, 48, references=True, mask=True, since=V0_33),
    "kandinsky5_image": Spec("Kandinsky 5 image", "Kandinsky5Image", _KANDINSKY, 48, 32, joint_text=None, since=V0_8),
    "cosmos_predict2": Spec("Cosmos-Predict2", "CosmosT2IPredict2", _COSMOS, 48, latent_ndim=5, joint_text=None),
    "anima": Spec(
        "Anima", "Anima", _COSMOS | dict(image_model="anima"), 48, latent_ndim=5, joint_text=None, since=V0_33
    ),
    "pixart_sigma": Spec("sigma", "PixArtSigma", _PIXART, 48, cell=1, joint_text=None, attends=False),
    "pixart_alpha": Spec(
        "alpha",
        "PixArtAlpha",
        _PIXART | dict(image_model="pixart_alpha", micro_condition=True, pe_interpolation=None),
        48,
        cell=1,
        joint_text=None,
        attends=False,
    ),
    "joy_image": Spec("JoyImage", "JoyImage", _JOY, 48, latent_ndim=5, since=V0_33),
    "joy_image_edit": Spec("with a reference", "JoyImage", _JOY, 48, latent_ndim=5, references=True, since=V0_33),
}
