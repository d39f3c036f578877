"""Mix the images of a batch with one another: MixUp and CutMix, with unknown labels kept unknown."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

import msrn._torchvision  # noqa: F401  (before torchvision, which is imported where it is used)
from msrn.data.loader import mix_seed


@dataclass(frozen=True)
class BatchMixing:
    """Mixes every image of a batch with the one before it, by torchvision's MixUp or CutMix.

    The draws follow from seed, epoch and batch alone, and leave torch's global generator as it was: a resumed run mixes as it
    would have. With both switched on, each batch gets one of them, either equally likely.

    Attributes:
        mixup: Alpha of MixUp's Beta(alpha, alpha), whose draw weighs two images as a whole; 0 switches it off.
        cutmix: Alpha of CutMix, which replaces a rectangle whose share of the area is drawn; 0 switches it off.
        seed: Seed of the run.

    Raises:
        ValueError: Both are switched off, or one is negative.

    Source: MixUp, https://arxiv.org/abs/1710.09412; CutMix, https://arxiv.org/abs/1905.04899.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.mixup, self.cutmix) < 0 or max(self.mixup, self.cutmix) == 0:
            raise ValueError(
                f"expected mixup or cutmix above 0 and none below, got {self.mixup} and {self.cutmix}. "
                "Set one, or leave mixing out."
            )

    def __call__(
        self, images: Float[Tensor, "B C H W"], target: Int[Tensor, "B L"], *, epoch: int, batch_index: int
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B L"]]:
        """Mix a batch.

        Args:
            images: Normalised images.
            target: 1 present, 0 absent, -1 unknown.
            epoch: Number of the epoch.
            batch_index: Number of the batch in it.

        Returns:
            Mixed images, and for each label the weight of the images that show it, 0 to 1; -1 where it is unknown in one whose
            weight is not 0.
        """
        from torchvision.transforms import v2

        # Unknown labels are mixed as if they were labels of their own, which tells where their weight goes.
        labels = torch.cat([target.clamp(min=0), (target < 0).to(target.dtype)], dim=1).float()  # (B, 2 L)
        with torch.random.fork_rng(devices=[]):  # torchvision draws on the CPU
            # One number more than for images, so that no image draws what a batch does.
            torch.default_generator.manual_seed(mix_seed(self.seed, epoch, batch_index, 0))
            is_cut = self.cutmix > 0 and (self.mixup == 0 or bool(torch.rand(()) < 0.5))
            mix = v2.CutMix(alpha=self.cutmix) if is_cut else v2.MixUp(alpha=self.mixup)
            images, labels = mix(images, labels)
        present, unknown = labels.chunk(2, dim=1)  # (B, L) each
        # Two weights may add up to a rounding more than 1.
        return images, torch.where(unknown > 0, -1.0, present.clamp(max=1))
