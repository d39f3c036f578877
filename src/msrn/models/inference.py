"""A trained network made ready for use: what does not depend on the image is computed once."""

import copy
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from msrn.models.attention import SemanticGuidedAttention
from msrn.models.classifier import PerLabelClassifier
from msrn.models.label_group import LabelGroups
from msrn.models.msrn import MSRN, Supervision, join_paths
from msrn.ops import FixedNodes, semantic_guided_attention

# Folded and merged logits may differ by this much, in units of a logit.
_TOLERANCE = 1e-4
# Beyond this, reading the folded weights costs more than they save.
_MOST_FOLDED_BYTES = 2 * 2**30
# From so many labels on folding takes seconds, which a single batch does not earn back.
_MANY_LABELS = 1000
# Labels whose features are there at a time where nothing is folded.
_LABEL_BLOCK = 2048
_MOST_FOLDS = 3
_FOLDING = threading.Lock()


class FoldedClassifier(nn.Module):
    """Attention and per-label classifier in one linear layer on the coefficients of `FixedNodes`.

    logits[l] = bias[l] + sum over stages, channels, m of folded[l, d, m] · coefficients[d, m], where folded holds the label's
    weight times T_m at its embedding, and its group weight times T_m at the groups' embeddings, mixed by the assignment. Nothing
    of size labels x channels is built for an image.

    Args:
        projected: Projected feature maps of calibration images, a stage each.
        label_groups: Constant embeddings and assignment.
        classifier: The classifier, linear in the pooled features.
        margin: Features of other images may spread this much wider.

    Raises:
        ValueError: Some channels are not resolved by any number of nodes, or the folded weights would be too large, or there are
            too few labels for folding to save anything.
    """

    weight: Tensor
    bias: Tensor

    @torch.no_grad()
    def __init__(
        self,
        projected: Sequence[Float[Tensor, "B D _h _w"]],
        label_groups: LabelGroups,
        classifier: PerLabelClassifier,
        *,
        margin: float = 1.25,
    ) -> None:
        super().__init__()
        num_labels = len(label_groups.label_embeddings)
        embeddings = torch.cat([label_groups.label_embeddings, label_groups.group_embeddings])  # (L + G, D)
        if classifier.group_weight is None:
            raise ValueError("a classifier without groups is not folded.")
        stages = [FixedNodes(feature_map, embeddings, margin=margin) for feature_map in projected]
        num_coefficients = sum(stage.num_coefficients for stage in stages)
        if embeddings.element_size() * num_labels * num_coefficients > _MOST_FOLDED_BYTES:
            raise ValueError(f"{num_labels} x {num_coefficients} folded weights are more than are worth it.")
        if num_coefficients >= embeddings.numel() * len(stages):
            raise ValueError(
                f"{len(embeddings)} embeddings are too few to save anything by {num_coefficients} coefficients."
            )
        self.stages = nn.ModuleList(stages)
        weight = embeddings.new_empty(num_labels, num_coefficients)  # (L, F)
        start, width = 0, embeddings.shape[1]
        own_weights = classifier.label_weight.split(width, dim=1)  # S x (L, D)
        group_weights = classifier.group_weight.split(width, dim=1)
        for stage, own, by_group in zip(stages, own_weights, group_weights, strict=True):
            columns = slice(start, start := start + stage.num_coefficients)
            weight[:, columns] = stage.fold(own, slice(0, num_labels))
            weight[:, columns] += stage.fold(by_group, slice(num_labels, None), label_groups.assignment)
        self.register_buffer("weight", weight.mul_(classifier.scale))
        self.register_buffer("bias", classifier.bias.detach().clone())

    def forward(
        self, projected: Sequence[Float[Tensor, "B D _h _w"]]
    ) -> tuple[Float[Tensor, "B L"], Bool[Tensor, "B"]]:
        """Logits, and for which images they are right to rounding."""
        coefficients, is_resolved = [], []
        for stage, feature_map in zip(self.stages, projected, strict=True):
            found, resolved = cast(FixedNodes, stage).coefficients(feature_map.to(self.weight.dtype))
            coefficients += [own.flatten(1) for own in found]  # (B, M·d)
            is_resolved.append(resolved)
        logits = nn.functional.linear(torch.cat(coefficients, dim=1), self.weight, self.bias)
        return logits, torch.stack(is_resolved).all(dim=0)


