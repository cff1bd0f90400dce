"""Loading into a model: what fits, what is resized, converted and reported, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mca_perception.backbone import BEiT3, create_beit3, load_checkpoint, read_heads
from mca_perception.backbone.protocol import Backbone, Normalisation
from mca_perception.errors import CheckpointError
from tests.support.checkpoints import randomised

BOTH = ("vision", "text")
POSITIONS = "encoder.embed_positions.A.weight"


def backbone(**settings: Any) -> BEiT3:
    """A nano backbone of two blocks with a small vocabulary."""
    model = create_beit3(
        "beit3_nano_patch16", **{"depth": 2, "vocab_size": 50, "max_text_positions": 20, **settings}
    )
    return randomised(model).eval()


def official(**settings: Any) -> dict[str, Tensor]:
    """Tensors as in a retrieval file."""
    tensors = {
        f"beit3.{key}": value
        for key, value in backbone(**{"modalities": BOTH, **settings}).state_dict().items()
    }
    return tensors | {
        "vision_head.weight": torch.ones(2, 2),
        "logit_scale": torch.tensor(1.0),
        "extra": torch.ones(1),
    }


@pytest.fixture
def save(tmp_path: Path) -> Callable[[dict[str, Tensor]], Path]:
    def write(tensors: dict[str, Tensor]) -> Path:
        torch.save({"model": tensors}, tmp_path / "file.pth")
        return tmp_path / "file.pth"

    return write


def counts(groups: dict[str, tuple[str, ...]]) -> dict[str, int]:
    return {name: len(keys) for name, keys in groups.items()}


VISION_KEYS, TEXT_KEYS = 2 * 20 + 7, 2 * 20 + 4
HEADS = {"retrieval head": 2, "other": 1}


@pytest.mark.parametrize(
    ("in_file", "in_model", "missing", "unexpected"),
    [
        (BOTH, BOTH, {}, {}),
        (BOTH, ("vision",), {}, {"text expert": TEXT_KEYS}),
        (BOTH, ("text",), {}, {"vision expert": VISION_KEYS}),
        (("vision",), BOTH, {"text expert": TEXT_KEYS}, {}),
        (("text",), BOTH, {"vision expert": VISION_KEYS}, {}),
    ],
)
def test_experts_that_one_side_lacks_are_reported(
    save: Callable[..., Path],
    in_file: tuple[str, ...],
    in_model: tuple[str, ...],
    missing: dict[str, int],
    unexpected: dict[str, int],
) -> None:
    tensors, model = official(modalities=in_file), backbone(modalities=in_model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = load_checkpoint(model, save(tensors))
    assert counts(report.missing) == missing
    assert counts(report.unexpected) == unexpected | HEADS
    for key, value in model.state_dict().items():
        assert torch.equal(value, tensors.get(f"beit3.{key}", before[key]))


def test_summary_names_the_counts(save: Callable[..., Path]) -> None:
    tensors = official(img_size=112)
    tensors["beit3.vision_embed.proj.bias"][0] = torch.nan
    report = load_checkpoint(backbone(), save(tensors))
    assert report.non_finite == ("vision_embed.proj.bias",)
    assert report.summary() == (
        f"loaded vision expert {VISION_KEYS} (official layout); position table resized; not used text expert "
        f"{TEXT_KEYS}, retrieval head 2, other 1; infinite or NaN values in 1 tensors, first vision_embed.proj.bias"
    )


@pytest.mark.parametrize(("old", "new"), [(224, 384), (384, 224), (224, 224)])
def test_position_table_is_resized_but_its_first_rows(save: Callable[..., Path], old: int, new: int) -> None:
    tensors, model = official(img_size=old), backbone(img_size=new, modalities=BOTH)
    report = load_checkpoint(model, save(tensors))
    table, source = model.state_dict()[POSITIONS], tensors[f"beit3.{POSITIONS}"]
    assert report.positions_resized == (old != new)
    assert table.shape == ((new // 16) ** 2 + 3, 192)
    assert torch.equal(table[:3], source[:3])
    grid = source[3:].T.reshape(1, 192, old // 16, old // 16)
    wanted = torch.nn.functional.interpolate(
        grid, (new // 16, new // 16), mode="bicubic", align_corners=False
    )
    torch.testing.assert_close(table[3:], wanted[0].flatten(1).T, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_load_into_float32(save: Callable[..., Path], dtype: torch.dtype) -> None:
    tensors, model = official(), backbone()
    load_checkpoint(model, save({key: value.to(dtype) for key, value in tensors.items()}))
    for key, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, tensors[f"beit3.{key}"].to(dtype).float())


def without(key: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.__delitem__(key)


def replaced(key: str, value: Tensor) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({key: value})


REFUSED: dict[str, tuple[dict[str, Any], Callable[[dict[str, Tensor]], None] | None, dict[str, Any], str]] = {
    "too deep": (
        {"depth": 3},
        None,
        {},
        r"encoder\.layers\.2\.\S+ is \(192,.*\) in the file and absent in the model; it has 3 encoder layers",
    ),
    "not deep enough": (
        {"depth": 1},
        None,
        {},
        r"encoder\.layers\.1\.\S+ is absent in the file and \(192,.*\) in the model; it has 1 encoder layers",
    ),
    "wrong width": (
        {"embed_dim": 384, "num_heads": 6},
        None,
        {},
        r"mask_token is \(1, 1, 384\) in the file and \(1, 1, 192\)",
    ),
    "wrong FFN": (
        {"ffn_dim": 512},
        None,
        {},
        r"fc1\.weight is \(512, 192\) in the file and \(768, 192\) in the model",
    ),
    "wrong patch": (
        {"patch_size": 14},
        None,
        {},
        r"proj\.weight is \(192, 3, 14, 14\) in the file and \(192, 3, 16, 16\) in the model",
    ),
    "wrong vocabulary": (
        {"vocab_size": 60},
        None,
        {"modalities": BOTH},
        r"text_embed\.weight is \(60, 192\) in the file and \(50, 192\) in the model",
    ),
    "other text positions": (
        {"max_text_positions": 30},
        None,
        {"modalities": BOTH},
        r"embed_positions\.B\.weight is \(30, 192\) in the file and \(20, 192\) in the model",
    ),
    "no sub-LayerNorm": (
        {"sub_layernorm": False},
        None,
        {},
        r"inner_attn_ln\.A\.weight is absent in the file",
    ),
    "positions not square": (
        {},
        replaced(f"beit3.{POSITIONS}", torch.zeros(203, 192)),
        {},
        r"the 203 rows of encoder.embed_positions.A.weight are not 3 and a square grid",
    ),
    "no patch positions": ({}, replaced(f"beit3.{POSITIONS}", torch.zeros(3, 192)), {}, "the 3 rows"),
    "positions of one dimension": (
        {},
        replaced(f"beit3.{POSITIONS}", torch.zeros(9)),
        {},
        r"is \(9,\) in the file",
    ),
    "integers": (
        {},
        replaced("beit3.vision_embed.proj.bias", torch.zeros(192, dtype=torch.int8)),
        {},
        r"proj\.bias is \(192,\) of int8 in the file",
    ),
    "a key missing": (
        {},
        without("beit3.encoder.layers.1.ffn.A.fc2.bias"),
        {},
        r"layers\.1\.ffn\.A\.fc2\.bias is absent in the file and \(192,\) in the model",
    ),
    "a key too many": (
        {},
        replaced("beit3.encoder.layers.1.ffn.A.gate.bias", torch.zeros(7)),
        {},
        r"layers\.1\.ffn\.A\.gate\.bias is \(7,\) in the file and absent in the model",
    ),
    "other modality": (
        {"modalities": ("text",)},
        None,
        {},
        "it has text expert, retrieval head, other, the model vision expert",
    ),
    "decoupled into shared": (
        {},
        None,
        {"attention": "shared"},
        r"self_attn\.\S+\.shared\.weight is absent in the file and \(192, 192\) in the model; its attention is de",
    ),
    "shared into decoupled": (
        {"attention": "shared"},
        None,
        {},
        "its attention is shared.*attention='shared'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_do_not_fit_are_refused_and_change_nothing(save: Callable[..., Path], name: str) -> None:
    in_file, damage, in_model, message = REFUSED[name]
    tensors, model = official(**in_file), backbone(**in_model)
    if damage:
        damage(tensors)
    path = save(tensors)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as refusal:
        load_checkpoint(model, path)
    assert str(path) in str(refusal.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_file_of_something_else_is_refused(save: Callable[..., Path]) -> None:
    with pytest.raises(
        CheckpointError, match="no weights for this model: it has other, the model vision expert"
    ):
        load_checkpoint(backbone(), save({"fc.weight": torch.zeros(3)}))


@pytest.mark.parametrize("choice", ["A", "B", "mean"])
def test_shared_attention_starts_from_the_chosen_expert(save: Callable[..., Path], choice: Any) -> None:
    tensors, model = official(), backbone(attention="shared", modalities=BOTH)
    report = load_checkpoint(model, save(tensors), init_shared_from=choice)
    assert not report.missing
    for key, value in model.state_dict().items():
        a, b = (tensors.get(f"beit3.{key.replace('.shared.', f'.{expert}.')}") for expert in "AB")
        assert a is not None
        assert b is not None
        torch.testing.assert_close(value, {"A": a, "B": b, "mean": (a + b) / 2}[choice])
    not_used = counts(report.unexpected).keys() - HEADS.keys()
    assert not_used == {"A": {"text expert"}, "B": {"vision expert"}, "mean": set()}[choice]


@pytest.mark.parametrize("choice", ["B", "mean"])
def test_shared_attention_cannot_start_from_an_absent_expert(save: Callable[..., Path], choice: Any) -> None:
    path = save(official(modalities=("vision",)))
    with pytest.raises(CheckpointError, match=f"lacks what init_shared_from={choice} needs"):
        load_checkpoint(backbone(attention="shared"), path, init_shared_from=choice)
    assert not load_checkpoint(backbone(attention="shared"), path, init_shared_from="A").missing


def test_unknown_source_of_shared_attention(save: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match="must be A, B or mean"):
        load_checkpoint(backbone(), save(official()), init_shared_from="C")  # type: ignore[arg-type]


def test_fused_experts_and_adapters_are_groups(save: Callable[..., Path]) -> None:
    tensors = official(attention="shared", vl_experts=1)
    tensors["beit3.encoder.layers.0.adapters.mine.down.weight"] = torch.ones(2)
    report = load_checkpoint(backbone(attention="shared", modalities=BOTH), save(tensors))
    assert counts(report.unexpected) == {"fused expert": 8, "adapters": 1, **HEADS}
    fused = backbone(attention="shared", modalities=BOTH, vl_experts=1)
    assert counts(load_checkpoint(fused, save(official(attention="shared"))).missing) == {"fused expert": 8}


class Foreign(Backbone):
    """A backbone of another library."""

    embed_dim, patch_size, img_size, modalities = 2, 16, 224, ("vision",)
    normalisation = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

    def __init__(self, width: int) -> None:
        super().__init__()
        self.model = torch.nn.Linear(width, width)

    def forward(
        self, images: Any = None, text_ids: Any = None, text_padding_mask: Any = None
    ) -> dict[str, Tensor]:
        return {"encoder_out": self.model(images)}


def test_a_foreign_backbone_loads_the_weights_of_its_run(tmp_path: Path) -> None:
    source, model = Foreign(3), Foreign(3)
    tensors = {f"backbone.{key}": value for key, value in source.state_dict().items()}
    save_file(tensors | {"heads.defects.bias": torch.ones(1)}, tmp_path / "weights.safetensors")
    report = load_checkpoint(model, tmp_path / "weights.safetensors")
    assert torch.equal(model.model.weight, source.model.weight)
    assert counts(report.unexpected) == {"defects head": 1}
    assert list(read_heads(tmp_path / "weights.safetensors")) == ["heads.defects.bias"]
    with pytest.raises(
        CheckpointError, match=r"model\.weight is \(3, 3\) in the file and \(4, 4\) in the model"
    ):
        load_checkpoint(Foreign(4), tmp_path / "weights.safetensors")
