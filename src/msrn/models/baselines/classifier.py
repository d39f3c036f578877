"""The assembly of every baseline: a backbone under a head, and a builder for each."""

from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from jaxtyping import Float
from torch import Tensor, nn

from msrn.errors import ModelError
from msrn.labels import LabelGraph, vectors_from_co_occurrence
from msrn.models.backbone import Backbone
from msrn.models.baselines.csra import CSRAHead
from msrn.models.baselines.ml_decoder import MLDecoderHead
from msrn.models.baselines.ml_gcn import MLGCNHead
from msrn.models.baselines.pooled import PooledHead


class Classifier(nn.Module):
    """A backbone under a head that reads its last feature map: what a practitioner would train without MSRN.

    Args:
        backbone: The network; its last stage is used.
        head: From that stage's feature map (B, C, H, W) to logits (B, L).
    """

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B L"]:
        """Logits of a batch of images."""
        logits: Tensor = self.head(self.backbone(images)[-1])
        return logits


class BackboneArguments(TypedDict, total=False):
    """What every builder passes on to `Backbone`; `backbone` is its name."""

    backbone: str
    backbone_options: dict[str, Any] | None
    pretrained: bool
    weights: str | Path | None
    keep_last_layers: bool
    freeze_batch_norm: bool
    frozen_stages: int


def build_pooled(
    num_labels: int, *, pooling: Literal["avg", "max"] = "avg", **backbone: Unpack[BackboneArguments]
) -> Classifier:
    """Build the pooled baseline; the backbone's arguments are those of `build_msrn`.

    Raises:
        ModelError: The backbone cannot be built.
    """
    features = _build_backbone(**backbone)
    return Classifier(features, PooledHead(features.channels[-1], num_labels, pooling=pooling))


def build_csra(
    num_labels: int,
    *,
    num_heads: int = 1,
    lam: float = 0.1,
    normalize: bool = True,
    **backbone: Unpack[BackboneArguments],
) -> Classifier:
    """Build CSRA; see `CSRAHead`.

    Raises:
        ModelError: The backbone cannot be built, or a value is impossible.
    """
    features = _build_backbone(**backbone)
    try:
        head = CSRAHead(features.channels[-1], num_labels, num_heads=num_heads, lam=lam, normalize=normalize)
    except ValueError as error:
        raise ModelError(str(error)) from error
    return Classifier(features, head)


def build_ml_gcn(
    label_graph: LabelGraph,
    word_vectors: Float[Tensor, "L E"] | None = None,
    *,
    hidden_dim: int = 1024,
    neighbour_share: float = 0.2,
    **backbone: Unpack[BackboneArguments],
) -> Classifier:
    """Build ML-GCN over the edges of a label graph; see `MLGCNHead`.

    Raises:
        ModelError: The backbone cannot be built, or a value is impossible.
    """
    if word_vectors is None:
        word_vectors = vectors_from_co_occurrence(label_graph)
    features = _build_backbone(**backbone)
    edges = (label_graph.adjacency > 0).fill_diagonal_(False)
    sizes: dict[str, Any] = {"hidden_dim": hidden_dim, "neighbour_share": neighbour_share}
    try:
        head = MLGCNHead(features.channels[-1], word_vectors, edges, **sizes)
    except ValueError as error:
        raise ModelError(str(error)) from error
    return Classifier(features, head)


def build_ml_decoder(
    num_labels: int,
    *,
    num_groups: int = 100,
    dim: int = 768,
    num_heads: int = 8,
    hidden_dim: int = 2048,
    dropout: float = 0.1,
    **backbone: Unpack[BackboneArguments],
) -> Classifier:
    """Build ML-Decoder; see `MLDecoderHead`.

    Raises:
        ModelError: The backbone cannot be built, or a value is impossible.
    """
    features = _build_backbone(**backbone)
    sizes: dict[str, Any] = {"dim": dim, "num_heads": num_heads, "hidden_dim": hidden_dim, "dropout": dropout}
    try:
        head = MLDecoderHead(features.channels[-1], num_labels, num_groups=num_groups, **sizes)
    except ValueError as error:
        raise ModelError(str(error)) from error
    return Classifier(features, head)


def _build_backbone(
    *, backbone: str = "resnet101", backbone_options: dict[str, Any] | None = None, **arguments: Any
) -> Backbone:
    return Backbone(backbone, num_stages=1, **arguments, **(backbone_options or {}))
