"""Nodes fixed beforehand, for inference and export: positions from the embeddings, numbers from calibration images."""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from msrn.ops.semantic_attention import cpu, nodes, operator
from msrn.ops.semantic_attention.common import accumulation_dtype, centred
from msrn.ops.semantic_attention.nodes import Fit
from msrn.ops.semantic_attention.reference import attend_reference


class _Part(nn.Module):
    """Channels that share a number of nodes.

    Attributes:
        channels: Which channels (d,), or None for all in order.
        nodes: Positions of the nodes (M, d).
        transform: From node results to Chebyshev coefficients (M, M).
        offsets: Where the embeddings lie between the nodes, t in [-1, 1] (N, d).
    """

    channels: Tensor | None
    nodes: Tensor
    transform: Tensor
    offsets: Tensor

    def __init__(self, found: Fit, embeddings: Float[Tensor, "N D"]) -> None:
        super().__init__()
        assert found.nodes is not None
        own = embeddings[:, found.channels]  # (N, d)
        self.register_buffer("channels", found.channels if isinstance(found.channels, Tensor) else None)
        self.register_buffer("nodes", found.nodes)
        self.register_buffer("transform", nodes.cosine_transform(found.nodes[None]).clone())  # float64, as there
        self.register_buffer("offsets", nodes.Range.of(own).offsets(own))

    def forward(
        self, values: Float[Tensor, "B P D"], mean: Float[Tensor, "B D"], *, use_standard_operators: bool
    ) -> tuple[Float[Tensor, "B M d"], Bool[Tensor, "B"]]:
        """Chebyshev coefficients, and for which images they vanish at the end."""
        if self.channels is not None:
            values, mean = values.index_select(2, self.channels), mean.index_select(1, self.channels)
        if use_standard_operators:
            pooled = attend_reference(values, self.nodes)  # (B, M, d)
        else:
            pooled = operator.attend(values, self.nodes, operator.exact_backend(values))
        coefficients = (self.transform @ pooled.double()).to(pooled.dtype)  # (B, M, d)
        largest = torch.maximum(values.amax(dim=1), -values.amin(dim=1))  # (B, d)
        is_resolved = nodes.are_resolved(coefficients, pooled.abs().amax(dim=1), largest)  # (B, d)
        coefficients = torch.cat([coefficients[:, :1] + mean[:, None], coefficients[:, 1:]], dim=1)
        return coefficients, is_resolved.all(dim=1)


class FixedNodes(nn.Module):
    """Semantic guided attention of known embeddings, with nodes chosen once from the features of calibration images.

    Args:
        feature_maps: Projected features of calibration images, one stage; the more and the more varied the better.
        embeddings: Label or group embeddings, constants from now on.
        margin: Features of other images may spread this much wider.
        use_standard_operators: Compute the nodes by the plain formulation, for export to runtimes that do not know our operator.

    Raises:
        ValueError: No number of nodes resolves some channel; use an exact form.

    Example:
        >>> features, embeddings = torch.randn(4, 8, 7, 7), torch.rand(100, 8)
        >>> attention = FixedNodes(features, embeddings)
        >>> attention(features).shape
        torch.Size([4, 100, 8])
    """

    order: Tensor

    def __init__(
        self,
        feature_maps: Float[Tensor, "B D H W"],
        embeddings: Float[Tensor, "N D"],
        *,
        margin: float = 1.25,
        use_standard_operators: bool = False,
    ) -> None:
        super().__init__()
        features = feature_maps.detach().flatten(2).transpose(1, 2)  # (B, P, D)
        embeddings = embeddings.detach().to(accumulation_dtype(features))
        fits = list(nodes.fit(centred(features)[0], embeddings, cpu, force=True, margin=margin))
        unresolved = sum(
            1 if isinstance(fit.channels, slice) else len(fit.channels) for fit in fits if fit.nodes is None
        )
        if unresolved:
            raise ValueError(
                f"{unresolved} of {embeddings.shape[1]} channels are not resolved by {nodes.NUM_NODES[-1]} nodes: scores spread "
                "too wide. Use an exact form, or train with bounded embeddings (model.bound)."
            )
        self.parts = nn.ModuleList(_Part(fit, embeddings) for fit in fits)
        channels = [fit.channels for fit in fits if isinstance(fit.channels, Tensor)]
        order = torch.cat(channels).argsort() if channels else torch.arange(embeddings.shape[1])
        self.register_buffer("order", order)
        self.use_standard_operators = use_standard_operators

    @property
    def num_coefficients(self) -> int:
        """Coefficients of an image: nodes x channels, summed over the parts."""
        return sum(part.nodes.numel() for part in self._parts())

    def _parts(self) -> list[_Part]:
        return cast(list[_Part], list(self.parts))

    def forward(self, feature_map: Float[Tensor, "B D H W"]) -> Float[Tensor, "B N D"]:
        """Pooled features of every embedding, interpolated without a check."""
        return self.interpolate(self.coefficients(feature_map)[0])

    def coefficients(
        self, feature_map: Float[Tensor, "B D H W"]
    ) -> tuple[list[Float[Tensor, "B _M _d"]], Bool[Tensor, "B"]]:
        """Chebyshev coefficients part by part, and which images they resolve to rounding."""
        values, mean = centred(feature_map.flatten(2).transpose(1, 2))  # (B, P, D), (B, D)
        found = [part(values, mean, use_standard_operators=self.use_standard_operators) for part in self._parts()]
        is_resolved = torch.stack([resolved for _, resolved in found]).all(dim=0)  # (B,)
        return [coefficients for coefficients, _ in found], is_resolved

    def interpolate(self, coefficients: Sequence[Float[Tensor, "B _M _d"]]) -> Float[Tensor, "B N D"]:
        """Pooled features of every embedding, from coefficients."""
        columns = []
        for part, own in zip(self._parts(), coefficients, strict=True):
            total = torch.zeros_like(part.offsets)  # (N, d)
            for m, polynomial in enumerate(nodes.chebyshev_polynomials(part.offsets, own.shape[1])):
                total = total + own[:, m, None] * polynomial  # (B, N, d)
            columns.append(total)
        return columns[0] if len(columns) == 1 else torch.cat(columns, dim=-1).index_select(2, self.order)

    def fold(
        self, weight: Float[Tensor, "L D"], rows: slice, mix: Float[Tensor, "L N"] | None = None
    ) -> Float[Tensor, "L F"]:
        """What a linear map of the results becomes on the coefficients, the parts flattened one behind the other.

        sum over d of weight[l, d] · o[row(l), d] = folded[l] · coefficients.

        Args:
            weight: Weight of every channel, one row an output.
            rows: The embeddings that belong to the outputs, one each; or, with `mix`, those that are mixed.
            mix: How much of every embedding of `rows` an output sees; None where each sees its own alone.
        """
        folded = []
        for part in self._parts():
            own = weight if part.channels is None else weight[:, part.channels]  # (L, d)
            for polynomial in nodes.chebyshev_polynomials(part.offsets[rows], len(part.nodes)):
                folded.append(own * (polynomial if mix is None else mix @ polynomial))
        return torch.cat(folded, dim=1)
