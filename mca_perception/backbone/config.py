"""Sizes of the BEiT-3 vision branch, one named configuration per published model, plus our nano and small."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BackboneConfig:
    """Shape of a BEiT-3 encoder.

    Attributes:
        patch_size: side of a square patch in pixels.
        embed_dim: width ``D`` of a token.
        depth: number of transformer blocks.
        num_heads: attention heads; divides ``embed_dim``.
        ffn_dim: hidden width of the feed-forward experts.
        img_size: side in pixels of the square image whose grid the position table stores.
        drop_path_rate: stochastic depth of the last block; rises linearly from 0 over the depth.
        normalize_output: apply the encoder's final LayerNorm.
    """

    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    ffn_dim: int
    img_size: int = 224
    drop_path_rate: float = 0.0
    normalize_output: bool = True

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}")
        if self.img_size % self.patch_size:
            raise ValueError(f"img_size {self.img_size} is not a multiple of patch_size {self.patch_size}")
        if not 0.0 <= self.drop_path_rate < 1.0:
            raise ValueError(f"drop_path_rate {self.drop_path_rate} is outside [0, 1)")

    @property
    def grid_size(self) -> int:
        """Patches along one side of the position table."""
        return self.img_size // self.patch_size


# base and large: the released BEiT-3; giant: as in its paper (weights were never released, FFN is not 4x).
# nano and small are ours, for CPUs and small edge devices.
CONFIGS: dict[str, BackboneConfig] = {
    "beit3_nano_patch16": BackboneConfig(patch_size=16, embed_dim=192, depth=8, num_heads=3, ffn_dim=768),
    "beit3_small_patch16": BackboneConfig(patch_size=16, embed_dim=384, depth=12, num_heads=6, ffn_dim=1536),
    "beit3_base_patch16": BackboneConfig(patch_size=16, embed_dim=768, depth=12, num_heads=12, ffn_dim=3072),
    "beit3_large_patch16": BackboneConfig(
        patch_size=16, embed_dim=1024, depth=24, num_heads=16, ffn_dim=4096
    ),
    "beit3_giant_patch14": BackboneConfig(
        patch_size=14, embed_dim=1408, depth=40, num_heads=16, ffn_dim=6144
    ),
}
