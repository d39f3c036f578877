"""What the forms share."""

import torch
from jaxtyping import Float
from torch import Tensor


def accumulation_dtype(features: Tensor) -> torch.dtype:
    """Type of sums and results inside a form: float32, or float64 where the features are."""
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def centred(features: Float[Tensor, "*B P D"]) -> tuple[Float[Tensor, "*B P D"], Float[Tensor, "*B D"]]:
    """Features less their mean over positions, and that mean, in the accumulation type.

    A constant changes no attention weight and moves the result by itself; without it scores are small, and so are rounding errors.
    """
    values = features.to(accumulation_dtype(features))
    mean = values.mean(dim=-2)
    return values - mean.unsqueeze(-2), mean
