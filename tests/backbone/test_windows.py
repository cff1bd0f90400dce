"""Window attention: cutting a grid and joining it again, and what it leaves unchanged."""

from __future__ import annotations

import pytest
import torch

from mca_perception.backbone import BackboneError, create_beit3
from mca_perception.backbone.windows import Windows

NANO = "beit3_nano_patch16"


@pytest.mark.parametrize(
    ("grid", "window_size", "counts", "shape"),
    [
        ((64, 64), 14, (5, 5), (13, 13)),
        ((64, 64), 16, (4, 4), (16, 16)),
        ((14, 14), 14, (1, 1), (14, 14)),
        ((10, 20), 14, (1, 2), (10, 10)),
        ((50, 84), 14, (4, 6), (13, 14)),
        ((1, 3), 2, (1, 2), (1, 2)),
    ],
)
def test_windows_are_even(
    grid: tuple[int, int], window_size: int, counts: tuple[int, int], shape: tuple[int, int]
) -> None:
    assert Windows.fit(grid, window_size) == Windows(grid, counts, shape)


@pytest.mark.parametrize("grid", [(6, 6), (7, 5), (1, 3), (4, 9)])
def test_split_and_join_are_inverse(grid: tuple[int, int]) -> None:
    tokens = torch.randn(3, 1 + grid[0] * grid[1], 8)
    windows = Windows.fit(grid, 3)
    torch.testing.assert_close(windows.join(windows.split(tokens)), tokens)


def test_a_window_holds_its_patches_and_the_mask_marks_padding() -> None:
    tokens = torch.arange(1 + 3 * 4, dtype=torch.float32).view(1, -1, 1)  # CLS = 0, patches 1 to 12 in 3 x 4
    windows = Windows.fit((3, 4), 2)
    split = windows.split(tokens)[..., 0]
    assert split.tolist() == [[0, 1, 2, 5, 6], [0, 3, 4, 7, 8], [0, 9, 10, 0, 0], [0, 11, 12, 0, 0]]
    mask = windows.mask(tokens)
    assert mask is not None
    assert mask[:, 0, 0].tolist() == [[True] * 5] * 2 + [[True] * 3 + [False] * 2] * 2
    assert Windows.fit((4, 4), 2).mask(torch.zeros(1, 17, 1)) is None


@pytest.mark.parametrize(("grid", "window_size"), [((64, 64), 14), ((12, 8), 4), ((11, 5), 2)])
def test_windows_hold_the_patches_that_timm_puts_there(grid: tuple[int, int], window_size: int) -> None:
    """timm's window partition of SAM's image encoder, which is ViTDet's, on square windows."""
    sam = pytest.importorskip(
        "timm.models.vision_transformer_sam", reason="timm is installed by `make test` only"
    )
    windows = Windows.fit(grid, window_size)
    patches = torch.randn(2, *grid, 4)
    ours = windows.split(torch.cat([torch.zeros(2, 1, 4), patches.flatten(1, 2)], dim=1))[:, 1:]
    theirs, padded = sam.window_partition(patches, windows.shape[0])
    assert padded == tuple(n * side for n, side in zip(windows.counts, windows.shape, strict=True))
    assert torch.equal(ours, theirs.flatten(1, 2))


def models(window_size: int, **overrides: object) -> tuple[torch.nn.Module, torch.nn.Module]:
    torch.manual_seed(0)
    plain = create_beit3(NANO, depth=4, **overrides).eval()  # type: ignore[arg-type]
    windowed = create_beit3(NANO, depth=4, window_size=window_size, **overrides).eval()  # type: ignore[arg-type]
    windowed.load_state_dict(plain.state_dict())
    return plain, windowed


def test_one_window_over_everything_is_global_attention() -> None:
    plain, windowed = models(window_size=14)
    images = torch.randn(2, 3, 224, 160)
    torch.testing.assert_close(
        windowed(images)["encoder_out"], plain(images)["encoder_out"], atol=1e-5, rtol=0
    )


def test_windows_limit_what_a_patch_sees() -> None:
    """In a block with windows, a change stays in its window and in CLS."""
    torch.manual_seed(0)
    model = create_beit3(NANO, depth=2, window_size=2, global_blocks=(1,)).eval()
    seen: list[torch.Tensor] = []
    model.encoder.layers[0].register_forward_hook(lambda *call: seen.append(call[-1]))
    images = torch.zeros(1, 3, 64, 64)
    changed = images.clone()
    changed[:, :, :16, :16] = 1.0
    model(images), model(changed)
    moved = (seen[1] - seen[0]).abs().amax(dim=-1)[0]
    patches = moved[1:].view(4, 4)
    assert (patches[:2, :2] > 1e-6).all()
    assert moved[0] > 0
    patches[:2, :2] = 0
    assert patches.max() == 0


def test_padding_of_uneven_grids_is_never_read() -> None:
    """Windows of 3 cut 5 columns into 3 + 2: the narrow one equals attention among its own patches and CLS."""
    torch.manual_seed(0)
    model = create_beit3(NANO, depth=1)
    attention = model.encoder.layers[0].self_attn
    tokens = torch.randn(1, 1 + 3 * 5, 192)
    windows = Windows.fit((3, 5), 3)
    split = windows.split(tokens)
    padded = windows.join(attention(split, (("A", split.shape[1]),), windows.mask(tokens)))
    narrow = tokens[:, 1:].view(1, 3, 5, 192)[:, :, 3:].reshape(1, 6, 192)
    alone = attention(torch.cat([tokens[:, :1], narrow], dim=1), (("A", 7),))
    torch.testing.assert_close(padded[:, 1:].view(1, 3, 5, 192)[:, :, 3:].reshape(1, 6, 192), alone[:, 1:])


def test_global_blocks_default_to_the_last_of_every_quarter() -> None:
    config = create_beit3("beit3_nano_patch16", window_size=14).config
    assert [n for n in range(8) if config.attends_globally(n)] == [1, 3, 5, 7]
    config = create_beit3("beit3_nano_patch16", depth=12, window_size=14).config
    assert [n for n in range(12) if config.attends_globally(n)] == [2, 5, 8, 11]
    config = create_beit3("beit3_nano_patch16", window_size=14, global_blocks=(0,)).config
    assert [n for n in range(8) if config.attends_globally(n)] == [0]


@pytest.mark.parametrize(("height", "width"), [(512, 512), (800, 1344), (1024, 768)])
def test_high_resolution_runs(height: int, width: int) -> None:
    model = create_beit3(NANO, depth=2, window_size=14, global_blocks=(1,)).eval()
    with torch.inference_mode():
        out = model(torch.randn(1, 3, height, width))["encoder_out"]
    assert out.shape == (1, 1 + height * width // 256, 192)


def test_text_does_not_mix_with_windows() -> None:
    model = create_beit3(NANO, modalities=("vision", "text"), depth=2, vocab_size=50, window_size=7)
    ids = torch.zeros(1, 4, dtype=torch.long)
    assert model(text_ids=ids)["encoder_out"].shape == (1, 4, 192)
    with pytest.raises(BackboneError, match="window_size=0"):
        model(torch.zeros(1, 3, 64, 64), ids)
