"""The commands as people and programs use them: what they print, what they write, how they fail."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import check_may_be_replaced, run
from PIL import Image

from msrn.errors import MSRNError
from msrn.files import replace_file

LABELS = ("bright", "dark", "red")
TINY = [
    "data.size=[32,32]",
    "data.batch_size=4",
    "data.num_workers=0",
    "model.backbone=resnet10t",
    "model.backbone_options={channels: [8, 8, 16, 16]}",
    "model.dim=8",
    "trainer.max_epochs=1",
]


def check_error(result: tuple[int, str, str], *words: str) -> None:
    """One line on standard error that holds the words, a non-zero exit code, no traceback."""
    code, out, err = result
    assert code == 1, (code, out, err)
    assert "Traceback" not in out + err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    for word in words:
        assert word in lines[0], lines[0]


def write_images(folder: Path, *, num_train: int = 12, num_val: int = 6, num_test: int = 6) -> Path:
    """A CSV of squares whose labels are plain to see."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    rows = ["path,labels,split"]
    for split, count in (("train", num_train), ("val", num_val), ("test", num_test)):
        for index in range(count):
            is_bright, is_red = index % 2 == 0, index % 3 == 0
            colour = np.array([220 if is_red else 20, 20, 20]) + (35 if is_bright else 0)
            pixels = np.clip(colour + rng.integers(-10, 10, (40, 48, 3)), 0, 255).astype(np.uint8)
            name = f"images/{split}-{index:02d}.png"
            Image.fromarray(pixels).save(folder / name)
            labels = ["bright" if is_bright else "dark", *(["red"] if is_red else [])]
            rows.append(f"{name},{'|'.join(labels)},{split}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "squares")


@pytest.fixture(scope="module")
def bundle(data, tmp_path_factory) -> Path:
    """A bundle trained by the program itself, in another process."""
    out = tmp_path_factory.mktemp("runs") / "squares"
    command = [sys.executable, "-m", "msrn.cli.main", "train", "scenes", f"data.root={data}", *TINY, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "read once" in done.stdout
    return out / "bundle"


def test_version_and_help(capsys):
    assert run(capsys, "--version")[1].startswith("msrn ")
    for command in ("demo", "train", "evaluate", "predict", "explain", "export", "push", "import-published"):
        code, out, _ = run(capsys, command, "--help")
        assert code == 0
        assert "Examples:" in out


def test_help_loads_no_heavy_library():
    code = (
        "import sys, msrn, msrn.cli.main\n"
        "sys.argv = ['msrn', '--help']\n"
        "try: msrn.cli.main.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'lightning', 'timm', 'torchvision', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_training_leaves_recipe_metrics_checkpoints_and_bundle(bundle):
    run_dir = bundle.parent
    assert {path.name for path in bundle.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert (run_dir / "metrics.csv").read_text().count("\n") == 2
    assert (run_dir / "checkpoints" / "last.ckpt").is_file()
    assert "max_epochs: 1" in (run_dir / "recipe.yaml").read_text()
    test = json.loads((run_dir / "test.json").read_text())
    assert (test["num_images"], test["protocol"]["images"]) == (6, 6)
    assert test["protocol"]["read"] == "read once, after validation chose the epoch"


def test_evaluate_writes_what_a_program_reads(capsys, bundle, data):
    code, out, shown = run(capsys, "evaluate", bundle, "--data", data, "--split", "test", "--json", "-")
    report = json.loads(out)
    assert code == 0
    protocol = report["protocol"]
    assert (
        protocol["sha256"]
        == report["split_sha256"]
        == json.loads((bundle.parent / "splits.json").read_text())["test"]["sha256"]
    )
    for line in (
        f"split       test, 6 images, sha256 {protocol['sha256'][:12]}",
        "resize      whole image to 32 x 32, bilinear, one view",
        "threshold   0.5 for every label, fixed and not fitted",
        "pretraining none",
        "seed        0",
        "epoch       1, chosen by validation mAP on split val",
    ):
        assert line in shown
    names = ["mAP", *(f"{name}{top}" for top in ("", "_top3") for name in ("CP", "CR", "CF1", "OP", "OR", "OF1"))]
    names += ["coverage_error", "label_ranking_average_precision", "ranking_loss"]
    assert all(isinstance(report[name], float) for name in names)
    assert report["labels"].keys() == set(LABELS)
    assert (report["split"], report["num_images"]) == ("test", 6)


def test_evaluate_takes_a_table_of_one_column_a_label_and_names_labels_without_positives(
    capsys, bundle, data, tmp_path
):
    table = tmp_path / "columns.csv"
    rows = [f"{data / 'images' / f'test-{index:02d}.png'},{index % 2},?" for index in range(4)]
    table.write_text("\n".join(["path,dark,red", *rows]) + "\n")
    code, out, _ = run(
        capsys, "evaluate", bundle, "--data", table, "--split", "train", "--allow-outside", "--json", "-"
    )
    report = json.loads(out)
    assert code == 0
    assert report["labels_without_positives"] == ["bright", "red"]
    assert report["num_unknown"] == 8  # no column for "bright", and nothing but "?" for "red"


def test_predict_writes_json_lines_best_first(capsys, bundle, data):
    code, out, _ = run(capsys, "predict", bundle, data / "images", "--top", "2", "--json", "-")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert len(rows) == 24
    for row in rows:
        probabilities = [label["probability"] for label in row["labels"]]
        assert len(probabilities) == 2
        assert probabilities == sorted(probabilities, reverse=True)
        assert Path(row["path"]).is_file()


def test_predict_keeps_labels_from_the_threshold_up(capsys, bundle, data):
    image = data / "images" / "test-00.png"
    everything = json.loads(run(capsys, "predict", bundle, image, "--threshold", "0", "--json", "-")[1])["labels"]
    assert {label["name"] for label in everything} == set(LABELS)
    least = everything[1]["probability"]
    kept = json.loads(run(capsys, "predict", bundle, image, "--threshold", str(least), "--json", "-")[1])["labels"]
    assert kept == everything[:2]


def test_predict_reports_an_unreadable_image_and_goes_on(capsys, bundle, data, tmp_path):
    good = data / "images" / "test-00.png"
    cut = tmp_path / "cut.jpg"
    Image.open(good).convert("RGB").save(cut)
    cut.write_bytes(cut.read_bytes()[:200])
    out_file = tmp_path / "tags.jsonl"
    code, _, err = run(capsys, "predict", bundle, cut, good, "--json", out_file)
    rows = [json.loads(line) for line in out_file.read_text().splitlines()]
    assert code == 1
    assert "cut.jpg" in err
    assert "Traceback" not in err
    assert [bool(row.get("error")) for row in rows] == [True, False]
    assert rows[1]["path"] == str(good)


def test_predict_names_a_missing_image_and_an_empty_folder(capsys, bundle, tmp_path):
    check_error(run(capsys, "predict", bundle, tmp_path / "none.jpg"), "none.jpg")
    (tmp_path / "empty").mkdir()
    check_error(run(capsys, "predict", bundle, tmp_path / "empty"), "empty")


def test_a_missing_folder_is_named(capsys, bundle, tmp_path):
    missing = tmp_path / "nowhere"
    check_error(run(capsys, "train", "scenes", f"data.root={missing}", "--out", tmp_path / "run"), "nowhere")
    assert not (tmp_path / "run").exists()
    check_error(run(capsys, "evaluate", bundle, "--data", missing), "nowhere")
    check_error(run(capsys, "evaluate", missing, "--data", missing), "nowhere", "bundle")


def test_an_empty_or_unknown_split_is_named_with_those_that_exist(capsys, bundle, data, tmp_path):
    table = tmp_path / "train-only.csv"
    table.write_text(f"path,labels,split\n{data / 'images' / 'test-00.png'},bright,train\n")
    check_error(run(capsys, "evaluate", bundle, "--data", table, "--split", "test"), "no split 'test'", "train")
    check_error(run(capsys, "evaluate", bundle, "--data", data, "--split", "holdout"), "no split 'holdout'")


def test_a_label_that_the_model_does_not_know_is_named_with_the_nearest(capsys, bundle, data, tmp_path):
    table = tmp_path / "typo.csv"
    table.write_text(f"path,labels,split\n{data / 'images' / 'test-00.png'},brigth,test\n")
    check_error(run(capsys, "evaluate", bundle, "--data", table), "lie outside of", "--allow-outside")
    check_error(run(capsys, "evaluate", bundle, "--data", table, "--allow-outside"), "'brigth'", "'bright'")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_truncated_jpeg_stops_training_with_its_name(capsys, tmp_path, num_workers):
    folder = write_images(tmp_path / "data", num_train=8, num_val=4, num_test=2)
    image = folder / "images" / "train-03.png"
    jpeg = Image.open(image).convert("RGB")
    jpeg.save(image, "JPEG")
    image.write_bytes(image.read_bytes()[:300])
    out = tmp_path / "run"
    result = run(
        capsys, "train", "scenes", f"data.root={folder}", *TINY, f"data.num_workers={num_workers}", "--out", out
    )
    check_error(result, "train-03.png")
    assert not (out / "bundle").exists()


def test_a_truncated_jpeg_stops_evaluation_with_its_name(capsys, bundle, tmp_path):
    folder = write_images(tmp_path / "data", num_train=1, num_val=1, num_test=3)
    image = folder / "images" / "test-01.png"
    image.write_bytes(image.read_bytes()[:60])
    out = tmp_path / "report.json"
    for workers in (0, 1):
        result = run(capsys, "evaluate", bundle, "--data", folder, "--num-workers", workers, "--json", out)
        check_error(result, "test-01.png")
    assert not out.exists()


def test_a_typo_in_a_recipe_names_the_nearest_key(capsys, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("optimizer:\n  learning_rte: 0.1\nmodl: {}\n")
    result = run(capsys, "train", recipe, "--out", tmp_path / "run")
    check_error(result, "optimizer.learning_rte", "'modl'", "'model'")
    check_error(run(capsys, "train", "scenes", "optimizer.lrr=1"), "optimizer.lrr", "optimizer.lr")
    check_error(run(capsys, "train", "scnes"), "'scenes'")
    check_error(run(capsys, "train", "scenes", "optimizer.lr"), "key=value")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_and_names_the_batch(capsys, data, tmp_path):
    out = tmp_path / "run"
    overrides = [*TINY, "optimizer.name=sgd", "optimizer.lr=1e30", "trainer.max_epochs=3", "trainer.gradient_clip=null"]
    overrides += ["schedule.warmup_steps=0"]
    result = run(capsys, "train", "scenes", f"data.root={data}", *overrides, "--out", out)
    check_error(result, "epoch", "batch", "train-", "optimizer.lr")
    assert not (out / "bundle").exists()


def test_a_run_folder_is_not_written_over(capsys, data, bundle):
    before = (bundle / "model.safetensors").read_bytes()
    again = run(capsys, "train", "scenes", f"data.root={data}", *TINY, "--out", bundle.parent)
    check_error(again, "--resume")
    other = run(
        capsys, "train", "scenes", f"data.root={data}", *TINY, "optimizer.lr=0.5", "--out", bundle.parent, "--resume"
    )
    check_error(other, "optimizer")
    assert (bundle / "model.safetensors").read_bytes() == before


def test_a_finished_run_resumed_says_the_same(capsys, data, bundle):
    code, out, _ = run(
        capsys, "train", "scenes", f"data.root={data}", *TINY, "--out", bundle.parent, "--resume", "--json", "-"
    )
    assert code == 0
    assert json.loads(out)["test"]["mAP"] == json.loads((bundle.parent / "test.json").read_text())["mAP"]


def test_output_that_cannot_be_written_is_named(capsys, bundle, data, tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = run(capsys, "evaluate", bundle, "--data", data, "--json", tmp_path / "file" / "report.json")
    check_error(result, "report.json", "cannot be written")


def test_a_damaged_bundle_is_explained(capsys, bundle, data, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "labels": ["one", "two"]}))
    check_error(run(capsys, "predict", copy, data / "images"), "2 labels", "3")


def test_the_loaded_model_gives_what_the_command_prints(capsys, bundle, data):
    import msrn

    image = data / "images" / "test-01.png"
    printed = json.loads(run(capsys, "predict", bundle, image, "--top", "3", "--json", "-")[1])["labels"]
    predicted = msrn.load(bundle).predict(image, top_k=3)[0].labels
    assert [label["name"] for label in printed] == [label.name for label in predicted]
    expected = torch.tensor([label.probability for label in predicted])
    torch.testing.assert_close(torch.tensor([label["probability"] for label in printed]), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C. A run keeps its last checkpoint; go on with it by --resume."),
        (SystemExit(143), 143, "stopped by SIGTERM. A run keeps its last checkpoint; go on with it by --resume."),
        (OSError(28, "No space left on device", "/disk/x"), 1, "/disk/x: No space left on device. Check that the path"),
    ],
)
def test_ctrl_c_and_a_full_disk_are_one_line(capsys, monkeypatch, error, code, message):
    def fail(*arguments):
        raise error

    monkeypatch.setattr("msrn.recipes.load_recipe", fail)
    result = run(capsys, "train", "scenes")
    assert result[0] == code
    assert result[2].startswith(f"error: {message}")
    assert result[2].count("\n") == 1


@pytest.fixture
def default_signals():
    """Signals as a new program has them, whatever a shell or another test has made of them."""
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGTERM: signal.signal(signal.SIGTERM, signal.SIG_DFL),
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def command_that(monkeypatch, do):
    """`msrn train scenes`, which does no more than this."""
    monkeypatch.setattr("msrn.recipes.load_recipe", lambda *arguments: do())


@pytest.mark.fault("Ctrl-C, SIGTERM in any other command")
@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_command_clears_away_after_a_signal(capsys, monkeypatch, tmp_path, lost, number, name):
    (tmp_path / "graph.json").write_text("earlier")

    def write():
        with replace_file(tmp_path / "graph.json"):
            os.kill(os.getpid(), number)

    command_that(monkeypatch, write)
    code, _, errors = run(capsys, "train", "scenes")
    assert code == 128 + number
    assert errors.startswith(f"error: stopped by {name}.")
    lost([("graph.json", "earlier")], [(path.name, path.read_text()) for path in tmp_path.iterdir()], "files")


TWICE = """
import os, signal, sys
import msrn.cli.main as cli
import msrn.recipes
def stop(*arguments):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        print("cleared away")
msrn.recipes.load_recipe = stop
signal.signal(signal.SIGINT, signal.default_int_handler)
cli.main()
"""


def test_a_second_signal_does_not_wait_for_what_is_cleared_away():
    command = [sys.executable, "-c", TWICE, "train", "scenes"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "error: stopped by SIGTERM.\n")


@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize("own", [None, lambda number, frame: None])
def test_signals_are_given_back_and_those_of_others_are_left_alone(capsys, monkeypatch, own):
    if own is not None:
        signal.signal(signal.SIGINT, own)
        signal.signal(signal.SIGTERM, own)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    during = []

    def look():
        during.append((signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)))
        raise MSRNError("that was all")

    command_that(monkeypatch, look)
    assert run(capsys, "train", "scenes")[0] == 1
    assert (during == [before]) == (own is not None)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.usefixtures("default_signals")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_was_forked_just_now_ends_as_processes_do(capsys, monkeypatch, number):
    """It clears nothing away: what its parent has begun is not its own."""

    def fork():
        if (child := os.fork()) == 0:
            try:
                os.kill(os.getpid(), number)
            finally:
                os._exit(1)
        raise MSRNError(f"it ended with {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}")

    command_that(monkeypatch, fork)
    assert run(capsys, "train", "scenes")[2] == f"error: it ended with {-number}\n"


def test_training_prints_only_json_where_json_was_asked_for(capsys, data, tmp_path):
    code, out, err = run(
        capsys, "train", "scenes", f"data.root={data}", *TINY, "--out", tmp_path / "run", "--json", "-"
    )
    assert code == 0
    assert json.loads(out)["bundle"] == str(tmp_path / "run" / "bundle")
    check_may_be_replaced(out)
    assert "epoch   1/1" in err


def test_a_model_that_memory_does_not_hold(capsys, data, tmp_path):
    huge = run(
        capsys,
        "train",
        "scenes",
        f"data.root={data}",
        *TINY,
        "model.backbone_options={channels: [8,8,16,1000000000000]}",
        "--out",
        tmp_path / "run",
    )
    check_error(huge, "memory ran out", "make the model smaller")


def test_what_nobody_foresaw_is_one_line_too(capsys, monkeypatch):
    def fail():
        raise RuntimeError("what\nis this?")

    monkeypatch.setattr("msrn.recipes.list_recipes", fail)
    check_error(run(capsys, "recipe", "list"), "RuntimeError: what is this?", "MSRN_DEBUG=1")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(capsys, data, tmp_path):
    out = tmp_path / "run"
    check_error(
        run(capsys, "train", "scenes", f"data.root={data}", *TINY, "trainer.accelerator=gpu", "--out", out), "no GPU"
    )


def test_a_damaged_checkpoint_is_named(capsys, data, bundle, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(bundle.parent, run_dir, ignore=shutil.ignore_patterns("bundle", "test.json"))
    last = run_dir / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    check_error(
        run(capsys, "train", "scenes", f"data.root={data}", *TINY, "--out", run_dir, "--resume"), "last.ckpt", "damaged"
    )


def test_missing_images_are_found_before_training(capsys, tmp_path):
    folder = write_images(tmp_path / "data", num_train=4, num_val=4, num_test=2)
    (folder / "images" / "test-01.png").unlink()
    check_error(run(capsys, "train", "scenes", f"data.root={folder}", *TINY, "--out", tmp_path / "run"), "test-01.png")
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_what_fits_and_makes_no_folder(capsys, data, tmp_path):
    out, result = tmp_path / "run", tmp_path / "memory.json"
    overrides = [f"data.root={data}", *TINY]
    code, printed, _ = run(capsys, "train", "scenes", *overrides, "--dry-run", "--out", out, "--json", result)
    report = json.loads(result.read_text())
    check_may_be_replaced(result.read_text())
    assert code == 0
    assert "a training step: 4 images of 32 x 32 on the CPU, 32-true" in printed
    assert f"{report['expected_bytes'] / 1e9:.3f} GB, with what the allocator keeps" in printed
    assert "the batch fits; the largest that fits is data.batch_size=12, all training images" in printed
    assert report["fits"] is True
    trial = report["trial"]
    assert (
        f"tried: loss {trial['loss']:.4f}, {trial['step_s']:.2f} s a batch, reading included (median of 2 after"
        in printed
    )
    assert re.search(r"an epoch: .* \(batches: 3, and \d of validation\); the run: .* \(epochs: 1\)", printed)
    assert f"{report['flops_per_image'] / 1e9:.2f} GFLOPs" in printed
    assert not out.exists()
    assert json.loads(run(capsys, "train", "scenes", *overrides, "--dry-run", "--json", "-")[1])["largest_batch"] == 12


@pytest.mark.parametrize(
    ("free", "words"),
    [
        (
            165_000_000,
            ("0.165 GB are free: 12 images do not fit. Set data.batch_size=", "the largest batch that fits."),
        ),
        (1_000_000, ("0.001 GB are free: not even one image fits. Choose a smaller data.size",)),
        (None, ("this system does not tell how much memory is free",)),
    ],
)
def test_a_dry_run_says_what_to_do_about_a_batch_that_does_not_fit(capsys, data, monkeypatch, free, words):
    monkeypatch.setattr("msrn.recipes.dry_run.free_memory_bytes", lambda device_type: free)
    overrides = [f"data.root={data}", *TINY, "data.size=[128,128]", "data.batch_size=12"]
    code, printed, _ = run(capsys, "train", "scenes", *overrides, "--dry-run")
    assert code == 0
    for word in words:
        assert word in printed
    assert ("no batch was tried" in printed) == (free is not None)


@pytest.mark.parametrize("dry_run", [["--dry-run"], []])
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.devices=99"], ["99 processes need an image each, there are 12 training images"]),
        (
            ["data.batch_size=1", "data.size=[32,32]", "model.head=max_pool"],
            ["a batch of 1 of 32 x 32 gives one", "Set data.batch_size to 2 or more"],
        ),
    ],
)
def test_what_a_run_refuses_a_dry_run_refuses_too(capsys, data, tmp_path, dry_run, overrides, words):
    out = ["--out", tmp_path / "run"]
    check_error(run(capsys, "train", "scenes", f"data.root={data}", *TINY, *overrides, *out, *dry_run), *words)
    assert not (tmp_path / "run").exists()


def test_a_file_that_cannot_be_written_is_told_before_training(capsys, data, tmp_path):
    (tmp_path / "file").write_text("")
    arguments = ["train", "scenes", f"data.root={data}", *TINY, "--out", tmp_path / "run"]
    check_error(run(capsys, *arguments, "--json", tmp_path / "file" / "result.json"), "cannot be written")
    assert not (tmp_path / "run").exists()


def test_a_dry_run_finds_the_errors_of_a_run(capsys, tmp_path):
    folder = write_images(tmp_path / "data", num_train=4, num_val=4, num_test=2)
    overrides = [f"data.root={folder}", *TINY]
    check_error(run(capsys, "train", "scenes", *overrides, "model.backbone=resnet1", "--dry-run"), "resnet1", "resnet")
    check_error(run(capsys, "train", "scenes", *overrides, "model.dimm=3", "--dry-run"), "model.dimm", "model.dim")
    (folder / "images" / "test-01.png").unlink()
    check_error(run(capsys, "train", "scenes", *overrides, "--dry-run"), "test-01.png")


def test_a_held_out_part_is_written_down(capsys, data, tmp_path):
    out = tmp_path / "run"
    overrides = [f"data.root={data}", *TINY, "data.val=held_out", "data.val_fraction=0.25", "data.test=null"]
    assert run(capsys, "train", "scenes", *overrides, "--out", out)[0] == 0
    names = (out / "held_out.txt").read_text().splitlines()
    assert len(names) == 3
    assert all((data / "images" / name).is_file() for name in names)


def test_a_strangers_bundle_cannot_name_a_backbone_elsewhere(capsys, bundle, data, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    config = json.loads((copy / "config.json").read_text())
    config["architecture"]["backbone"] = "hf-hub:someone/else"
    (copy / "config.json").write_text(json.dumps(config))
    check_error(run(capsys, "predict", copy, data / "images"), "no backbone that comes with timm")


def test_every_file_of_a_bundle_can_be_read_by_others(bundle):
    modes = {path.stat().st_mode & 0o777 for path in bundle.iterdir()}
    assert len(modes) == 1


def test_a_file_name_in_another_encoding_is_predicted_too(capsys, bundle, data, tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    shutil.copy(data / "images" / "test-00.png", tmp_path / name)
    out = tmp_path / "tags.jsonl"
    assert run(capsys, "predict", bundle, tmp_path, "--json", out)[0] == 0
    assert json.loads(out.read_text())["path"].endswith(name)


# Finders


def test_train_finds_a_learning_rate_and_draws_it(data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "scenes", f"data.root={data}", *TINY, "trainer.accelerator=cpu", "--find", "lr"]
    code, out, err = run(capsys, *arguments, "--json", "-", "--picture", "lr.svg")
    assert code == 0, err
    found = json.loads(out)
    assert 1e-7 < found["optimizer.lr"] < 1
    assert len(found["rates"]) == len(found["losses"]) > 10
    assert "a tenth of it: optimizer.lr=" in err
    assert "optimizer.lr" in (tmp_path / "lr.svg").read_text()
    check_may_be_replaced(out)
    check_may_be_replaced((tmp_path / "lr.svg").read_text(), option="--picture", name="lr.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["lr.svg"]


def test_train_finds_a_batch_size(data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "scenes", f"data.root={data}", *TINY, "trainer.accelerator=cpu", "--find", "batch_size"]
    code, out, err = run(capsys, *arguments, "--json", "found.json")
    assert code == 0, err
    assert "largest that could be trained with: data.batch_size=8" in out
    found = json.loads((tmp_path / "found.json").read_text())
    check_may_be_replaced((tmp_path / "found.json").read_text())
    assert found["data.batch_size"] == 8
    assert list(found["images_per_s"]) == ["2", "4", "8"]
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--picture", "lr.png"], "--picture lr.png goes with --find lr. Leave it out."),
        (["--find", "batch_size", "--picture", "lr.png"], "--picture lr.png goes with --find lr. Leave it out."),
        (["--find", "lr", "--out", "runs/x"], "--find keeps no run. Leave --out, --resume and --dry-run out."),
        (["--find", "lr", "--picture", "lr.pdf"], "Give a name that ends in .svg or .png."),
    ],
)
def test_find_refuses_what_does_not_go_with_it(capsys, options, words):
    check_error(run(capsys, "train", "scenes", *options), words)
