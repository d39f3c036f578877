"""Classification losses that leave unknown labels out, and weights of labels counted on the training images.

Every loss is a mean over the known labels of a batch. A target between 0 and 1, as of mixed images, is the chance that the label
is present: the loss is that of a present label times the target, and that of an absent one times the rest.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

LossName = Literal["soft_margin", "asymmetric", "focal"]
LabelWeighting = Literal["none", "inverse", "sqrt", "effective"]


@dataclass(frozen=True)
class LossSettings:
    """A classification loss.

    Attributes:
        name: "soft_margin" (binary cross-entropy), "asymmetric" or "focal".
        gamma_neg: How much an asymmetric loss looks away from absent labels that are found absent.
        gamma_pos: The same of present labels.
        clip: Absent labels below this probability are left out by an asymmetric loss.
        has_focus_gradient: Whether the gradient of an asymmetric loss goes through its focusing weights too.
        gamma: How much a focal loss looks away from labels that are found right.
        alpha: Weight of present labels in a focal loss, absent ones having the rest; None weighs neither.
        label_weights: How the present labels are weighed, see `positive_weights`.
        beta: How many images say the same, see `positive_weights`.
    """

    name: LossName = "soft_margin"
    gamma_neg: float = 4.0
    gamma_pos: float = 0.0
    clip: float = 0.05
    has_focus_gradient: bool = True
    gamma: float = 2.0
    alpha: float | None = 0.25
    label_weights: LabelWeighting = "none"
    beta: float = 0.999


class MultilabelLoss(nn.Module):
    """A loss with its settings, from logits and target to a mean over known labels.

    Args:
        settings: Which loss.
        target: Target (N, L) of the training images, on which label weights are counted.

    Example:
        >>> loss = MultilabelLoss(LossSettings(label_weights="inverse"), torch.tensor([[1, 1], [1, 0], [1, 0]]))
        >>> loss.positive_weights
        tensor([0.6667, 2.0000])
    """

    positive_weights: Tensor | None

    def __init__(self, settings: LossSettings, target: Int[Tensor, "N L"]) -> None:
        super().__init__()
        self.settings = settings
        weights = None
        if settings.label_weights != "none":
            weights = positive_weights(target, settings.label_weights, beta=settings.beta)
        self.register_buffer("positive_weights", weights, persistent=False)  # they follow from the training images

    def forward(
        self, logits: Float[Tensor, "B L"], target: Int[Tensor, "B L"] | Float[Tensor, "B L"]
    ) -> Float[Tensor, ""]:
        """The mean loss of the known labels."""
        settings, weights = self.settings, self.positive_weights
        if settings.name == "focal":
            return focal_loss(logits, target, gamma=settings.gamma, alpha=settings.alpha, positive_weights=weights)
        if settings.name == "asymmetric":
            return asymmetric_loss(
                logits,
                target,
                gamma_neg=settings.gamma_neg,
                gamma_pos=settings.gamma_pos,
                clip=settings.clip,
                has_focus_gradient=settings.has_focus_gradient,
                positive_weights=weights,
            )
        return multilabel_soft_margin_loss(logits, target, positive_weights=weights)


def multilabel_soft_margin_loss(
    logits: Float[Tensor, "B L"],
    target: Int[Tensor, "B L"] | Float[Tensor, "B L"],
    *,
    positive_weights: Float[Tensor, " L"] | None = None,
) -> Float[Tensor, ""]:
    """Binary cross-entropy of every known label, averaged over the known labels of the whole batch.

    Equal to `torch.nn.functional.multilabel_soft_margin_loss` where every label is known.

    Args:
        logits: One logit an image and label.
        target: 1 present, 0 absent, -1 unknown; of mixed images, what part of them shows the label.
        positive_weights: Factor on the loss of a label where it is present.

    Returns:
        The mean loss; 0 (with zero gradients) where every label is unknown.

    Example:
        >>> multilabel_soft_margin_loss(torch.tensor([[0.0, 9.0]]), torch.tensor([[1, -1]]))
        tensor(0.6931)
    """
    logits, share, known = _known(logits, target)
    losses = F.binary_cross_entropy_with_logits(logits, share, pos_weight=positive_weights, reduction="none")
    return _mean(losses, known)


def focal_loss(
    logits: Float[Tensor, "B L"],
    target: Int[Tensor, "B L"] | Float[Tensor, "B L"],
    *,
    gamma: float = 2.0,
    alpha: float | None = 0.25,
    positive_weights: Float[Tensor, " L"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy that looks away from labels that are found right already.

    With p the probability: -alpha (1 - p)^gamma log p of a present label, -(1 - alpha) p^gamma log(1 - p) of an absent one. The
    paper divides the sum by the number of objects; this is the mean over known labels, as of the other losses.

    Args:
        logits: One logit an image and label.
        target: 1 present, 0 absent, -1 unknown; of mixed images, what part of them shows the label.
        gamma: How much it looks away; 0 gives the (weighed) cross-entropy.
        alpha: Weight of present labels; None weighs neither.
        positive_weights: Factor on the loss of a label where it is present.

    Returns:
        The mean loss; 0 (with zero gradients) where every label is unknown.

    Example:
        >>> focal_loss(torch.tensor([[0.0, 9.0]]), torch.tensor([[1, -1]]), alpha=None)    # 0.5^2 log 2
        tensor(0.1733)

    Source: Lin et al., Focal Loss for Dense Object Detection, https://arxiv.org/abs/1708.02002.
    """
    logits, share, known = _known(logits, target)
    log_p, log_not_p = F.logsigmoid(logits), F.logsigmoid(-logits)  # (B, L)
    present, absent = -(gamma * log_not_p).exp() * log_p, -(gamma * log_p).exp() * log_not_p  # (B, L)
    if alpha is not None:
        present, absent = alpha * present, (1 - alpha) * absent
    return _mean(_mixed(present, absent, share, positive_weights), known)