class InferenceMSRN(nn.Module):
    """An MSRN for inference: the same logits in less time and memory.

    Embeddings are constants; norms, and buffers where pooling is linear, are merged into the projections. With a per-label
    classifier in float32 or float64 the first batch of images (the second, with many labels) chooses nodes and folds attention and
    classifier into one linear layer, if that gives its logits within 1e-4 and saves anything; images that the nodes do not resolve
    take the way without folding. May be called from several threads.

    Args:
        model: The trained network, set to evaluation mode; backbone, classifier and residual are shared with it.

    Example:
        `InferenceMSRN(msrn.load("bundle").bundle.model)` takes images (B, 3, H, W) and returns logits (B, L).
    """

    label_embeddings: Tensor
    group_embeddings: Tensor
    assignment: Tensor

    def __init__(self, model: MSRN) -> None:
        super().__init__()
        model.eval()
        self.backbone = model.backbone
        self.classifier = model.classifier
        self.residual = model.residual
        self.supervision = model.supervision
        self.attention = _merge(model.attention)
        for name, value in model.embed()._asdict().items():
            self.register_buffer(name, value)
        self.folded: FoldedClassifier | None = None
        can_fold = isinstance(model.classifier, PerLabelClassifier) and model.classifier.group_weight is not None
        self._num_folds = 0 if can_fold and model.attention.kind == "channel" else _MOST_FOLDS
        self._is_first_batch = True
        self.eval()

    @property
    def label_groups(self) -> LabelGroups:
        """The constant embeddings and assignment."""
        return LabelGroups(self.label_embeddings, self.group_embeddings, self.assignment)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B L"]:
        """Logits of a batch of images."""
        return self.head(self.backbone(images))

    @torch.no_grad()
    def head(self, feature_maps: Sequence[Float[Tensor, "B _C _h _w"]]) -> Float[Tensor, "B L"]:
        """Everything behind the backbone."""
        projected = self.attention.project(feature_maps)  # S x (B, D, h, w)
        folded = self._choose(projected)
        logits = self._exact_logits(projected) if folded is None else self._folded_logits(folded, projected)
        return _beside(self.residual, self.supervision, logits, feature_maps[-1])

    def _exact_logits(self, projected: Sequence[Float[Tensor, "B D _h _w"]]) -> Float[Tensor, "B L"]:
        num_labels = len(self.label_embeddings)
        if num_labels <= _LABEL_BLOCK or not isinstance(self.classifier, PerLabelClassifier):
            logits: Tensor = self.classifier(*self.attention.attend(projected, self.label_groups), self.assignment)
            return logits
        group_features = self.attention.pool(projected, self.group_embeddings)  # (B, G, S·D)
        blocks = []
        for start in range(0, num_labels, _LABEL_BLOCK):
            rows = slice(start, start + _LABEL_BLOCK)
            label_features = self.attention.pool(projected, self.label_embeddings[rows])  # (B, n, S·D)
            blocks.append(self.classifier(label_features, group_features, self.assignment[rows], rows))
        return torch.cat(blocks, dim=1)

    def _folded_logits(
        self, folded: FoldedClassifier, projected: Sequence[Float[Tensor, "B D _h _w"]]
    ) -> Float[Tensor, "B L"]:
        with torch.autocast(projected[0].device.type, enabled=False):  # coefficients need float32
            logits, is_resolved = folded(projected)
        is_open = ~is_resolved
        if bool(is_open.any()):
            logits[is_open] = self._exact_logits([stage[is_open] for stage in projected]).to(logits.dtype)
            if float(is_open.float().mean()) > 0.5:  # images like these are not what the nodes were chosen for
                with _FOLDING:
                    if self.folded is folded:
                        self.folded = self._fold(projected)
        result: Tensor = logits
        return result

    def _choose(self, projected: Sequence[Float[Tensor, "B D _h _w"]]) -> FoldedClassifier | None:
        """The folded layer, made if it is time, or None."""
        folded = self.folded
        if folded is not None:
            return folded if folded.weight.dtype in (torch.float32, torch.float64) else None
        if self._num_folds >= _MOST_FOLDS or len(projected[0]) == 0:
            return None
        if self._is_first_batch and len(self.label_embeddings) >= _MANY_LABELS:
            self._is_first_batch = False
            return None
        with _FOLDING:
            if self.folded is None and self._num_folds < _MOST_FOLDS:
                self.folded = self._fold(projected)
            return self.folded

    def _fold(self, projected: Sequence[Float[Tensor, "B D _h _w"]]) -> FoldedClassifier | None:
        """Fold with nodes for these images, with more room every time; no more of it where it does not work."""
        assert isinstance(self.classifier, PerLabelClassifier)
        room = 1.25 * 2**self._num_folds
        self._num_folds += 1
        dtype = self.classifier.label_weight.dtype
        if dtype not in (torch.float32, torch.float64):
            self._num_folds = _MOST_FOLDS
            return None
        with torch.autocast(projected[0].device.type, enabled=False):
            projected = [stage.to(dtype) for stage in projected]
            try:
                folded = FoldedClassifier(projected, self.label_groups, self.classifier, margin=room)
            except ValueError:
                self._num_folds = _MOST_FOLDS
                return None
            difference = (folded(projected)[0] - self._exact_logits(projected)).abs().amax()
        if bool(difference <= _TOLERANCE):
            return folded
        self._num_folds = _MOST_FOLDS
        return None


