"""README.md, word for word: every command in its order, the Python, and what they print."""

import contextlib
import io
import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import run
from running_server import running_server
from tiny_bundle import noise

from msrn.data.scenes import write_scenes

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = ("data.size=[32,32]", "data.num_workers=0", "data.batch_size=16", "model.dim=8", "trainer.max_epochs=1")
TINY_BACKBONE = ("model.backbone=resnet10t", "model.backbone_options={channels: [8,8,16,16]}", "model.pretrained=false")


def blocks(text: str) -> list[str]:
    """Every indented block of a page, without its indentation."""
    outside = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [
        re.sub(r"^ {4}", "", found, flags=re.MULTILINE).rstrip()
        for found in re.findall(r"(?:^ {4}.*\n)+", outside, re.MULTILINE)
    ]


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def commands(text: str) -> list[list[str]]:
    """The words of every `msrn` command, without the name."""
    return [shlex.split(line)[1:] for block in blocks(text) for line in block.splitlines() if line.startswith("msrn ")]


def shown_by(text: str) -> dict[str, str]:
    """What the page says that a command, alone in its block, prints: the block behind it."""
    found = blocks(text)
    return {
        command: output
        for command, output in itertools.pairwise(found)
        if command.startswith("msrn ") and "\n" not in command and not output.startswith("msrn ")
    }


def python_of(title: str) -> tuple[str, str]:
    """The Python of a section, and what the section says that it prints."""
    text = section(title)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return code, blocks(text)[0]


def output_of(code: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    return printed.getvalue().rstrip("\n")


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text)]


def words(text: str) -> list[str]:
    return re.findall(r"[^\W\d]+", text)


def check_same(shown: str, printed: str) -> None:
    """The same words, whatever their order, and numbers that differ by what another processor makes of a training."""
    assert sorted(words(printed)) == sorted(words(shown)), printed
    assert len(numbers(printed)) == len(numbers(shown)), printed
    for found, said in zip(numbers(printed), numbers(shown), strict=True):
        assert found == pytest.approx(said, abs=0.25 if 0 <= said <= 1 else 3, rel=0.1), printed


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Path:
    """A folder as the page supposes it, with a small demo, photos and a table."""
    monkeypatch.chdir(tmp_path)
    write_scenes(tmp_path / "msrn-demo" / "data", num_train=40, num_val=16, num_test=110)
    data = "msrn-demo/data"
    assert run(capsys, "train", "scenes", f"data.root={data}", *SMALL, *TINY_BACKBONE, "--out", "made")[0] == 0
    shutil.move("made/bundle", "msrn-demo/bundle")
    rows = ["path,labels"]
    for name in ("photos", "new-photos", "archive"):
        (tmp_path / name).mkdir()
        for number in range(40 if name == "photos" else 4):
            noise(number).save(tmp_path / name / f"{number}.png")
    rows += [f"photos/{number}.png,{('sea', 'sea|people', 'car|people', '[]')[number % 4]}" for number in range(40)]
    (tmp_path / "photos.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_every_command_works(workplace: Path, capsys: Any) -> None:
    """In one folder, in the order of the page; only trainings are made small."""
    served = []
    for given in commands(README):
        if given[0] == "serve":
            served.append(given[1:])
            continue
        is_own = given[:2] == ["train", "photos"]
        more = [*SMALL, *TINY_BACKBONE] if given[0] == "train" else []
        more += ["data.root=msrn-demo/data"] if given[:2] == ["train", "scenes"] else []
        code, out, err = run(capsys, *given, *more)
        assert code == 0, (given, out, err)
        if is_own:
            assert "read once" in out
    for bundle, *options in served:
        with running_server(bundle, workplace / "log", *options) as server:
            assert server.stop(signal.SIGINT) == 0
    for name in ("check.html", "graph.svg", "tags.jsonl", "report/index.html", "tags.parquet", "model.onnx"):
        assert (workplace / name).stat().st_size > 100, name


@pytest.mark.usefixtures("workplace")
def test_the_python_prints_labels_as_shown() -> None:
    code, shown = python_of("Six lines of Python")
    assert len([line for line in code.splitlines() if line]) == 6
    assert f"```python\n{code}```" in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    line = r"\w+ +[01]\.\d\d"
    assert all(re.fullmatch(line, row) for row in shown.splitlines())
    all_labels = code.replace('test/00109.jpg")', 'test/00109.jpg", threshold=0)')
    assert all(re.fullmatch(line, row) for row in output_of(all_labels).splitlines())
    assert Path("car.png").stat().st_size > 1000


def test_six_commands_lead_from_a_table_to_a_tagger() -> None:
    page = (ROOT / "docs" / "own-photos.md").read_text(encoding="utf-8")
    tested = page.partition("<!-- commands:")[2].partition("<!-- end of commands -->")[0]
    assert commands(section("Your own images"))[:6] == commands(tested)


@pytest.mark.slow
def test_what_it_shows_is_what_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The real demo, then the Python and every command whose output the page shows."""
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    subprocess.run([sys.executable, "-m", "msrn.cli.main", "demo"], check=True, env=environment, capture_output=True)
    code, shown = python_of("Six lines of Python")
    check_same(shown, output_of(code))
    outputs = shown_by(section("The same on the command line"))
    assert outputs
    for command, shown in outputs.items():
        exit_code, printed, _ = run(capsys, *shlex.split(command)[1:])
        assert exit_code == 0
        check_same(shown, printed)
