"""The exact form, one label at a time: nothing of size labels x channels x positions is ever stored.

With a = softmax_p(e f_p) and o = sum_p a_p f_p for one image, label and channel,

    do/de = sum_p a_p (f_p - o)^2        do/df_p = a_p (1 + e (f_p - o)),

so the backward pass recomputes `a` from the features and keeps only inputs and result.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


class _AttendByLabel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, embeddings: Tensor) -> Tensor:
        pooled = features.new_empty(features.shape[0], embeddings.shape[0], features.shape[1])  # (B, L, D)
        for label, embedding in enumerate(embeddings):
            weights = (features * embedding[:, None]).softmax(dim=-1)  # (B, D, P)
            pooled[:, label] = weights.mul_(features).sum(dim=-1)
        ctx.save_for_backward(features, embeddings, pooled)
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        features, embeddings, pooled = ctx.saved_tensors
        grad_features = torch.zeros_like(features)  # (B, D, P)
        grad_embeddings = torch.empty_like(embeddings)  # (L, D)
        for label, embedding in enumerate(embeddings):
            weights = (features * embedding[:, None]).softmax(dim=-1)  # (B, D, P)
            offsets = features - pooled[:, label, :, None]  # (B, D, P)
            weights *= grad[:, label, :, None]
            grad_features += weights
            weights *= offsets
            grad_features.addcmul_(weights, embedding[:, None].expand_as(weights))
            grad_embeddings[label] = weights.mul_(offsets).sum(dim=(0, 2))
        return grad_features, grad_embeddings


def attend_by_label(features: Float[Tensor, "B D P"], embeddings: Float[Tensor, "L D"]) -> Float[Tensor, "B L D"]:
    """`attend_reference` in memory O(labels x channels), forward and backward."""
    pooled: Tensor = _AttendByLabel.apply(features, embeddings)
    return pooled
