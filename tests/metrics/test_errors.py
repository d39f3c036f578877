import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from msrn.metrics import co_errors, likely_annotation_errors


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), num_images=st.integers(1, 30))
def test_co_errors_are_those_of_a_plain_loop(seed: int, num_images: int) -> None:
    rng = np.random.default_rng(seed)
    preds, target = rng.random((num_images, 4)), rng.integers(-1, 2, (num_images, 4))
    thresholds = torch.from_numpy(rng.random(4))
    expected = np.zeros((4, 4), dtype=int)
    for p, t in zip(preds, target, strict=True):
        for said in range(4):
            for missed in range(4):
                is_false_alarm = p[said] >= thresholds[said] and t[said] == 0
                expected[said, missed] += is_false_alarm and p[missed] < thresholds[missed] and t[missed] == 1
    found = co_errors(torch.from_numpy(preds), torch.from_numpy(target), threshold=thresholds)
    assert found.tolist() == expected.tolist()


def test_flipped_labels_come_first() -> None:
    """With 5 % of the entries flipped: average precision of the ranking, where a random one has 0.05."""
    rng = np.random.default_rng(0)
    true = rng.random((1_000, 10)) < 0.1
    preds = 1 / (1 + np.exp(-(5 * true - 3 + rng.normal(size=true.shape))))
    flipped = rng.random(true.shape) < 0.05
    target = (true ^ flipped).astype(np.int64)
    target[:50] = -1
    found = likely_annotation_errors(torch.from_numpy(preds), torch.from_numpy(target), most=20_000)
    assert len(found.images) == 950 * 10  # unknown entries are not among them
    assert bool((found.probs.diff() <= 0).all())
    ranked = flipped[found.images.numpy(), found.labels.numpy()]
    assert average_precision_score(ranked, -np.arange(len(ranked))) > 0.8
    assert len(likely_annotation_errors(torch.from_numpy(preds), torch.from_numpy(target), most=7).images) == 7
