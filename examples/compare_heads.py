"""Heads under one protocol: the same backbone, data order and budget, two seeds, and the difference paired by seed.

    python examples/compare_heads.py

Draws 160 pictures and trains MSRN and average pooling for one epoch each: far too little to say anything about the heads.
Prints a row a head: mAP with its deviation, and the difference from MSRN.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from msrn.data.scenes import write_scenes

work = Path(tempfile.mkdtemp())
data = write_scenes(work / "scenes", num_train=100, num_val=30, num_test=30)
overrides = [
    "data.size=[48,48]",
    "trainer.max_epochs=1",
    "model.backbone=resnet10t",
    "model.dim=32",
    "data.num_workers=0",
]
overrides += ["model.backbone_options={channels: [16, 16, 32, 32]}"]
command = [sys.executable, "-m", "msrn.cli.main", "compare", "scenes", f"data.root={data}", *overrides]
options = [
    "--heads",
    "avg_pool,msrn",
    "--seeds",
    "2",
    "--out",
    str(work / "compared"),
    "--json",
    str(work / "table.json"),
]
subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)
table = json.loads((work / "table.json").read_text())
for name, row in table["summary"].items():
    print(f"{name:<10} mAP {100 * row['mAP']['mean']:.1f} ± {100 * row['mAP']['std']:.1f}")
difference = table["summary"]["avg_pool"]["difference"]["mAP"]
print(f"average pooling minus MSRN: {100 * difference['mean']:.1f} ± {100 * difference['std']:.1f}")
