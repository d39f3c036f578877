"""Labels, paths and errors of strangers on a terminal."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import run
from tiny_bundle import noise

from msrn.cli.output import make_console, printable

Lost = Callable[[Any, Any, str], None]
ESCAPES = "\x1b]0;pwned\x07"
LABELS = [ESCAPES, "\u202etxt.exe", "a\x9bb", "\r船", "[red]x[/red]", "می\u200cشود"]


@pytest.mark.fault("labels, paths and errors that would move a terminal's cursor or change its title")
def test_what_strangers_write_on_a_terminal(capsys: Any, tmp_path: Path, bundle_dir: Path, lost: Lost) -> None:
    bundle = Path(shutil.copytree(bundle_dir, tmp_path / "bundle"))
    config = json.loads((bundle / "config.json").read_text())
    config["labels"] = LABELS
    (bundle / "config.json").write_text(json.dumps(config))
    photos = tmp_path / f"photos{ESCAPES}"
    photos.mkdir()
    name = "\x1b[2J\u202e" + os.fsdecode(b"caf\xe9") + "\n.png"
    noise(0).save(photos / name, "PNG")
    (photos / f"{ESCAPES}.png").write_bytes(b"no image")
    (tmp_path / "t.csv").write_text(f"path,labels\n{photos.name}/0.png,\x1b[31mred|\u202ecat\n")
    shown = []
    for arguments in (
        ["predict", bundle, photos, "--top", "9"],
        ["predict", tmp_path / f"none{ESCAPES}", photos],
        ["labels", "groups", bundle],
        ["explain", bundle, photos, "--top", "6"],
        ["data", "check", tmp_path / "t.csv"],
        ["data", "check", tmp_path / f"none{ESCAPES}"],
        ["recipe", "check", "scenes", f"data.root={ESCAPES}"],
        ["recipe", "check", "scenes", f"model.dim={ESCAPES}"],
        ["recipe", "show", "scenes", f"data.root={ESCAPES}\u202ecafé\udce9"],
    ):
        _, out, errors = run(capsys, *arguments)
        assert "did not expect" not in errors
        shown.append(out + errors)
    for text in shown:
        assert not set(text) & set("\x1b\x07\x9b\r\u202e"), repr(text)
        assert not any("\ud800" <= letter <= "\udfff" for letter in text)
    assert r"\x1b]0;pwned\x07" in shown[0]
    assert r"\x1b[2J\u202ecaf\udce9\n.png: " in shown[0]
    assert "می\u200cشود" in shown[0]
    # In JSON they are as they are.
    _, out, _ = run(capsys, "predict", bundle, photos, "--top", "9", "--json", "-")
    rows = {Path(row["path"]).name: row for row in map(json.loads, out.splitlines())}
    lost(LABELS, [label["name"] for label in rows[name]["labels"]], "labels")


def test_what_rich_adds_stays() -> None:
    console = make_console(None)
    console.begin_capture()
    console.print("a\tb\n[bold]c[/bold]\x1b", style="red")
    assert "\\x1b" in console.end_capture()
    assert printable("a\nb", keep="\n") == "a\nb"
    assert printable("ab 船　é") == "ab 船　é"
