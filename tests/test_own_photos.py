"""docs/own-photos.md, word for word: its six commands run on real photos, from a folder and a CSV to labels of new photos."""

import json
import re
import shlex
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from command_line import run

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
WEIGHTS = SHARED / "weights" / "mobilenetv2_100.safetensors"
MOST_COMMANDS = 6
NUM_PHOTOS = 80


def commands() -> list[list[str]]:
    page = (ROOT / "docs" / "own-photos.md").read_text(encoding="utf-8")
    block = page.partition("<!-- commands:")[2].partition("<!-- end of commands -->")[0]
    return [shlex.split(line) for line in re.findall(r"^ {4}msrn (.+)$", block, re.MULTILINE)]


def write_photos(folder: Path) -> None:
    """COCO's photos with their eight most frequent labels, as a user has them: files and a CSV."""
    (folder / "photos").mkdir()
    content = json.loads((SHARED / "coco-mini" / "annotations" / "instances_train2017.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    labels: dict[int, set[str]] = {image["id"]: set() for image in content["images"]}
    for annotation in content["annotations"]:
        labels[annotation["image_id"]].add(names[annotation["category_id"]])
    frequent = {name for name, _ in Counter(name for found in labels.values() for name in found).most_common(8)}
    rows = ["path,labels"]
    for image in content["images"][:NUM_PHOTOS]:
        shutil.copy(SHARED / "coco-mini" / "train2017" / image["file_name"], folder / "photos")
        rows.append(f"photos/{image['file_name']},{'|'.join(sorted(labels[image['id']] & frequent)) or '[]'}")
    (folder / "photos.csv").write_text("\n".join(rows) + "\n")
    (folder / "new-photos").mkdir()
    for path in sorted((SHARED / "coco-mini" / "val2017").iterdir())[:5]:
        shutil.copy(path, folder / "new-photos")


def test_the_page_needs_six_commands_or_fewer() -> None:
    assert 0 < len(commands()) <= MOST_COMMANDS


@pytest.mark.skipif(not WEIGHTS.exists(), reason="needs the shared COCO photos and MobileNetV2 weights")
def test_the_commands_lead_from_a_csv_to_labels_of_new_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    write_photos(tmp_path)
    monkeypatch.chdir(tmp_path)
    shown = {}
    for words in commands():
        # The page's own words; only the weights come from a file, and one epoch is enough to see that it works.
        more = [f"model.weights={WEIGHTS}", "trainer.max_epochs=1"] if words[0] == "train" else []
        code, shown[" ".join(words[:2])], errors = run(capsys, *words, *more)
        assert code == 0, (words, shown, errors)
    assert "<html" in (tmp_path / "check.html").read_text(encoding="utf-8")
    assert "<svg" in (tmp_path / "graph.svg").read_text(encoding="utf-8")
    assert "read once" in shown["train photos"]
    assert (tmp_path / "runs" / "photos" / "bundle" / "model.safetensors").is_file()
    tags = [json.loads(line) for line in (tmp_path / "tags.jsonl").read_text().splitlines()]
    assert len(tags) == 5
    assert all(len(row["labels"]) == 5 for row in tags)
