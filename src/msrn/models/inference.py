"""A trained network made ready for use: what does not depend on the image is computed once."""

import copy
from collections.abc import Sequence
from contextlib import suppress

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from msrn.models.attention import SemanticGuidedAttention, StageProjection
from msrn.models.classifier import PerLabelClassifier
from msrn.models.label_group import LabelGroups
from msrn.models.msrn import MSRN
from msrn.ops import FixedNodes, semantic_guided_attention

# Folded logits may differ by this much, in units of a logit.
_TOLERANCE = 1e-4
# Folded weights are some 12 times the classifier's; beyond this, mixing groups and reading the weights cost more than they save.
_MOST_FOLDED_BYTES = 2 * 2**30
_NEVER_AFTER = 3


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
        ValueError: Some channels are not resolved by any number of nodes, or the folded weights would be too large.
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
        stages = [FixedNodes(feature_map, embeddings, margin=margin) for feature_map in projected]
        num_coefficients = sum(stage.num_coefficients for stage in stages)
        if 4 * num_labels * num_coefficients > _MOST_FOLDED_BYTES:
            raise ValueError(f"{num_labels} x {num_coefficients} folded weights are more than are worth it.")
        self.stages = nn.ModuleList(stages)
        weight = embeddings.new_empty(num_labels, num_coefficients)  # (L, F)
        start = 0
        width = embeddings.shape[1]
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
            found, resolved = stage.coefficients(feature_map)  # type: ignore[operator]
            coefficients += [own.flatten(1) for own in found]  # (B, M·d)
            is_resolved.append(resolved)
        logits = nn.functional.linear(torch.cat(coefficients, dim=1), self.weight, self.bias)
        return logits, torch.stack(is_resolved).all(dim=0)


class InferenceMSRN(nn.Module):
    """An MSRN for inference: the same logits in less time and memory.

    Embeddings are constants; norms, and buffers where pooling is linear, are merged into the projections. With a per-label
    classifier the first batch of images chooses nodes and folds attention and classifier into one linear layer, where that gives
    logits within 1e-4; an image that the nodes do not resolve takes the way without folding.

    Args:
        model: The trained network, left as it is; backbone, classifier and residual are shared with it.

    Example:
        `InferenceMSRN(msrn.load("bundle").bundle.model)` takes images (B, 3, H, W) and returns logits (B, L).
    """

    label_embeddings: Tensor
    group_embeddings: Tensor
    assignment: Tensor

    def __init__(self, model: MSRN) -> None:
        super().__init__()
        model.eval()
        label_groups = model.embed()
        self.backbone = model.backbone
        self.classifier = model.classifier
        self.residual = model.residual
        self.attention = _merge(model)
        for name, value in label_groups._asdict().items():
            self.register_buffer(name, value)
        self.folded: FoldedClassifier | None = None
        self._failures = 0 if isinstance(model.classifier, PerLabelClassifier) else _NEVER_AFTER
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
        with torch.autocast(projected[0].device.type, enabled=False):  # coefficients need float32
            logits = self._folded_logits(projected)
        if logits is None:
            logits = self._exact_logits(projected)
        if self.residual is not None:
            logits = logits + self.residual(feature_maps[-1])
        return logits

    def _exact_logits(self, projected: Sequence[Tensor]) -> Tensor:
        features = self.attention.attend(projected, self.label_groups)
        logits: Tensor = self.classifier(*features, self.assignment)
        return logits

    def _folded_logits(self, projected: Sequence[Tensor]) -> Tensor | None:
        """Logits by the folded layer, or None where it would not be right."""
        if self.folded is None and (self._failures >= _NEVER_AFTER or len(projected[0]) == 0):
            return None
        if self.folded is None:
            self._fold(projected)
        if self.folded is None:
            return None
        logits, is_resolved = self.folded(projected)
        if bool(is_resolved.all()):
            result: Tensor = logits
            return result
        # These images spread wider than those the nodes were chosen for: choose anew, with more room, next time.
        self._failures += 1
        self.folded = None
        return None

    def _fold(self, projected: Sequence[Tensor]) -> None:
        assert isinstance(self.classifier, PerLabelClassifier)
        try:
            folded = FoldedClassifier(projected, self.label_groups, self.classifier, margin=1.25 * 2**self._failures)
        except ValueError:
            self._failures = _NEVER_AFTER
            return
        logits, _ = folded(projected)
        if bool((logits - self._exact_logits(projected)).abs().amax() <= _TOLERANCE):
            self.folded = folded
        else:
            self._failures = _NEVER_AFTER


