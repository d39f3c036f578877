"""The assembly: a Multi-layered Semantic Representation Network from finished parts."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from msrn.models.attention import SemanticGuidedAttention, label_attention
from msrn.models.backbone import Backbone
from msrn.models.classifier import JointClassifier, PerLabelClassifier
from msrn.models.label_group import GROUP_LOSS_WEIGHT, LabelGroupEmbedding, LabelGroups, group_loss
from msrn.ops import attention_maps

Supervision = Literal["each", "sum"]


class MSRN(nn.Module):
    """Multi-layered Semantic Representation Network.

    Args:
        backbone: Feature maps of several stages.
        label_group: Label and group embeddings.
        attention: Pools the stages, guided by the embeddings.
        classifier: From pooled features to logits.
        residual: A head on the last stage beside them, or None as published.
        supervision: What the loss sees of a network with a residual. "each": attended stages and residual have each a loss on
            their own logits, and the network returns the mean of these (deep supervision, Lee et al.,
            https://arxiv.org/abs/1409.5185); cross-entropy is convex, so the mean's is at most the mean of theirs. "sum": the
            network returns the sum, and that has the loss.
        detach_stages: The attended stages send no gradient to the backbone, which then learns from the residual alone.

    Raises:
        ValueError: The supervision is neither, or the stages are detached and there is no residual, so the backbone would not
            learn.

    Example:
        `msrn.models.build_msrn(label_graph, backbone="resnet18")` builds the parts; `msrn_resnet101` is the published network.

    Source: Qu, Che, Huang, Xu, Zheng: Multi-layered Semantic Representation Network for Multi-label Image Classification,
        https://arxiv.org/abs/2106.11596.
    """

    def __init__(
        self,
        backbone: Backbone,
        label_group: LabelGroupEmbedding,
        attention: SemanticGuidedAttention,
        classifier: JointClassifier | PerLabelClassifier,
        residual: nn.Module | None = None,
        supervision: Supervision = "each",
        detach_stages: bool = False,
    ) -> None:
        super().__init__()
        if supervision not in get_args(Supervision):
            raise ValueError(f"supervision is 'each' or 'sum', got {supervision!r}.")
        if detach_stages and residual is None:
            raise ValueError("detach_stages needs a residual, from which the backbone learns; there is none.")
        self.backbone = backbone
        self.label_group = label_group
        self.attention = attention
        self.classifier = classifier
        self.residual = residual
        self.supervision: Supervision = supervision
        self.detach_stages = detach_stages
        self._constants: tuple[tuple[tuple[int, int], ...], LabelGroups] | None = None

    def forward(
        self, images: Float[Tensor, "B 3 H W"], label_groups: LabelGroups | None = None
    ) -> Float[Tensor, "B L"]:
        """Logits of a batch of images; pass `label_groups` where `embed()` was already called in this step."""
        feature_maps: Sequence[Tensor] = self.backbone(images)  # S x (B, C, h, w)
        return self.head(feature_maps, label_groups)

    def head(
        self, feature_maps: Sequence[Float[Tensor, "B _C _h _w"]], label_groups: LabelGroups | None = None
    ) -> Float[Tensor, "B L"]:
        """Everything behind the backbone."""
        return join_paths(self.paths(feature_maps, label_groups), self.supervision)

    def paths(
        self, feature_maps: Sequence[Float[Tensor, "B _C _h _w"]], label_groups: LabelGroups | None = None
    ) -> list[Float[Tensor, "B L"]]:
        """Logits of the attended stages, and those of the residual where there is one."""
        if label_groups is None:
            label_groups = self.embed()  # (L, D), (G, D), (L, G)
        seen = [stage.detach() for stage in feature_maps] if self.detach_stages else feature_maps
        label_features, group_features = self.attention(seen, label_groups)  # (B, L, S·D), (B, G, S·D)
        logits: Tensor = self.classifier(label_features, group_features, label_groups.assignment)  # (B, L)
        return [logits] if self.residual is None else [logits, self.residual(feature_maps[-1])]

    @property
    def path_weight(self) -> float:
        """How much each of `paths` counts in the network's logits."""
        return 0.5 if self.supervision == "each" and self.residual is not None else 1.0

    def supervised(
        self, images: Float[Tensor, "B 3 H W"], label_groups: LabelGroups | None = None
    ) -> list[Float[Tensor, "B L"]]:
        """Everything that has a loss of its own in training: both paths, or what the network returns."""
        paths = self.paths(self.backbone(images), label_groups)
        return paths if self.supervision == "each" else [join_paths(paths, self.supervision)]

    @torch.no_grad()
    def attention_maps(
        self, images: Float[Tensor, "B 3 H W"], labels: Sequence[int]
    ) -> list[Float[Tensor, "B n _h _w"]]:
        """Where the labels chosen look, a map a stage, finest first.

        Attention weights averaged over channels, each weighted by the size of what it adds to the label's logit.

        Args:
            images: A batch of images.
            labels: Indices of labels.

        Returns:
            Maps that each sum to 1, at the size of the projected stages.
        """
        projected = self.attention.project(self.backbone(images))  # S x (B, D, h, w)
        label_groups = self.embed()
        if self.attention.kind == "label":
            return [label_attention(stage, label_groups.label_embeddings[list(labels)]) for stage in projected]
        features = self.attention.attend(projected, label_groups)
        adds = self.classifier.contributions(*features, label_groups.assignment, labels)  # (B, n, S·D)
        chosen = label_groups.label_embeddings[list(labels)]  # (n, D)
        by_stage = adds.split(chosen.shape[1], dim=-1)
        return [attention_maps(stage, chosen, own) for stage, own in zip(projected, by_stage, strict=True)]

    def train(self, mode: bool = True) -> "MSRN":
        """Set training mode; evaluation starts with embeddings computed anew."""
        self._constants = None
        return super().train(mode)

    def embed(self) -> LabelGroups:
        """Label embeddings, group embeddings and assignment; constants in evaluation mode, computed once."""
        if self.training or torch.compiler.is_compiling():
            label_groups: LabelGroups = self.label_group()
            return label_groups
        # An optimizer step, a loaded state or a move to another device changes a version or an address.
        state = (*self.label_group.parameters(), *self.label_group.buffers())
        key = tuple((tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in state)
        if self._constants is None or self._constants[0] != key:
            # Constants outlive this call, so neither its inference mode nor its autocast may mark them.
            kind = self.label_group.adjacency.device.type
            device = "cpu" if kind == "meta" else kind  # autocast knows no meta device
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
                self._constants = (key, self.label_group())
        return self._constants[1]

    def label_embeddings(self) -> Float[Tensor, "L D"]:
        """Local semantics, one row a label."""
        return self.embed().label_embeddings

    def group_embeddings(self) -> Float[Tensor, "G D"]:
        """Global semantics, one row a group of labels."""
        return self.embed().group_embeddings

    def group_loss(
        self, label_groups: LabelGroups | None = None, *, weight: float = GROUP_LOSS_WEIGHT
    ) -> Float[Tensor, ""]:
        """The weighted group loss, to be added to the classification loss."""
        return group_loss(self.embed() if label_groups is None else label_groups, weight=weight)


def join_paths(paths: Sequence[Float[Tensor, "B L"]], supervision: Supervision) -> Float[Tensor, "B L"]:
    """The network's logits, from those of its paths (`MSRN.paths`)."""
    total = sum(paths[1:], start=paths[0])
    return total / len(paths) if supervision == "each" else total
