"""What adds up to a label's logit: by stage, by the label's own part and its groups', and by position.

With a per-label classifier a logit of the attended stages is linear in what attention pools, and what attention pools is a sum
over positions. So every position of every stage has its share, and the shares, the residual's and a constant sum to the logit:

logit[l] = constant[l] + sum over stages s and positions p of (own[s, l, p] + by_group[s, l, p]) + sum over p of residual[l, p],
own[s, l, p] = sum over channels d of w[l, s, d] · softmax_p(f[s, d, p] · e[l, d]) · f[s, d, p],

and the same for each group with the label's weights for groups and its membership. The published joint classifier is not linear in
what attention pools. For the image at hand it is: of its leaky ReLU each unit is on one side, and tanh(o) = (tanh(o) / o) · o.
Shares of this linear function sum to the logit too, but it is another one for every image, and one of several ways to split the
logit: an approximation. There other labels' features have a share as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from msrn.explain.alignment import projected_shifts, stage_shifts
from msrn.explain.shares import own_shares, shares_of_each, shares_of_sum
from msrn.models import MSRN
from msrn.models.attention import label_attention
from msrn.models.baselines import PooledHead
from msrn.models.classifier import JointClassifier, PerLabelClassifier
from msrn.models.residual import AttendedHead
from msrn.ops.semantic_attention.nodes import Channels

# Greatest number of images x labels x groups x positions at which groups have maps of their own.
_MOST_OF_GROUPS = 2**22
_WINDOW = 3 / 16


@dataclass(frozen=True)
class Contributions:
    """What adds up to the logits of n labels, for a batch of images.

    Attributes:
        labels: Indices of the labels.
        logits: What the network returns.
        own: For each stage, finest first, what each position adds through the label's own attention.
        by_group: The same through the attention of the label's groups, all groups together; no stage where there are none.
        by_others: The same through the attention of all other labels; no stage but for a joint classifier.
        group_maps: `by_group`, group by group; no stage where that would be large.
        groups: What each group adds, over all stages and positions.
        residual: What each position of the last stage adds through the residual; None without one.
        constant: Biases; for a joint classifier those of the image's linear function.
        rest: What the shares leave to the logit: rounding.
        is_exact: Whether the shares are those of a linear classifier, and not an approximation.
        shifts: How far the cells of each stage lie from where they seem to, in cells, and those of the residual last
            (`msrn.explain.alignment`).
    """

    labels: tuple[int, ...]
    logits: Float[Tensor, "B n"]
    own: tuple[Float[Tensor, "B n _h _w"], ...]
    by_group: tuple[Float[Tensor, "B n _h _w"], ...]
    by_others: tuple[Float[Tensor, "B n _h _w"], ...]
    group_maps: tuple[Float[Tensor, "B n G _h _w"], ...]
    groups: Float[Tensor, "B n G"]
    residual: Float[Tensor, "B n _h _w"] | None
    constant: Float[Tensor, "B n"]
    rest: Float[Tensor, "B n"]
    is_exact: bool
    shifts: tuple[float, ...]

    def to(self, device: str | torch.device) -> "Contributions":
        """The same on another device."""
        return replace(
            self,
            logits=self.logits.to(device),
            own=tuple(part.to(device) for part in self.own),
            by_group=tuple(part.to(device) for part in self.by_group),
            by_others=tuple(part.to(device) for part in self.by_others),
            group_maps=tuple(part.to(device) for part in self.group_maps),
            groups=self.groups.to(device),
            residual=None if self.residual is None else self.residual.to(device),
            constant=self.constant.to(device),
            rest=self.rest.to(device),
        )

    def stage_maps(self) -> list[Float[Tensor, "B n _h _w"]]:
        """What each position of each stage adds, own part, groups' and others' together."""
        kinds = [maps for maps in (self.own, self.by_group, self.by_others) if maps]
        return [sum(parts[1:], start=parts[0]) for parts in zip(*kinds, strict=True)]

    def combined(self, size: tuple[int, int], columns: Sequence[int] | None = None) -> Float[Tensor, "B n H W"]:
        """All stages and the residual at one size (height, width): what a pixel adds, so that the sum stays about the same.

        Args:
            size: Height and width.
            columns: Which of the labels, by their place in `labels`; all by default.
        """
        maps = [*self.stage_maps(), *([] if self.residual is None else [self.residual])]
        chosen = range(len(self.labels)) if columns is None else columns
        total = maps[0].new_zeros(len(maps[0]), len(chosen), *size)
        for place, column in enumerate(chosen):  # one label at a time
            for own, shift in zip(maps, self.shifts, strict=False):
                total[:, [place]] += grow(own[:, [column]], size, shift)
        return total


def smooth(maps: Float[Tensor, "*b H W"]) -> Float[Tensor, "*b H W"]:
    """What the region around each position adds: maps seen through a Gaussian window of 3/16 of the longer side.

    The greatest single cell lies often at an object's edge; the greatest region lies on the object (docs/explain.md has by how
    much). What a map adds everywhere alike counts nowhere; outside the image nothing is added.
    """
    height, width = maps.shape[-2:]
    reach = max(1, round(_WINDOW * max(height, width)))
    centred = maps - maps.mean(dim=(-2, -1), keepdim=True)
    return _window(height, reach).to(maps) @ centred @ _window(width, reach).to(maps)


@cache
def _window(size: int, reach: int) -> Float[Tensor, "_ _"]:
    """Weights of every position along one side in the window around every other."""
    offset = torch.arange(-3 * reach, 3 * reach + 1, dtype=torch.float64)
    total = (-0.5 * (offset / reach).square()).exp().sum()
    distance = torch.arange(size, dtype=torch.float64)[:, None] - torch.arange(size, dtype=torch.float64)
    weights: Tensor = (-0.5 * (distance / reach).square()).exp() / total
    return weights * (distance.abs() <= 3 * reach)


def grow(maps: Float[Tensor, "B n h w"], size: tuple[int, int], shift: float) -> Float[Tensor, "B n H W"]:
    """Maps at another size, each cell where it is on the image, so that they sum to about the same.

    Args:
        maps: What each cell adds.
        size: Height and width to grow to.
        shift: How far the cells lie from where they seem to, in cells.
    """
    height, width = maps.shape[-2:]
    share = height * width / (size[0] * size[1])
    move = maps.new_tensor([[1.0, 0.0, -2 * shift / width], [0.0, 1.0, -2 * shift / height]])
    grid = F.affine_grid(move.expand(len(maps), 2, 3), [len(maps), 1, *size], align_corners=False)
    return F.grid_sample(maps * share, grid, mode="bilinear", padding_mode="border", align_corners=False)


@torch.no_grad()
def explain_logits(
    model: MSRN,
    images: Float[Tensor, "B 3 H W"],
    labels: Sequence[int],
    *,
    feature_maps: Sequence[Float[Tensor, "B _c _h _w"]] | None = None,
    logits: Float[Tensor, "B L"] | None = None,
) -> Contributions:
    """What adds up to the logits of the labels chosen.

    Labels go block by block, so that no tensor of labels x positions x channels is ever whole.

    Args:
        model: The network, in evaluation mode.
        images: A batch, preprocessed.
        labels: Indices of labels.
        feature_maps: What the backbone makes of the images, where that is known already.
        logits: What the head makes of the feature maps, where that is known already.

    Raises:
        ValueError: The model is in training mode.
    """
    if model.training:
        raise ValueError("the network is in training mode, where its logits are others. Call model.eval() first.")
    chosen = list(labels)
    if feature_maps is None:
        feature_maps = model.backbone(images)
    projected = [stage.float().contiguous() for stage in model.attention.project(feature_maps)]
    label_groups = model.embed()
    factor = model.path_weight
    classifier = model.classifier
    membership = label_groups.assignment[chosen]  # (n, G)
    slopes: _GroupSlopes | _JointSlopes
    others: _JointSlopes | None = None
    if isinstance(classifier, PerLabelClassifier):
        own_slopes = (classifier.scale * classifier.label_weight[chosen]).unsqueeze(0)  # (1, n, S·D)
        shared = (
            own_slopes[0] if classifier.group_weight is None else classifier.scale * classifier.group_weight[chosen]
        )
        slopes = _GroupSlopes(shared, membership)
        constant = classifier.bias[chosen].expand(len(images), -1)
    else:
        pooled = model.attention.attend(projected, label_groups)  # (B, L, S·D), (B, G, S·D)
        linear = _JointSlopes.of_classifier(classifier, *pooled, chosen)
        own_slopes = torch.cat([linear.of(label)[:, [row]] for row, label in enumerate(chosen)], dim=1)  # (B, n, S·D)
        constant = linear.constant(classifier, chosen)
        num_labels = len(label_groups.label_embeddings)
        others, slopes = linear.among(slice(num_labels), but=chosen), linear.among(slice(num_labels, None))
    if logits is None:
        logits = model.head(feature_maps, label_groups)
    logits = logits[:, chosen]
    embeddings = label_groups.group_embeddings
    dim = embeddings.shape[1]
    kind = model.attention.kind
    own_maps, shared_maps, other_maps, group_maps = [], [], [], []
    for stage, values in enumerate(projected):
        part = slice(stage * dim, (stage + 1) * dim)
        own_maps.append(factor * _own_map(values, label_groups.label_embeddings[chosen], own_slopes[..., part], kind))
        if len(embeddings):
            size = len(images) * membership.numel() * values.shape[2:].numel()
            maps = factor * _shared_maps(values, embeddings, slopes.part(part), kind, apart=size <= _MOST_OF_GROUPS)
            if size <= _MOST_OF_GROUPS:
                group_maps.append(maps)
            shared_maps.append(maps.sum(dim=2) if size <= _MOST_OF_GROUPS else maps)
        if others is not None:
            labels_apart = label_groups.label_embeddings
            other_maps.append(factor * _shared_maps(values, labels_apart, others.part(part), kind, apart=False))
    is_apart = len(group_maps) == len(projected)
    if is_apart and group_maps:
        by_group = sum((maps.sum(dim=(-2, -1)) for maps in group_maps[1:]), start=group_maps[0].sum(dim=(-2, -1)))
    else:
        by_group = factor * slopes.pooled(model.attention.pool(projected, embeddings))
    shifts = stage_shifts(model, (images.shape[-2], images.shape[-1]))
    residual, bias = None, constant.new_zeros(())
    if model.residual is not None:
        residual = factor * _residual_map(model.residual, feature_maps[-1].float(), chosen)
        bias = model.residual.linear.bias[chosen]  # type: ignore[union-attr, index]
    constant = factor * (constant + bias)
    explained = constant + sum(part.sum(dim=(2, 3)) for part in (*own_maps, *shared_maps, *other_maps))
    if residual is not None:
        explained = explained + residual.sum(dim=(2, 3))
    return Contributions(
        tuple(chosen),
        logits,
        tuple(own_maps),
        tuple(shared_maps),
        tuple(other_maps),
        tuple(group_maps) if is_apart else (),
        by_group,
        residual,
        constant,
        logits - explained,
        isinstance(classifier, PerLabelClassifier),
        (*projected_shifts(model, shifts), shifts[-1])
        if model.residual is not None
        else projected_shifts(model, shifts),
    )


def _own_map(
    values: Float[Tensor, "B D h w"], embeddings: Float[Tensor, "n D"], slopes: Float[Tensor, "_ n D"], kind: str
) -> Float[Tensor, "B n h w"]:
    """What each position adds through the attention of each label."""
    if kind == "label":
        return label_attention(values, embeddings) * torch.einsum("bdhw,bnd->bnhw", values, _whole(slopes, values))
    shares: Tensor = own_shares(values.flatten(2), embeddings, slopes).unflatten(2, values.shape[2:])
    return shares


def _shared_maps(
    values: Float[Tensor, "B D h w"],
    embeddings: Float[Tensor, "E D"],
    slopes: "_GroupSlopes | _JointSlopes",
    kind: str,
    *,
    apart: bool,
) -> Float[Tensor, "B n h w"] | Float[Tensor, "B n E h w"]:
    """What each position adds through the attention of all groups (or labels) together, or of each apart."""
    flat = values.flatten(2)
    if kind == "label":
        attention = label_attention(values, embeddings).flatten(2)  # (B, E, P)
        each = (attention[:, index, None] * (slopes.of(index) @ flat) for index in range(len(embeddings)))
        shares = torch.stack(list(each), dim=2) if apart else sum(each, start=flat.new_zeros(()))
    elif apart:
        shares = shares_of_each(flat, embeddings, slopes.of, slopes.num_rows)
    else:
        shares = shares_of_sum(flat, embeddings, slopes.mix, slopes.of, slopes.num_rows)
    whole: Tensor = shares.unflatten(-1, values.shape[2:])
    return whole


@dataclass(frozen=True)
class _GroupSlopes:
    """How much the logit of each row changes with what each group pools: slopes[n, g, d] = share[n, g] · weight[n, d].

    Attributes:
        weight: Of the groups' features.
        share: Each row's membership in each group.
    """

    weight: Float[Tensor, "n D"]
    share: Float[Tensor, "n G"]

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(self.weight)

    def of(self, index: int) -> Float[Tensor, "1 n D"]:
        """The slopes for one group."""
        return (self.share[:, index, None] * self.weight).unsqueeze(0)

    def part(self, channels: slice) -> "_GroupSlopes":
        """The same for some channels."""
        return _GroupSlopes(self.weight[:, channels], self.share)

    def mix(self, polynomials: Float[Tensor, "G d M"], channels: Channels) -> Float[Tensor, "1 n d M"]:
        """Sum over groups of slopes · polynomials."""
        mixed = (self.share @ polynomials.flatten(1)).unflatten(1, polynomials.shape[1:])  # (n, d, M)
        whole: Tensor = (self.weight[:, channels, None] * mixed).unsqueeze(0)
        return whole

    def pooled(self, features: Float[Tensor, "B G D"]) -> Float[Tensor, "B n G"]:
        """What each group adds over all positions."""
        pooled: Tensor = self.share * (self.weight @ features.transpose(1, 2))
        return pooled


@dataclass(frozen=True)
class _JointSlopes:
    """The same for what each label or group pools and a joint classifier, which is another linear function for every image.

    slopes[b, n, e, d] = sum over h of by_unit[b, n, h] · weight[h, e, d] · bend[b, e, d], of one e at a time, never of all.

    Attributes:
        by_unit: What each hidden unit adds to each row's logit, with the slope of its side.
        weight: From features to hidden units.
        bend: tanh(features) / features.
        but: The label whose slopes are 0 for each row; None for none.
    """

    by_unit: Float[Tensor, "B n H"]
    weight: Float[Tensor, "H E D"]
    bend: Float[Tensor, "B E D"]
    but: list[int] | None = None

    @classmethod
    def of_classifier(
        cls, classifier: JointClassifier, label_features: Tensor, group_features: Tensor, labels: list[int]
    ) -> "_JointSlopes":
        """For the features of some images, labels first, then groups."""
        features = torch.cat([label_features, group_features], dim=1).float()  # (B, L + G, S·D)
        bent = features.tanh()
        sides = torch.where(classifier.fc1(bent.flatten(1)) > 0, 1.0, classifier.activation.negative_slope)  # (B, H)
        bend = torch.where(features == 0, 1.0, bent / torch.where(features == 0, 1.0, features))
        weight = classifier.fc1.weight.unflatten(1, features.shape[1:])
        return cls(classifier.fc2.weight[labels] * sides[:, None], weight, bend)

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return self.by_unit.shape[1]

    def constant(self, classifier: JointClassifier, labels: list[int]) -> Float[Tensor, "B n"]:
        """What the biases of both layers add."""
        added: Tensor = self.by_unit @ classifier.fc1.bias + classifier.fc2.bias[labels]
        return added

    def among(self, features: slice, *, but: list[int] | None = None) -> "_JointSlopes":
        """The same for some labels or groups, but for each row one."""
        return replace(self, weight=self.weight[:, features], bend=self.bend[:, features], but=but)

    def of(self, index: int, channels: Channels = slice(None)) -> Float[Tensor, "B n D"]:
        """The slopes for one label or group, of all channels or some."""
        slopes = (self.by_unit @ self.weight[:, index, channels]).mul_(self.bend[:, index, channels].unsqueeze(1))
        if self.but is not None:
            slopes[:, [row for row, label in enumerate(self.but) if label == index]] = 0.0
        return slopes

    def part(self, channels: slice) -> "_JointSlopes":
        """The same for some channels."""
        return replace(self, weight=self.weight[..., channels], bend=self.bend[..., channels])

    def mix(self, polynomials: Float[Tensor, "E d M"], channels: Channels) -> Float[Tensor, "B n d M"]:
        """Sum over labels or groups of slopes · polynomials."""
        total = polynomials.new_zeros(*self.by_unit.shape[:2], *polynomials.shape[1:])
        for index, polynomial in enumerate(polynomials):
            total.addcmul_(self.of(index, channels).unsqueeze(-1), polynomial)
        return total

    def pooled(self, features: Float[Tensor, "B E D"]) -> Float[Tensor, "B n E"]:
        """What each adds over all positions."""
        each = [self.of(index) @ features[:, index, :, None] for index in range(features.shape[1])]
        return torch.cat(each, dim=2)


def _residual_map(
    residual: torch.nn.Module, feature_map: Float[Tensor, "B C h w"], labels: list[int]
) -> Float[Tensor, "B n h w"]:
    """What each position adds through the head beside the attended stages, without its bias."""
    assert isinstance(residual, AttendedHead | PooledHead)
    weight = residual.linear.weight[labels]  # (n, C)
    if isinstance(residual, PooledHead) and residual.pooling == "max":
        flat = feature_map.flatten(2)
        greatest = flat.max(dim=2)
        added = flat.new_zeros(len(flat), len(labels), flat.shape[2])
        index = greatest.indices.unsqueeze(1).expand(-1, len(labels), -1)
        added.scatter_add_(2, index, weight.to(flat.dtype) * greatest.values.unsqueeze(1))
        whole: Tensor = added.unflatten(2, feature_map.shape[2:])
        return whole
    scores = torch.einsum("bchw,nc->bnhw", feature_map, weight.to(feature_map.dtype))
    share = scores.new_full((), 1 / scores.shape[-2:].numel())
    if isinstance(residual, PooledHead):
        return share * scores
    attended = scores.flatten(2).softmax(dim=2).unflatten(2, scores.shape[2:])
    mixed: Tensor = ((1 - residual.weight) * share + residual.weight * attended) * scores
    return mixed


def _whole(slopes: Tensor, values: Tensor) -> Tensor:
    """Slopes with a row for every image."""
    return slopes.to(values.dtype).expand(len(values), *slopes.shape[1:])