class ExportableMSRN(nn.Module):
    """An `InferenceMSRN` of standard operators only, with node counts and ranges fixed from calibration images.

    With a per-label classifier, attention and classifier are one linear layer; else label rows are interpolated where nodes resolve
    them. What nodes do not resolve takes the plain formulation. Nothing is checked or chosen any more: give calibration images as
    varied as those to come, and compare the exported model with the original on images of your own.

    Args:
        inference: The network.
        images: Calibration images, a batch.

    Example:
        `torch.onnx.export(ExportableMSRN(InferenceMSRN(model), images), (images,), "model.onnx", dynamo=True)`.
    """

    @torch.no_grad()
    def __init__(self, inference: InferenceMSRN, images: Float[Tensor, "B 3 H W"]) -> None:
        super().__init__()
        self.inference = inference
        projected = inference.attention.project(inference.backbone(images))
        self.folded: FoldedClassifier | None = None
        self.fixed = nn.ModuleList()
        if isinstance(inference.classifier, PerLabelClassifier):
            with suppress(ValueError):
                self.folded = FoldedClassifier(projected, inference.label_groups, inference.classifier)
        if self.folded is None:
            self.fixed.extend(_fixed_or_plain(stage, inference.label_embeddings) for stage in projected)
        for module in self.modules():
            if isinstance(module, FixedNodes):
                module.use_standard_operators = True
        self.eval()

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B L"]:
        """Logits of a batch of images."""
        feature_maps = self.inference.backbone(images)
        projected = self.inference.attention.project(feature_maps)
        logits: Tensor
        if self.folded is not None:
            logits, _ = self.folded(projected)
        else:
            groups = self.inference.group_embeddings
            label_features = [own(stage) for own, stage in zip(self.fixed, projected, strict=True)]
            group_features = [semantic_guided_attention(stage, groups, backend="reference") for stage in projected]
            features = torch.cat(label_features, dim=-1), torch.cat(group_features, dim=-1)
            logits = self.inference.classifier(*features, self.inference.assignment)
        if self.inference.residual is not None:
            logits = logits + self.inference.residual(feature_maps[-1])
        return logits


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
        return FixedNodes(projected, embeddings)
    except ValueError:
        return _PlainAttention(embeddings)


def _merge(model: MSRN) -> SemanticGuidedAttention:
    """The attention with merged projections, if it gives the same logits."""
    merged = copy.copy(model.attention)
    stages = [stage for stage in model.attention.stages if isinstance(stage, StageProjection)]
    merged._modules = {"stages": nn.ModuleList(stage.merged() for stage in stages)}
    generator = torch.Generator().manual_seed(0)
    like = stages[0].projection.weight
    probes = [
        torch.rand(2, channels, 8, 8, generator=generator).to(like) for channels in model.backbone.channels
    ]  # what a ReLU leaves: no entry below zero
    with torch.no_grad():
        expected = model.head(probes)
        label_groups = model.embed()
        received = model.classifier(*merged(probes, label_groups), label_groups.assignment)
        received = received if model.residual is None else received + model.residual(probes[-1])
    is_same = (received - expected).abs().amax() <= _TOLERANCE * max(1.0, float(expected.abs().amax()))
    return merged if bool(is_same) else model.attention
