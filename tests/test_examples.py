"""Every example runs as its first lines say, and prints what they promise."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_bundle import noise

EXAMPLES = Path(__file__).parents[1] / "examples"
PRINTS = {
    "library": r"4 edges\n[\d,]+ parameters\nstep 0: loss \d\.\d\d\nstep 1: loss \d\.\d\d\nsea 0\.\d\d, .*street 0\.\d\d\n",
    "own_photos": r"0 errors in labels\.csv\nimages: \{'train': 120, .*\}\nvalidation mAP \d.*\ntest mAP \d.*\n00000\.jpg \[.*\]\n",
    "compare_heads": r"avg_pool +mAP .* ± .*\nmsrn +mAP .* ± .*\naverage pooling minus MSRN: -?\d.*\n",
    "new_backbone": r"(\w+: channels of its stages \[\d+, \d+, \d+\], logits \(2, 5\)\n){3}",
    "new_data_reader": r"\('cat', 'dog'\)\ntrain \[\[1, 1\], \[1, 0\], \[0, 1\]\]\nval \[\[1, 0\]\]\n",
    "explain": r"\S.*: probability 0\.\d\d, logit (-?\d\.\d+)\n(?:.*\n)+  sum +([+-]\d\.\d+)\n(?:  group .*\n)+.*why\.png\n",
    "serve": r"\[.*\]\n\S.*: most of it at \[.*\] .*\nexit code 0\n",
    "export_to_a_phone": r"model\.safetensors: \d\.\d\d MB \['.*\]\nint8\.onnx: 0\.\d\d MB \['.*\]\n",
}
TAKES_LONG = ("compare_heads", "export_to_a_phone")


def test_every_example_is_tried() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(PRINTS)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in TAKES_LONG else name for name in PRINTS]
)
def test_example(tmp_path: Path, bundle_dir: Path, name: str) -> None:
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    usage = re.search(rf"^    python examples/{name}\.py(.*)$", text, re.MULTILINE)
    assert usage, "its first lines say how it is run"
    (tmp_path / "photos").mkdir()
    for number in range(4):
        noise(number).save(tmp_path / "photos" / f"{number}.png")
    given = {"BUNDLE": bundle_dir, "IMAGE": tmp_path / "photos" / "0.png", "IMAGES": tmp_path / "photos"}
    arguments = [str(given[word]) for word in usage[1].split() if word in given]
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (found := re.fullmatch(PRINTS[name], done.stdout)), done.stdout
    if name == "explain":
        assert float(found[1]) == pytest.approx(float(found[2]), abs=2e-3)
        assert (tmp_path / "why.png").stat().st_size > 10_000
