"""`msrn data check`: what it prints and writes, and its exit codes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import command_line
import numpy as np
import pytest
from PIL import Image


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `msrn data check ARGUMENTS`."""
    return command_line.run(capsys, "data", "check", *arguments)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = ["path,labels,split"]
    for number in range(30):
        Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{('cat', 'dog', 'cat|dog')[number % 3]},{('train', 'val')[number >= 24]}")
    (tmp_path / "photos.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "photos.csv"


def test_a_sound_data_set_exits_with_0(capsys, table):
    code, out, err = run(capsys, table)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"{table}: a table"
    assert lines[1].startswith("train: 24 images, sha256 ")
    assert "sizes: 32 x 24 to 32 x 24 pixels, median 32 x 24; 30 PNG; 30 RGB" in lines
    assert "cat" in out
    assert "most often together in training images: cat + dog 8" in out
    assert lines[-1] == "Nothing is wrong with 30 images."


def test_errors_exit_with_1_and_stand_before_warnings(capsys, table):
    (table.parent / "3.png").unlink()
    shutil.copy(table.parent / "1.png", table.parent / "4.png")
    code, out, _ = run(capsys, table)
    assert code == 1
    assert "error: missing file (1)\n" in out
    assert f"  {table}:5: {table.parent / '3.png'}: no such file." in out
    assert "warning: duplicate content (1)\n" in out
    assert out.index("error: missing") < out.index("warning: duplicate")
    assert "1 error and 1 warning in 30 images: mend the errors before you train." in out


def test_warnings_alone_exit_with_0(capsys, table):
    code, out, _ = run(capsys, table, "--min-positives", 17)
    assert code == 0
    assert "warning: few positives (2)" in out


def test_many_problems_are_counted(capsys, table):
    for number in range(15):
        (table.parent / f"{number}.png").unlink()
    _, out, _ = run(capsys, table)
    assert "error: missing file (15)" in out
    assert out.count("no such file") == 10
    assert "  and 5 more\n" in out


def test_json_on_standard_output_stands_alone_and_holds_everything(capsys, table):
    (table.parent / "3.png").unlink()
    code, out, err = run(capsys, table, "--json", "-", "--decode", "none", "--num-workers", 2)
    report = json.loads(out)
    assert code == 1
    assert "missing file" in err
    assert report["problems"] == [
        {
            "kind": "missing file",
            "severity": "error",
            "file": str(table),
            "line": 5,
            "message": f"{table.parent / '3.png'}: no such file. Put it there, or leave it out.",
        }
    ]
    assert report["problem_counts"] == [{"kind": "missing file", "severity": "error", "count": 1}]
    assert (report["num_errors"], report["num_warnings"]) == (1, 0)
    assert report["labels"]["dog"]["val"] == {"positives": 4, "absent": 2, "unknown": 0}
    assert report["co_occurrence"] == [[0, 8], [8, 0]]
    assert report["label_counts"] == [16, 16]
    assert report["splits"]["train"]["labels_an_image"] == [0, 16, 8]
    assert len(report["splits"]["train"]["split_sha256"]) == 64
    assert report["images"]["decode"] == "none"


def test_label_sets_and_files(capsys, table):
    (table.parent / "known.txt").write_text("cat\ndoge\n")
    code, out, _ = run(capsys, table, "--labels", table.parent / "known.txt")
    assert code == 1
    assert f"{table}:3: label 'dog' is not among the known labels; the nearest one is 'doge'." in out
    code, _, err = run(capsys, table, "--labels", "voc2077")
    assert code == 1
    assert "Did you mean 'voc2007'?" in err


def test_options_reach_the_reader(capsys, table):
    table.write_text(table.read_text().replace("labels", "seen").replace("|", "+"))
    code, out, _ = run(capsys, table, "--label-column", "seen", "--label-separator", "+")
    assert code == 0
    assert "2 labels" in out


def test_a_page_is_written(capsys, table, tmp_path):
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    code, out, _ = run(capsys, table, "--out", tmp_path / "pages" / "check.html")
    assert code == 0
    assert out.splitlines()[-1] == f"page: {tmp_path / 'pages' / 'check.html'}"
    assert "Nothing is wrong with 30 images." in (tmp_path / "pages" / "check.html").read_text()


def test_a_missing_path_is_one_line(capsys, tmp_path):
    code, out, err = run(capsys, tmp_path / "none.csv")
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert "does not exist" in err
    assert len(err.splitlines()) == 1


def test_labels_are_printed_as_they_are(capsys, table):
    table.write_text(table.read_text().replace("cat", "c[red]at"))
    _, out, _ = run(capsys, table)
    assert out.count("c[red]at") == 2  # the table, and the pairs


@pytest.mark.slow
def test_the_command_as_installed(table):
    command = [sys.executable, "-m", "msrn.cli.main", "data", "check", str(table)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
