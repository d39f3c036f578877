import math

import pytest
import torch

from msrn.metrics import MeanAveragePrecision, MultilabelMetrics, evaluate_predictions, mean_average_precision


def make_case() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    preds = torch.rand(10, 3, generator=generator)
    return preds, torch.randint(-1, 2, (10, 3), generator=generator)


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_batches_give_the_report_of_the_whole(batch_size: int) -> None:
    preds, target = make_case()
    metrics = MultilabelMetrics(["cat", "dog", "owl"], threshold=torch.tensor([0.2, 0.5, 0.7]))
    mean = MeanAveragePrecision()
    for batch in zip(preds.split(batch_size), target.split(batch_size), strict=True):
        metrics.update(*batch)
        mean.update(*batch)
    expected = evaluate_predictions(preds, target, ["cat", "dog", "owl"], threshold=torch.tensor([0.2, 0.5, 0.7]))
    assert metrics.compute() == expected
    assert mean.compute() == mean_average_precision(preds, target)


def test_two_processes_are_joined() -> None:
    preds, target = make_case()
    halves = [MeanAveragePrecision(), MeanAveragePrecision()]
    halves[0].update(preds[:4], target[:4])
    halves[1].update(preds[4:], target[4:])

    def gather(tensor: torch.Tensor, group: object = None) -> list[torch.Tensor]:
        name = "preds" if tensor.is_floating_point() else "target"
        return [torch.cat(getattr(half, name)) for half in halves]

    merged = MeanAveragePrecision(dist_sync_fn=gather, distributed_available_fn=lambda: True)
    merged.update(preds[:4], target[:4])
    assert merged.compute() == mean_average_precision(preds, target)


def test_reset_forgets_and_forward_gives_the_batch() -> None:
    preds, target = make_case()
    metric = MeanAveragePrecision()
    metric.update(preds[:4], target[:4])
    batch_value = metric(preds[4:], target[4:])
    assert batch_value == mean_average_precision(preds[4:], target[4:])
    assert metric.compute() == mean_average_precision(preds, target)
    metric.reset()
    metric.update(preds[:5], target[:5])
    assert metric.compute() == mean_average_precision(preds[:5], target[:5])


def test_a_bad_batch_is_refused_at_once() -> None:
    metric = MeanAveragePrecision()
    with pytest.raises(ValueError, match="got NaN in 1 rows, the first is row 0"):
        metric.update(torch.tensor([[math.nan]]), torch.tensor([[1]]))
    metric.update(torch.tensor([[0.5]]), torch.tensor([[1]]))
    assert metric.compute() == 1
