"""From photos and a CSV to a tagger, in Python: the same as the six commands of docs/own-photos.md.

    python examples/own_photos.py [PHOTOS.csv]

Without a table it draws one of 200 pictures and trains one epoch from scratch. Prints what the doctor found, the splits, validation
and test mAP, and the labels of one photo.
"""

import sys
import tempfile
from pathlib import Path

from msrn import load, open_source
from msrn.data import check_source
from msrn.data.scenes import write_scenes
from msrn.recipes import load_recipe
from msrn.recipes.run import train_recipe

work = Path(tempfile.mkdtemp())
if len(sys.argv) > 1:
    table, overrides = Path(sys.argv[1]), []
else:
    table = write_scenes(work / "scenes", num_train=120, num_val=40, num_test=40) / "labels.csv"
    small = "{channels: [16, 16, 32, 32]}"
    overrides = [
        "model.pretrained=false",
        "model.backbone=resnet10t",
        f"model.backbone_options={small}",
        "model.dim=64",
    ]
    overrides += ["model.keep_last_layers=false", "data.size=[64,64]", "trainer.max_epochs=1"]

report = check_source(table)
print(f"{report.num_errors} errors in {table.name}")
source = open_source(table)
print("images:", {split: len(source.read(split)) for split in source.splits})

result = train_recipe(load_recipe("photos", [f"data.root={table}", *overrides]), work / "run")
print(f"validation mAP {100 * result.best_mAP:.1f}")
if result.test is not None:
    print(f"test mAP {100 * result.test['mAP']:.1f}")

photo = source.read(source.splits[-1]).paths[0]
prediction = load(result.bundle_dir).predict(photo, top_k=3)[0]
print(Path(photo).name, [f"{label.name} {label.probability:.2f}" for label in prediction.labels])
