"""Classification losses that leave unknown labels out."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def multilabel_soft_margin_loss(
    logits: Float[Tensor, "B L"], target: Int[Tensor, "B L"] | Float[Tensor, "B L"]
) -> Float[Tensor, ""]:
    """Binary cross-entropy of every known label, averaged over the known labels of the whole batch.

    Equal to `torch.nn.functional.multilabel_soft_margin_loss` where every label is known.

    Args:
        logits: One logit an image and label.
        target: 1 present, 0 absent, -1 unknown; of mixed images, what part of them shows the label.

    Returns:
        The mean loss; 0 (with zero gradients) where every label is unknown.

    Example:
        >>> multilabel_soft_margin_loss(torch.tensor([[0.0, 9.0]]), torch.tensor([[1, -1]]))
        tensor(0.6931)
    """
    known = target >= 0  # (B, L)
    losses = F.binary_cross_entropy_with_logits(logits, target.clamp(min=0).to(logits.dtype), reduction="none")
    return torch.where(known, losses, 0.0).sum() / known.sum().clamp(min=1)