def asymmetric_loss(
    logits: Float[Tensor, "B L"],
    target: Int[Tensor, "B L"] | Float[Tensor, "B L"],
    *,
    gamma_neg: float = 4.0,
    gamma_pos: float = 0.0,
    clip: float = 0.05,
    has_focus_gradient: bool = True,
    positive_weights: Float[Tensor, " L"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy that looks away from the many absent labels which are found absent already (ASL).

    With p the probability and q = max(p - clip, 0): -(1 - p)^gamma_pos log p of a present label, -q^gamma_neg log(1 - q) of an
    absent one. The authors take the sum over a batch; this is the mean over known labels, so learning rates differ.

    Args:
        logits: One logit an image and label.
        target: 1 present, 0 absent, -1 unknown; of mixed images, what part of them shows the label.
        gamma_neg: How much it looks away from absent labels.
        gamma_pos: How much it looks away from present labels.
        clip: Absent labels below this probability, and gradients of those, are left out.
        has_focus_gradient: Whether the gradient goes through (1 - p)^gamma_pos and q^gamma_neg too, as in the paper. The authors'
            training switches it off, so that these only weigh the gradient of the cross-entropy.
        positive_weights: Factor on the loss of a label where it is present.

    Returns:
        The mean loss; 0 (with zero gradients) where every label is unknown.

    Example:
        >>> asymmetric_loss(torch.tensor([[0.0, 9.0]]), torch.tensor([[0, -1]]))    # 0.45^4 log(1 / 0.55)
        tensor(0.0245)

    Source: Ridnik et al., Asymmetric Loss For Multi-Label Classification, https://arxiv.org/abs/2009.14119.
    """
    logits, share, known = _known(logits, target)
    log_p, log_not_p = F.logsigmoid(logits), F.logsigmoid(-logits)  # (B, L)
    # Powers of probabilities as exp(gamma log p): the derivative of p^gamma is not finite at 0 for gamma below 1.
    focus_pos = (gamma_pos * log_not_p).exp()  # (B, L)
    if clip > 0:
        is_kept = log_p.exp() > clip  # (B, L)
        q = torch.where(
            is_kept, logits.sigmoid() - clip, 0.5
        )  # whatever stands where nothing is kept, it gets no gradient
        focus_neg = torch.where(is_kept, q**gamma_neg, 0.0)
        log_not_q = torch.log1p(-q)
    else:
        focus_neg, log_not_q = (gamma_neg * log_p).exp(), log_not_p
    if not has_focus_gradient:
        focus_pos, focus_neg = focus_pos.detach(), focus_neg.detach()
    return _mean(_mixed(-focus_pos * log_p, -focus_neg * log_not_q, share, positive_weights), known)


def positive_weights(
    target: Int[Tensor, "N L"], rule: Literal["inverse", "sqrt", "effective"], *, beta: float = 0.999
) -> Float[Tensor, " L"]:
    """Weights of the labels where they are present, so that rare ones are not drowned by frequent ones.

    With n the images that show a label, the weight is proportional to 1 / n ("inverse": all labels weigh the same together),
    1 / sqrt(n) ("sqrt"), or (1 - beta) / (1 - beta^n) ("effective": images of a label repeat one another, so that n of them are
    worth no more than 1 / (1 - beta)). Only known labels are counted: n is their share that is present, times N. The weights are
    scaled so that the present labels of all images together weigh as much as without; a label that is never present weighs 1.

    Args:
        target: 1 present, 0 absent, -1 unknown, of the training images.
        rule: Which of them.
        beta: Between 0 (every label weighs the same) and 1 (as "inverse"), for "effective".

    Example:
        >>> positive_weights(torch.tensor([[1, 1], [1, 0], [1, 0]]), "inverse")    # 3 and 1 present: 4 / 2 each
        tensor([0.6667, 2.0000])

    Source: Cui et al., Class-Balanced Loss Based on Effective Number of Samples, https://arxiv.org/abs/1901.05555.
    """
    present = (target == 1).sum(dim=0).double()  # (L,)
    known = (target >= 0).sum(dim=0)
    counts = len(target) * present / known.clamp(min=1)  # (L,)
    exponent = {"inverse": -1.0, "sqrt": -0.5}.get(rule)
    weights = (1 - beta) / (1 - beta**counts) if exponent is None else counts**exponent
    weights = torch.where(present > 0, weights, 0.0)
    weights = weights * present.sum() / (present * weights).sum()
    return torch.where(present > 0, weights, 1.0).float()


def _known(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits in at least float32 (0 where the label is unknown), the share of present, and what is known."""
    known = target >= 0  # (B, L)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    # Chosen ahead of all arithmetic: an unknown label gets a gradient of zero even where its logit is not finite.
    return torch.where(known, logits, 0.0), target.clamp(min=0).to(logits.dtype), known


def _mixed(present: Tensor, absent: Tensor, share: Tensor, positive_weights: Tensor | None) -> Tensor:
    if positive_weights is not None:
        present = present * positive_weights
    return share * present + (1 - share) * absent


def _mean(losses: Tensor, known: Tensor) -> Tensor:
    return torch.where(known, losses, 0.0).sum() / known.sum().clamp(min=1)
