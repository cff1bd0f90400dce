"""Heads and fusion models equal the specification, layer by layer and to the parameter."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mca_perception.crisis.networks.fusion import ConvFusion, DenseFusion
from mca_perception.crisis.networks.heads import create_head
from mca_perception.errors import RecipeError

C = 5


def dense(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def conv(inputs: int, outputs: int, size: int) -> int:
    return inputs * outputs * size + outputs


def layers(module: nn.Module) -> str:
    """Leaf layers in order, with what defines them."""
    found = []
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            found.append(f"dense {layer.in_features} {layer.out_features}")
        elif isinstance(layer, nn.Conv1d):
            found.append(
                f"conv {layer.in_channels} {layer.out_channels} {layer.kernel_size[0]} {layer.padding}"
            )
        elif isinstance(layer, nn.BatchNorm1d):
            found.append(f"norm {layer.num_features}")
        elif isinstance(layer, nn.Dropout):
            found.append(f"dropout {layer.p}")
        elif isinstance(layer, nn.MaxPool1d):
            found.append(f"pool {layer.kernel_size}")
        elif isinstance(layer, nn.ReLU):
            found.append("relu")
    return ", ".join(found)


CONVOLUTIONS = (
    "relu, pool 2, norm 100, conv 100 150 3 same, relu, pool 3, norm 150, conv 150 200 4 same, relu, pool 4"
)


@pytest.mark.parametrize(
    ("name", "width", "length", "expected", "parameters"),
    [
        ("dense_1", 768, 100, "dropout 0.1, dense 768 5", dense(768, C)),
        (
            "dense_3",
            768,
            100,
            "dense 768 200, relu, dropout 0.2, dense 200 100, relu, dropout 0.02, dense 100 50, relu, dense 50 5",
            dense(768, 200) + dense(200, 100) + dense(100, 50) + dense(50, C),
        ),
        (
            "conv_stack",
            768,
            100,
            f"conv 768 100 2 same, {CONVOLUTIONS}, dense 800 5",
            conv(768, 100, 2) + 200 + conv(100, 150, 3) + 300 + conv(150, 200, 4) + dense(200 * 4, C),
        ),
        (
            "conv_stack",
            300,
            25,
            f"conv 300 100 2 same, {CONVOLUTIONS}, dense 200 5",
            conv(300, 100, 2) + 200 + conv(100, 150, 3) + 300 + conv(150, 200, 4) + dense(200, C),
        ),
        (
            "kim_cnn",
            300,
            25,
            "conv 300 300 1 (0,), conv 300 300 2 (0,), conv 300 300 3 (0,), conv 300 300 4 (0,), dense 1200 5",
            sum(conv(300, 300, width) for width in (1, 2, 3, 4)) + dense(1200, C),
        ),
        ("image_dense_1", 2048, 1, "dense 2048 5", dense(2048, C)),
    ],
)
def test_heads(name: str, width: int, length: int, expected: str, parameters: int) -> None:
    head = create_head(name, width, C, length).eval()
    assert layers(head) == expected
    assert sum(p.numel() for p in head.parameters()) == parameters
    assert head(torch.randn(3, length, width)).shape == (3, C)


def test_dense_fusion() -> None:
    fusion = DenseFusion([768, 2048], C).eval()
    assert layers(fusion) == (
        "dense 768 1200, relu, dense 2048 1200, relu, norm 2400, dropout 0.4, dense 2400 500, relu, dropout 0.2, "
        "dense 500 100, relu, dropout 0.02, dense 100 5"
    )
    expected = (
        dense(768, 1200) + dense(2048, 1200) + 2 * 2400 + dense(2400, 500) + dense(500, 100) + dense(100, C)
    )
    assert sum(p.numel() for p in fusion.parameters()) == expected == 4_637_505
    assert fusion([torch.randn(3, 768), torch.randn(3, 2048)]).shape == (3, C)


def test_conv_fusion() -> None:
    fusion = ConvFusion([768, 2048], C).eval()
    assert layers(fusion) == (
        "dense 768 1200, relu, dense 2048 1200, relu, conv 1 500 3 same, relu, conv 500 100 3 same, relu, pool 2, "
        "dense 120000 5"
    )
    expected = dense(768, 1200) + dense(2048, 1200) + conv(1, 500, 3) + conv(500, 100, 3) + dense(120_000, C)
    assert sum(p.numel() for p in fusion.parameters()) == expected
    assert fusion([torch.randn(2, 768), torch.randn(2, 2048)]).shape == (2, C)


@pytest.mark.parametrize("name", ["conv_stack", "kim_cnn"])
def test_too_short_sequences_are_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="the encoder gives 3"):
        create_head(name, 8, C, 3)


def test_dense_heads_read_the_summary_alone() -> None:
    head = create_head("dense_3", 8, C, 10).eval()
    states = torch.randn(2, 10, 8)
    changed = states.clone()
    changed[:, 1:] += 1
    assert torch.equal(head(states), head(changed))
