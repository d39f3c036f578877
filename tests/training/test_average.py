"""The moving average of the weights: how it moves, where it is used, and that it is what a run leaves."""

from pathlib import Path
from typing import Any

import torch
from tiny_training import make_spy, run, same
from torch import Tensor

from msrn.data import LabelledImages
from msrn.training.average import AverageWeights, averaged_weights


def read(run_dir: Path, name: str = "last.ckpt") -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(run_dir / "checkpoints" / name, weights_only=True)
    return checkpoint


def model_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    return {name.removeprefix("model."): value for name, value in checkpoint["state_dict"].items()}


def test_average_is_that_of_a_plain_loop(images: LabelledImages, tmp_path: Path) -> None:
    module = make_spy(images, drop_path=0.2)
    history: list[dict[str, Tensor]] = []

    def remember(epoch: int, batch: int) -> None:
        history.append({name: value.detach().clone() for name, value in module.model.state_dict().items()})

    module.before_step = remember
    run(images, tmp_path, epochs=2, module=module, trainer={"ema_decay": 0.5})
    last = read(tmp_path)
    remember(0, 0)  # the weights after the last step
    expected = {name: value.double() for name, value in history[1].items()}  # the first step is copied
    for count, weights in enumerate(history[2:], start=1):
        decay = min(0.5, (1 + count) / (10 + count))
        for name, value in expected.items():
            expected[name] = decay * value + (1 - decay) * weights[name].double()
    buffers = {name for name, _ in module.model.named_buffers()}
    average = averaged_weights(last)
    assert average is not None
    for name, value in average.items():
        if name in buffers:
            assert torch.equal(value, history[-1][name]), name
        else:
            assert torch.allclose(value.double(), expected[name], atol=1e-6), name
    assert not same(average, model_weights(last))


def test_average_is_validated_and_kept_and_the_model_trains_on(images: LabelledImages, tmp_path: Path) -> None:
    module = make_spy(images)
    seen: dict[str, list[Any]] = {"training": [], "validation": []}
    step = module.validation_step

    def watch(batch: Any, batch_idx: int) -> None:
        seen["validation"].append(module.model)
        assert not module.model.training
        step(batch, batch_idx)

    module.validation_step = watch  # type: ignore[method-assign]
    module.before_step = lambda epoch, batch: seen["training"].append((module.model, module.model.training))
    own = module.model
    result = run(images, tmp_path, epochs=2, module=module, trainer={"ema_decay": 0.9})
    assert {id(model) for model, _ in seen["training"]} == {id(own)}
    assert all(is_training for _, is_training in seen["training"])
    assert len({id(model) for model in seen["validation"]} | {id(own)}) == 2
    assert module.model is own
    average = averaged_weights(read(tmp_path, "best.ckpt"))
    assert average is not None
    assert same(average, result.state_dict)


def test_accumulated_batches_are_one_step_of_the_average(images: LabelledImages, tmp_path: Path) -> None:
    run(images, tmp_path, epochs=1, batch_size=2, trainer={"ema_decay": 0.9, "accumulate": 4})
    assert int(read(tmp_path)["callbacks"][AverageWeights.__qualname__]["n_averaged"]) == 2


def test_no_average_unless_asked_for(images: LabelledImages, tmp_path: Path) -> None:
    result = run(images, tmp_path, epochs=1)
    best = read(tmp_path, "best.ckpt")
    assert averaged_weights(best) is None
    assert same(model_weights(best), result.state_dict)
