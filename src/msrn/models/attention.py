"""Semantic guided attention over several backbone stages."""

import copy
from collections.abc import Sequence
from typing import Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from msrn.models.label_group import LabelGroups
from msrn.ops import semantic_guided_attention
from msrn.ops.semantic_attention import Backend

Pooling = Literal["max", "avg", "none"]
Poolings = Pooling | Literal["auto"] | Sequence[Pooling]
AttentionKind = Literal["channel", "label"]


class StageProjection(nn.Module):
    """Bring one stage to the width of the embeddings: [1x1 convolution] -> [2x2 pooling] -> 1x1 convolution -> [norm].

    Args:
        in_channels: Channels of the stage.
        dim: Width D of the embeddings.
        pooling: 2x2 pooling between the convolutions; "none" keeps every position. A map of a single row or column is
            not pooled.
        has_buffer: A 1x1 convolution that keeps the channels, ahead of the pooling.
        normalize: Normalise every projected channel to mean 0 and variance 1 over images and positions (batch norm), so that
            attention scores stay bounded.
    """

    def __init__(
        self, in_channels: int, dim: int, *, pooling: Pooling = "max", has_buffer: bool = False, normalize: bool = False
    ) -> None:
        super().__init__()
        self.buffer = nn.Conv2d(in_channels, in_channels, 1) if has_buffer else nn.Identity()
        self.pooling = pooling
        self.projection = nn.Conv2d(in_channels, dim, 1, bias=not normalize)  # a norm would cancel the bias
        self.norm = nn.BatchNorm2d(dim) if normalize else nn.Identity()

    def forward(self, feature_map: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """Projected features of the stage."""
        projected: Tensor = self.norm(self.projection(self.pool(feature_map)))
        return projected

    def pool(self, feature_map: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        """The stage after its buffer convolution and pooling, before the projection."""
        feature_map = self.buffer(feature_map)
        if self.pooling == "none" or min(feature_map.shape[-2:]) < 2:
            return feature_map
        return F.max_pool2d(feature_map, 2) if self.pooling == "max" else F.avg_pool2d(feature_map, 2)

    @torch.no_grad()
    def merged(self) -> "StageProjection":
        """The same for inference, with the norm and, where pooling is linear, the buffer merged into the projection."""
        weight = self.projection.weight.double().flatten(1)  # (D, C)
        bias = weight.new_zeros(len(weight)) if self.projection.bias is None else self.projection.bias.double()
        buffer = self.buffer if isinstance(self.buffer, nn.Conv2d) else None
        if buffer is not None and buffer.bias is not None and self.pooling != "max":
            weight, bias = weight @ buffer.weight.double().flatten(1), bias + weight @ buffer.bias.double()
            buffer = None
        if isinstance(self.norm, nn.BatchNorm2d):
            mean, variance = self.norm.running_mean, self.norm.running_var
            assert mean is not None
            assert variance is not None
            factor = self.norm.weight.double() / (variance.double() + self.norm.eps).sqrt()  # (D,)
            weight, bias = weight * factor[:, None], (bias - mean.double()) * factor + self.norm.bias.double()
        stage = StageProjection(weight.shape[1], len(weight), pooling=self.pooling)
        stage.to(self.projection.weight)
        stage.projection.weight.copy_(weight[:, :, None, None])
        assert stage.projection.bias is not None
        stage.projection.bias.copy_(bias)
        stage.buffer = stage.buffer if buffer is None else buffer
        return stage.eval()


class SemanticGuidedAttention(nn.Module):
    """Let label and group embeddings choose, for every stage and channel, how the positions are pooled.

    Args:
        channels: Channels of the backbone's stages, finest first.
        dim: Width D of the embeddings.
        pooling: 2x2 pooling of the stages: one word for all, or one a stage; "auto" pools all but the last, the coarsest, by max.
        has_buffers: Which stages have a 1x1 convolution ahead of the pooling: one truth for all, or one a stage.
        normalize: Normalise the projected maps.
        is_bounded: Label and group embeddings share a bounded range, so that the same few nodes serve both.
        kind: "channel" lets every channel of a label attend on its own, as published; "label" gives all channels of a label
            one attention (`attend_by_label`), to compare with.
        backend: The form of `semantic_guided_attention`.

    Raises:
        ValueError: A list of settings is not as long as the list of stages, or the kind is unknown.

    Source: MSRN, https://arxiv.org/abs/2106.11596, section 3.4.
    """

    def __init__(
        self,
        channels: Sequence[int],
        dim: int,
        *,
        pooling: Poolings = "max",
        has_buffers: bool | Sequence[bool] = False,
        normalize: bool = False,
        is_bounded: bool = False,
        kind: AttentionKind = "channel",
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        if kind not in get_args(AttentionKind):
            raise ValueError(f"attention is a 'channel' or a 'label', got {kind!r}.")
        self.is_bounded = is_bounded
        self.kind: AttentionKind = kind
        self.backend: Backend = backend
        num_stages = len(channels)
        poolings = _pooling_of_stages(pooling, num_stages)
        buffers = [has_buffers] * num_stages if isinstance(has_buffers, bool) else list(has_buffers)
        for name, setting in (("pooling", poolings), ("has_buffers", buffers)):
            if len(setting) != num_stages:
                raise ValueError(
                    f"{name} has {len(setting)} entries for {num_stages} stages. Give one, or one a stage."
                )
        self.stages = nn.ModuleList(
            StageProjection(stage_channels, dim, pooling=stage_pooling, has_buffer=has_buffer, normalize=normalize)
            for stage_channels, stage_pooling, has_buffer in zip(channels, poolings, buffers, strict=True)
        )

    def forward(
        self, feature_maps: Sequence[Float[Tensor, "B _C _H _W"]], label_groups: LabelGroups
    ) -> tuple[Float[Tensor, "B L SD"], Float[Tensor, "B G SD"]]:
        """Label features O and group features Q, the stages joined along channels."""
        return self.attend(self.project(feature_maps), label_groups)

    def project(self, feature_maps: Sequence[Float[Tensor, "B _C _H _W"]]) -> list[Float[Tensor, "B D _h _w"]]:
        """The stages as attention sees them."""
        return [stage(feature_map) for stage, feature_map in zip(self.stages, feature_maps, strict=True)]

    def attend(
        self, projected: Sequence[Float[Tensor, "B D _h _w"]], label_groups: LabelGroups
    ) -> tuple[Float[Tensor, "B L SD"], Float[Tensor, "B G SD"]]:
        """Label and group features of projected stages."""
        labels, groups = label_groups.label_embeddings, label_groups.group_embeddings
        if self.is_bounded:
            features = self.pool(projected, torch.cat([labels, groups]))  # (B, L + G, S·D)
            return features[:, : len(labels)], features[:, len(labels) :]
        # Unbounded groups spread several times wider than labels: a few rows of the exact form, instead of more nodes for all.
        return self.pool(projected, labels), self.pool(projected, groups)

    def pool(
        self, projected: Sequence[Float[Tensor, "B D _h _w"]], embeddings: Float[Tensor, "N D"]
    ) -> Float[Tensor, "B N SD"]:
        """What some embeddings attend to in projected stages."""
        if len(embeddings) == 0:
            return embeddings.new_empty(len(projected[0]), 0, len(projected) * embeddings.shape[1])
        if self.kind == "label":
            return torch.cat([attend_by_label(stage, embeddings) for stage in projected], dim=-1)
        pooled = [semantic_guided_attention(stage, embeddings, backend=self.backend) for stage in projected]
        return torch.cat(pooled, dim=-1)

    def merged(self) -> "SemanticGuidedAttention":
        """The same for inference, every stage merged."""
        merged = copy.copy(self)
        merged._modules = {"stages": nn.ModuleList(cast(StageProjection, stage).merged() for stage in self.stages)}
        return merged


def _pooling_of_stages(pooling: Poolings, num_stages: int) -> list[Pooling]:
    if pooling == "auto":
        return [*cast(list[Pooling], ["max"] * (num_stages - 1)), "none"]
    return [cast(Pooling, pooling)] * num_stages if isinstance(pooling, str) else list(pooling)


def label_attention(
    feature_map: Float[Tensor, "B D H W"], embeddings: Float[Tensor, "N D"]
) -> Float[Tensor, "B N H W"]:
    """One attention a label over the positions of a stage: softmax over p of f[b, :, p] · e[n] / sqrt(D).

    Example:
        >>> label_attention(torch.tensor([[[[0.0, 2.0]]]]), torch.tensor([[0.0], [100.0]])).flatten()
        tensor([0.5000, 0.5000, 0.0000, 1.0000])

    Source: Vaswani et al., Attention Is All You Need, https://arxiv.org/abs/1706.03762, equation 1.
    """
    embeddings = embeddings.to(feature_map.dtype) * embeddings.shape[1] ** -0.5
    scores = torch.einsum("bdhw,nd->bnhw", feature_map, embeddings)
    weights: Tensor = scores.flatten(2).softmax(dim=2).reshape(scores.shape)
    return weights


def attend_by_label(feature_map: Float[Tensor, "B D H W"], embeddings: Float[Tensor, "N D"]) -> Float[Tensor, "B N D"]:
    """Pool a feature map by one attention a label, the same for all its channels: the mean weighted by `label_attention`."""
    return torch.einsum("bnhw,bdhw->bnd", label_attention(feature_map, embeddings), feature_map)
