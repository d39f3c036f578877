"""From label and group features to one logit a label."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class JointClassifier(nn.Module):
    """The published classifier: tanh, all labels and groups flattened, two fully connected layers.

    Holds (L + G) · dim · hidden_dim weights: 75.5 million at 20 labels and 264 million at 80 with the published sizes.

    Args:
        num_labels: Labels L.
        num_groups: Groups G.
        dim: Width of a label's features over all stages, S·D.
        hidden_dim: Width between the two layers.

    Source: MSRN, https://arxiv.org/abs/2106.11596, section 3.5.
    """

    def __init__(self, num_labels: int, num_groups: int, dim: int, *, hidden_dim: int = 2048) -> None:
        super().__init__()
        self.fc1 = nn.Linear((num_labels + num_groups) * dim, hidden_dim)
        self.activation = nn.LeakyReLU()
        self.fc2 = nn.Linear(hidden_dim, num_labels)

    def forward(
        self,
        label_features: Float[Tensor, "B L SD"],
        group_features: Float[Tensor, "B G SD"],
        assignment: Float[Tensor, "L G"],
    ) -> Float[Tensor, "B L"]:
        """Logits; the assignment is not used."""
        hidden = torch.cat([label_features, group_features], dim=1).tanh().flatten(1)  # (B, (L + G)·S·D)
        logits: Tensor = self.fc2(self.activation(self.fc1(hidden)))
        return logits

    def contributions(
        self,
        label_features: Float[Tensor, "B L SD"],
        group_features: Float[Tensor, "B G SD"],
        assignment: Float[Tensor, "L G"],
        labels: Sequence[int],
    ) -> Float[Tensor, "B n SD"]:
        """What each entry of a label's own features adds to its logit, to first order: gradient times entry."""
        # Tensors made in inference mode take gradients as clones.
        with torch.inference_mode(False), torch.enable_grad():
            features = label_features.clone().detach().requires_grad_()
            logits = self(features, group_features.clone().detach(), assignment.clone().detach())  # (B, L)
            slopes = [torch.autograd.grad(logits[:, i].sum(), features, retain_graph=True)[0][:, i] for i in labels]
        return torch.stack(slopes, dim=1) * label_features[:, list(labels)]


class PerLabelClassifier(nn.Module):
    """Each label sees its own features and its groups' through the assignment; linear in the number of labels.

    logits[l] = scale · (label_weight[l] · O[l] + group_weight[l] · sum over groups of assignment[l, g] Q[g]) + bias[l].

    Args:
        num_labels: Labels L.
        dim: Width of a label's features over all stages, S·D.
        scale: Factor on the features. Their squared length times the learning rate decides how far a step moves the logits;
            without a factor it grows with the width.
        zero_init: Start with all weights zero, so that the residual of a common loss alone decides at first.
        has_groups: Whether there are groups; without, the sum over groups and its weights are left out.
    """

    def __init__(
        self, num_labels: int, dim: int, *, scale: float = 1.0, zero_init: bool = False, has_groups: bool = True
    ) -> None:
        super().__init__()
        self.scale = scale
        self.label_weight = nn.Parameter(torch.empty(num_labels, dim))
        self.group_weight = nn.Parameter(torch.empty(num_labels, dim)) if has_groups else None
        self.bias = nn.Parameter(torch.zeros(num_labels))
        bound = 0.0 if zero_init else dim**-0.5
        nn.init.uniform_(self.label_weight, -bound, bound)
        if self.group_weight is not None:
            nn.init.uniform_(self.group_weight, -bound, bound)

    def forward(
        self,
        label_features: Float[Tensor, "B L SD"],
        group_features: Float[Tensor, "B G SD"],
        assignment: Float[Tensor, "L G"],
        labels: slice = slice(None),
    ) -> Float[Tensor, "B L"]:
        """Logits; no (B, L, S·D) tensor beside the given one is built.

        Args:
            label_features: Features of the labels chosen.
            group_features: Features of all groups.
            assignment: Membership of the labels chosen.
            labels: Which labels these are; all by default. Large label sets go block by block.
        """
        own = torch.einsum("bld,ld->bl", label_features, self.label_weight[labels])
        if self.group_weight is None:
            return self.scale * own + self.bias[labels]
        by_group = torch.einsum("bgd,ld->bgl", group_features, self.group_weight[labels])  # (B, G, L)
        shared = torch.einsum("bgl,lg->bl", by_group, assignment)
        return self.scale * (own + shared) + self.bias[labels]

    def contributions(
        self,
        label_features: Float[Tensor, "B L SD"],
        group_features: Float[Tensor, "B G SD"],
        assignment: Float[Tensor, "L G"],
        labels: Sequence[int],
    ) -> Float[Tensor, "B n SD"]:
        """What each entry of a label's own features adds to its logit."""
        chosen = list(labels)
        return self.scale * self.label_weight[chosen] * label_features[:, chosen]
