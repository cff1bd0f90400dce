"""Settings of the adapters: the same classes serve the library, training recipes and the metadata of adapter files."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

BlockNumbers = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MultiWayConfig(_Settings):
    """MultiWay-Adapter: two small modules in every block of a frozen Multiway Transformer.

    Defaults are those of the specification of the adapter, section 3.

    Attributes:
        kind: tells the settings apart in recipes and files.
        bottleneck: hidden width of the New Knowledge Extractor; 0 for none.
        enhancer_dim: hidden width of the Alignment Enhancer; 0 for none.
        alpha: factor on the New Knowledge Extractor's output.
        learnable_alpha: train that factor, one per extractor, from ``alpha`` on.
        nke_norm: what the extractor reads: ``host``, the LayerNorm that the frozen feed-forward network reads too;
            ``own``, a LayerNorm of its own; ``none``, the plain state.
        ae_form: ``subln_gelu`` is ``fc2(LayerNorm(GELU(fc1(h))))``; ``bottleneck_relu`` copies the extractor, with a
            LayerNorm of its own in front where ``nke_norm`` is ``own``.
        ae_sharing: one enhancer per expert of the block, or one for all.
        dropout: on the hidden layer of every ReLU bottleneck.
        blocks: numbers of the adapted blocks, or ``all``.
        zero_init_enhancer: start with an enhancer that adds nothing, so that the adapted model starts as the original
            one; otherwise from a narrow normal distribution.
    """

    kind: Literal["multiway"] = "multiway"
    bottleneck: int = Field(64, ge=0, le=16384)
    enhancer_dim: int = Field(128, ge=0, le=16384)
    alpha: float = Field(0.6, allow_inf_nan=False)
    learnable_alpha: bool = False
    nke_norm: Literal["host", "own", "none"] = "host"
    ae_form: Literal["subln_gelu", "bottleneck_relu"] = "subln_gelu"
    ae_sharing: Literal["per_modality", "shared"] = "per_modality"
    dropout: float = Field(0.1, ge=0, lt=1)
    blocks: Literal["all"] | BlockNumbers = "all"
    zero_init_enhancer: bool = True


class LoraConfig(_Settings):
    """Low-rank updates of linear layers, the peer that the MultiWay-Adapter is compared with.

    Attributes:
        kind: tells the settings apart in recipes and files.
        rank: of the update.
        alpha: the update is scaled by ``alpha / rank``.
        dropout: on the input of the update.
        targets: names of the adapted linear layers, of which the model need not have all. By default the projections
            to queries and values, or the joint one of models that compute queries, keys and values in one product;
            ``out_proj``, ``fc1`` and ``fc2`` are a Multiway Transformer's others, of every expert.
    """

    kind: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1, le=1024)
    alpha: float = Field(16.0, gt=0, allow_inf_nan=False)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[Annotated[str, Field(pattern=r"^\w+$")], ...] = Field(
        ("q_proj", "v_proj", "qkv_proj", "qkv"), min_length=1
    )


AdapterConfig = Annotated[MultiWayConfig | LoraConfig, Field(discriminator="kind")]
ADAPTER_CONFIG: TypeAdapter[MultiWayConfig | LoraConfig] = TypeAdapter(AdapterConfig)