class ExportableMSRN(nn.Module):
    """An `InferenceMSRN` of standard operators only, with the number of nodes fixed from calibration images.

    With a per-label classifier, attention and classifier are one linear layer; else label rows are interpolated where nodes resolve
    them. What nodes do not resolve takes the plain formulation. Nothing is chosen any more when images come: give calibration
    images as varied as those, and compare the exported model with the original on images of your own.

    Attributes:
        is_folded: Whether attention and classifier are one layer.
        plain_stages: Stages in the plain formulation, which builds a tensor of images x labels x positions x channels.

    Args:
        inference: The network, left as it is.
        images: Calibration images, a batch.

    Raises:
        ValueError: The logits of the calibration images differ from the network's by more than 1e-4 (of the largest, if that is
            above 1).

    Example:
        `torch.onnx.export(ExportableMSRN(InferenceMSRN(model), images), (images,), "model.onnx", dynamo=True)`.
    """

    group_embeddings: Tensor
    assignment: Tensor

    @torch.no_grad()
    def __init__(self, inference: InferenceMSRN, images: Float[Tensor, "B 3 H W"]) -> None:
        super().__init__()
        if inference.attention.kind != "channel":
            raise ValueError("only attention by channel is exported, this network has one attention a label.")
        self.backbone = inference.backbone
        self.attention = inference.attention
        self.residual = inference.residual
        self.supervision = inference.supervision
        feature_maps = self.backbone(images)
        projected = self.attention.project(feature_maps)
        self.folded: FoldedClassifier | None = None
        self.classifier: nn.Module | None = None
        self.fixed = nn.ModuleList()
        if isinstance(inference.classifier, PerLabelClassifier):
            with suppress(ValueError):
                self.folded = FoldedClassifier(projected, inference.label_groups, inference.classifier)
                for stage in self.folded.stages:
                    cast(FixedNodes, stage).use_standard_operators = True
        if self.folded is None:
            self.classifier = inference.classifier
            self.register_buffer("group_embeddings", inference.group_embeddings)
            self.register_buffer("assignment", inference.assignment)
            self.fixed.extend(_fixed_or_plain(stage, inference.label_embeddings) for stage in projected)
        self.eval()
        expected = inference.head(feature_maps)
        difference = float((self(images) - expected).abs().amax())
        if not difference <= _TOLERANCE * max(1.0, float(expected.abs().amax())):
            raise ValueError(
                f"the exportable network's logits differ from the original's by {difference:.1e} on these images."
            )

    @property
    def is_folded(self) -> bool:
        """Whether attention and classifier are one layer."""
        return self.folded is not None

    @property
    def plain_stages(self) -> tuple[int, ...]:
        """Stages in the plain formulation."""
        return tuple(index for index, stage in enumerate(self.fixed) if isinstance(stage, _PlainAttention))

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B L"]:
        """Logits of a batch of images."""
        feature_maps = self.backbone(images)
        projected = self.attention.project(feature_maps)
        logits: Tensor
        if self.folded is not None:
            logits, _ = self.folded(projected)
        else:
            assert self.classifier is not None
            label_features = [attend(stage) for attend, stage in zip(self.fixed, projected, strict=True)]
            group_features = [
                semantic_guided_attention(stage, self.group_embeddings, backend="reference") for stage in projected
            ]
            features = torch.cat(label_features, dim=-1), torch.cat(group_features, dim=-1)
            logits = self.classifier(*features, self.assignment)
        return _beside(self.residual, self.supervision, logits, feature_maps[-1])


def _beside(
    residual: nn.Module | None,
    supervision: Supervision,
    logits: Float[Tensor, "B L"],
    last_stage: Float[Tensor, "B C h w"],
) -> Float[Tensor, "B L"]:
    """Logits of the attended stages joined with the residual's."""
    return logits if residual is None else join_paths([logits, residual(last_stage)], supervision)


class _PlainAttention(nn.Module):
    """The plain formulation with constant embeddings."""

    embeddings: Tensor

    def __init__(self, embeddings: Float[Tensor, "N D"]) -> None:
        super().__init__()
        self.register_buffer("embeddings", embeddings)

    def forward(self, feature_map: Float[Tensor, "B D H W"]) -> Float[Tensor, "B N D"]:
        return semantic_guided_attention(feature_map, self.embeddings, backend="reference")


def _fixed_or_plain(projected: Float[Tensor, "B D h w"], embeddings: Float[Tensor, "N D"]) -> nn.Module:
    try:
        return FixedNodes(projected, embeddings, use_standard_operators=True)
    except ValueError:
        return _PlainAttention(embeddings)


def _merge(attention: SemanticGuidedAttention) -> SemanticGuidedAttention:
    """The attention with merged projections, if attention sees the same."""
    merged = attention.merged()
    generator = torch.Generator().manual_seed(0)
    # In float64 on the CPU: a GPU may round float32 convolutions to ten bits. The weights are float32 all the same.
    pairs = zip(
        copy.deepcopy(attention).cpu().double().stages, copy.deepcopy(merged).cpu().double().stages, strict=True
    )
    for original, stage in pairs:
        channels = cast(nn.Conv2d, stage.projection).in_channels
        # As after a ReLU, nothing below zero.
        probe = torch.rand(2, channels, 8, 8, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            expected, received = original(probe), stage(probe)
        if not bool((received - expected).abs().amax() <= _TOLERANCE * expected.abs().amax()):
            return attention
    return merged
