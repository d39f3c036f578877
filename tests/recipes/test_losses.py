"""The loss that a recipe names is what training minimises."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from msrn.errors import RecipeError
from msrn.recipes import load_recipe
from msrn.recipes.run import train_recipe
from msrn.training import LossSettings, MSRNModule, positive_weights

TINY = [
    "data.size=[32,32]",
    "data.batch_size=4",
    "data.num_workers=0",
    "model.backbone=resnet10t",
    "model.backbone_options={channels: [8, 8, 16, 16]}",
    "model.dim=8",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=1",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    rows = ["path,labels,split"]
    for number in range(12):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{'common|rare' if number % 4 == 0 else 'common'},{'train' if number < 8 else 'val'}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.mark.parametrize(
    ("overrides", "settings"),
    [
        ([], LossSettings()),
        (["loss.name=asymmetric", "loss.gamma_pos=1", "loss.clip=0"], LossSettings("asymmetric", gamma_pos=1, clip=0)),
        (["loss.name=focal", "loss.alpha=null", "loss.gamma=1.5"], LossSettings("focal", alpha=None, gamma=1.5)),
        (
            ["loss.label_weights=effective", "loss.beta=0.9", "loss.name=asymmetric", "loss.has_focus_gradient=false"],
            LossSettings("asymmetric", has_focus_gradient=False, label_weights="effective", beta=0.9),
        ),
    ],
)
def test_a_run_trains_with_the_loss_of_its_recipe(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], settings: LossSettings
) -> None:
    seen = []

    def watched(self: MSRNModule) -> None:
        seen.append(self.loss)

    monkeypatch.setattr(MSRNModule, "on_train_start", watched, raising=False)
    recipe = load_recipe("scenes", [*TINY, f"data.root={data}", *overrides])
    result = train_recipe(recipe, tmp_path / "run")
    (loss,) = seen
    assert loss.settings == settings
    if settings.label_weights != "none":
        target = torch.tensor([[1, number % 4 == 0] for number in range(8)]).long()
        assert torch.equal(loss.positive_weights, positive_weights(target, "effective", beta=settings.beta))
    assert result.training["recipe"]["loss"]["name"] == settings.name


def test_impossible_settings_are_named() -> None:
    with pytest.raises(RecipeError, match=r"loss\.name.*loss\.clip") as caught:
        load_recipe("scenes", ["loss.name=hinge", "loss.clip=1"])
    assert "'soft_margin', 'asymmetric' or 'focal'" in str(caught.value)
