"""Shapes of the Multiway Transformer: one named configuration per published model, plus our nano and small."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

VISION_ONLY = ("vision",)
MODALITIES = ("vision", "text")


@dataclass(frozen=True)
class BackboneConfig:
    """Shape of a Multiway Transformer (BEiT-3, or VLMo with ``attention="shared"``).

    Attributes:
        patch_size: side of a square patch in pixels.
        embed_dim: width ``D`` of a token.
        depth: number of transformer blocks.
        num_heads: attention heads; divides ``embed_dim``.
        ffn_dim: hidden width of the feed-forward experts.
        img_size: side in pixels of the square image whose grid the position table stores.
        drop_path_rate: stochastic depth of the last block; rises linearly from 0 over the depth.
        normalize_output: apply the encoder's final LayerNorm.
        modalities: what the model can read; experts of other modalities are not built.
        attention: ``decoupled`` has projections and LayerNorms per modality (every public BEiT-3 checkpoint),
            ``shared`` one set for all (the thesis' text, VLMo). Tokens of both modalities meet in one softmax anyway.
        vl_experts: number of top blocks with a third feed-forward expert for fused input.
        vocab_size: rows of the word embedding.
        max_text_positions: rows of the text position table, two of which are unused.
        sub_layernorm: BEiT-3's LayerNorms before the attention's output projection and before ``fc2``.
        layer_scale: start value of a learned factor per channel on both residual branches; None for no factor.
        layer_norm_eps: epsilon of every LayerNorm.
        window_size: largest side, in patches, of the windows inside which the blocks outside ``global_blocks``
            attend (ViTDet); 0 attends globally in every block.
        global_blocks: blocks that attend globally when ``window_size`` is set; when empty, the last of every quarter.
        gradient_checkpointing: recompute each block in the backward pass instead of keeping its activations.
    """

    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    ffn_dim: int
    img_size: int = 224
    drop_path_rate: float = 0.0
    normalize_output: bool = True
    modalities: tuple[str, ...] = VISION_ONLY
    attention: Literal["decoupled", "shared"] = "decoupled"
    vl_experts: int = 0
    vocab_size: int = 64010
    max_text_positions: int = 1024
    sub_layernorm: bool = True
    layer_scale: float | None = None
    layer_norm_eps: float = 1e-5
    window_size: int = 0
    global_blocks: tuple[int, ...] = ()
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}")
        if self.img_size % self.patch_size:
            raise ValueError(f"img_size {self.img_size} is not a multiple of patch_size {self.patch_size}")
        if not 0.0 <= self.drop_path_rate < 1.0:
            raise ValueError(f"drop_path_rate {self.drop_path_rate} is outside [0, 1)")
        if (
            tuple(name for name in MODALITIES if name in self.modalities) != self.modalities
            or not self.modalities
        ):
            raise ValueError(
                f"modalities {self.modalities} must be ('vision',), ('text',) or ('vision', 'text')"
            )
        if self.attention not in ("decoupled", "shared"):
            raise ValueError(f"attention {self.attention!r} must be 'decoupled' or 'shared'")
        if not 0 <= self.vl_experts <= self.depth or (self.vl_experts and self.modalities != MODALITIES):
            raise ValueError(
                f"vl_experts {self.vl_experts} must be 0 to depth {self.depth}, and 0 unless both modalities are built"
            )
        if self.window_size < 0 or (self.window_size and "vision" not in self.modalities):
            raise ValueError(f"window_size {self.window_size} must be 0, or positive in a model with vision")
        if any(not 0 <= block < self.depth for block in self.global_blocks):
            raise ValueError(f"global_blocks {self.global_blocks} must lie in 0 to {self.depth - 1}")

    @property
    def grid_size(self) -> int:
        """Patches along one side of the position table."""
        return self.img_size // self.patch_size

    def attends_globally(self, block: int) -> bool:
        """Whether block number ``block`` attends over the whole sequence."""
        if not self.window_size:
            return True
        quarters = {self.depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)}
        return block in (self.global_blocks or quarters)


# base and large: the released BEiT-3; giant: as in its paper, where attention is shared (its weights were never
# released).
# nano and small are ours, for CPUs and small edge devices.
_BEIT3 = {
    "beit3_nano_patch16": BackboneConfig(patch_size=16, embed_dim=192, depth=8, num_heads=3, ffn_dim=768),
    "beit3_small_patch16": BackboneConfig(patch_size=16, embed_dim=384, depth=12, num_heads=6, ffn_dim=1536),
    "beit3_base_patch16": BackboneConfig(patch_size=16, embed_dim=768, depth=12, num_heads=12, ffn_dim=3072),
    "beit3_large_patch16": BackboneConfig(
        patch_size=16, embed_dim=1024, depth=24, num_heads=16, ffn_dim=4096
    ),
    "beit3_giant_patch14": BackboneConfig(
        patch_size=14,
        embed_dim=1408,
        depth=40,
        num_heads=16,
        ffn_dim=6144,
        modalities=MODALITIES,
        attention="shared",
        vl_experts=3,
    ),
}


def _vlmo(
    embed_dim: int, depth: int, num_heads: int, *, vl_experts: int, layer_scale: float | None
) -> BackboneConfig:
    """VLMo's block.

    Positions are absolute in every size, where VLMo base and large use a relative bias; the key projection has a bias,
    which softmax cancels.
    """
    return BackboneConfig(
        patch_size=16,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        ffn_dim=4 * embed_dim,
        modalities=MODALITIES,
        attention="shared",
        vl_experts=vl_experts,
        vocab_size=30522,
        sub_layernorm=False,
        layer_scale=layer_scale,
        layer_norm_eps=1e-6,
    )


_VLMO = {
    "vlmo_base_patch16": _vlmo(768, 12, 12, vl_experts=2, layer_scale=0.1),
    "vlmo_base_plus_patch16": _vlmo(544, 24, 16, vl_experts=3, layer_scale=None),
    "vlmo_large_patch16": _vlmo(1024, 24, 16, vl_experts=3, layer_scale=0.1),
}

CONFIGS: dict[str, BackboneConfig] = {**_BEIT3, **_VLMO}


def restrict(config: BackboneConfig, modalities: tuple[str, ...]) -> BackboneConfig:
    """The same model with the experts of ``modalities`` only."""
    vl_experts = config.vl_experts if modalities == MODALITIES else 0
    return replace(config, modalities=modalities, vl_experts=vl_experts)
