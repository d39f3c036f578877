"""Mixed batches: as a plain loop mixes them, unknown labels unknown, the same whenever they are drawn again."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from msrn.data.mixing import BatchMixing


def make_batch(seed: int = 0, num_images: int = 5, num_labels: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(num_images, 3, 12, 16, generator=generator)
    return images, torch.randint(-1, 2, (num_images, num_labels), generator=generator)


def mix_plainly(target: Tensor, weights: list[float]) -> Tensor:
    """Targets of images that show themselves by a weight and the image before them by the rest."""
    mixed = torch.zeros(target.shape)
    for row, label in torch.cartesian_prod(*(torch.arange(size) for size in target.shape)).tolist():
        parents = ((weights[row], target[row, label]), (1 - weights[row], target[row - 1, label]))
        is_unknown = any(weight > 0 and value == -1 for weight, value in parents)
        mixed[row, label] = -1 if is_unknown else sum(weight * float(value) for weight, value in parents if weight > 0)
    return mixed


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), alpha=st.sampled_from([0.05, 0.4, 1.0, 8.0]), num_images=st.integers(1, 6))
def test_mixup_weighs_images_and_labels_alike(seed: int, alpha: float, num_images: int) -> None:
    images, target = make_batch(seed, num_images)
    mixed, labels = BatchMixing(mixup=alpha, seed=seed)(images, target, epoch=0, batch_index=0)
    before = images.roll(1, 0)
    # mixed = w * images + (1 - w) * before; 1 where an image is its own neighbour
    difference = images - before
    weight = float(((mixed - before) * difference).sum() / (difference**2).sum()) if num_images > 1 else 1.0
    torch.testing.assert_close(mixed, weight * images + (1 - weight) * before)
    if 1e-4 < weight < 1 - 1e-4 or num_images == 1:
        torch.testing.assert_close(labels, mix_plainly(target, [weight] * num_images), atol=1e-5, rtol=0)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), alpha=st.sampled_from([0.2, 1.0]))
def test_cutmix_replaces_a_rectangle_and_weighs_labels_by_its_area(seed: int, alpha: float) -> None:
    images, target = make_batch(seed)
    mixed, labels = BatchMixing(cutmix=alpha, seed=seed)(images, target, epoch=0, batch_index=0)
    is_own = (mixed == images).all(dim=1)  # (B, H, W)
    assert torch.equal(mixed, torch.where(is_own[:, None], images, images.roll(1, 0)))
    assert (is_own == is_own[0]).all()
    rows, columns = (~is_own[0]).any(dim=1), (~is_own[0]).any(dim=0)
    assert torch.equal(~is_own[0], rows[:, None] & columns)
    weights = is_own.float().mean(dim=(1, 2)).tolist()
    torch.testing.assert_close(labels, mix_plainly(target, weights), atol=1e-6, rtol=0)


def test_an_image_of_no_weight_brings_no_unknown_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(2, 3, 4, 4)
    target = torch.tensor([[1, -1], [-1, 0]])
    mixing = BatchMixing(mixup=1.0)
    for weight, expected in ((1.0, [[1, -1], [-1, 0]]), (0.0, [[-1, 0], [1, -1]]), (0.5, [[-1, -1], [-1, -1]])):
        monkeypatch.setattr(torch.distributions.Beta, "sample", lambda *_, weight=weight: torch.tensor(weight))
        assert mixing(images, target, epoch=0, batch_index=0)[1].tolist() == expected


def test_targets_stay_within_0_and_1() -> None:
    target = torch.ones(4, 3, dtype=torch.int64)
    for batch_index in range(200):
        _, labels = BatchMixing(mixup=1.0)(torch.zeros(4, 3, 2, 2), target, epoch=0, batch_index=batch_index)
        assert labels.dtype == torch.float32
        assert labels.max() <= 1
        assert labels.min() > 0.999


def test_seed_epoch_and_batch_decide_alone() -> None:
    images, target = make_batch()

    def mix(seed: int, epoch: int, batch_index: int) -> Tensor:
        torch.manual_seed(torch.seed() % 1000)
        mixing = BatchMixing(mixup=1.0, cutmix=1.0, seed=seed)
        return mixing(images, target, epoch=epoch, batch_index=batch_index)[0]

    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    first = [mix(*key) for key in keys]
    assert all(torch.equal(mix(*key), mixed) for key, mixed in zip(keys, first, strict=True))
    assert len({mixed.numpy().tobytes() for mixed in first}) == 4


def test_the_global_generator_and_the_batch_stay_as_they_were() -> None:
    images, target = make_batch()
    copies = images.clone(), target.clone()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    BatchMixing(mixup=1.0, cutmix=1.0)(images, target, epoch=0, batch_index=0)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(images, copies[0])
    assert torch.equal(target, copies[1])


def test_with_both_each_batch_gets_one_of_them() -> None:
    images, target = make_batch()
    mixing = BatchMixing(mixup=1.0, cutmix=1.0)
    mixed = [mixing(images, target, epoch=0, batch_index=batch_index)[0] for batch_index in range(60)]
    is_cut = [bool(((one == images) | (one == images.roll(1, 0))).all()) for one in mixed]
    assert 15 <= sum(is_cut) <= 45


@pytest.mark.parametrize("options", [{}, {"mixup": 0.0, "cutmix": 0.0}, {"mixup": -1.0, "cutmix": 1.0}])
def test_nothing_to_mix_by_is_named(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected mixup or cutmix above 0 and none below, got"):
        BatchMixing(**options)
