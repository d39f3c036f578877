"""Mix the images of a batch with one another: MixUp and CutMix, with unknown labels kept unknown."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

import msrn._torchvision  # noqa: F401  (before torchvision, which is imported where it is used)
from msrn.data.loader import mix_seed


class BatchMixing:
    """Mixes every image of a batch with the one before it, by torchvision's MixUp or CutMix.

    The draws follow from seed, epoch and batch alone, and leave torch's global generator as it was: a resumed run mixes as it
    would have. With both switched on, each batch gets one of them, either equally likely.

    Args:
        mixup: Alpha of MixUp's Beta(alpha, alpha), whose draw weighs two images as a whole; 0 switches it off.
        cutmix: Alpha of CutMix, which replaces a rectangle whose share of the area is drawn; 0 switches it off.
        seed: Seed of the run.

    Raises:
        ValueError: Both are switched off, or one is negative.

    Source: MixUp, https://arxiv.org/abs/1710.09412; CutMix, https://arxiv.org/abs/1905.04899.
    """

    def __init__(self, *, mixup: float = 0.0, cutmix: float = 0.0, seed: int = 0) -> None:
        from torchvision.transforms import v2

        if min(mixup, cutmix) < 0 or max(mixup, cutmix) == 0:
            raise ValueError(f"expected mixup or cutmix above 0 and none below, got {mixup} and {cutmix}")
        self.seed = seed
        self.transforms = [
            *([v2.MixUp(alpha=mixup)] if mixup else []),
            *([v2.CutMix(alpha=cutmix)] if cutmix else []),
        ]

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
        # Unknown labels are mixed as if they were labels of their own, which tells where their weight goes.
        labels = torch.cat([target.clamp(min=0), (target < 0).to(target.dtype)], dim=1).float()  # (B, 2 L)
        with torch.random.fork_rng(devices=[]):  # torchvision draws on the CPU
            torch.default_generator.manual_seed(mix_seed(self.seed, epoch, batch_index))
            choice = int(torch.randint(len(self.transforms), ())) if len(self.transforms) > 1 else 0
            images, labels = self.transforms[choice](images, labels)
        present, unknown = labels.chunk(2, dim=1)  # (B, L) each
        # Two weights may add up to a rounding more than 1.
        return images, torch.where(unknown > 0, -1.0, present.clamp(max=1))
