"""What runs say together, against NumPy, and how it is told."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import make_record

from msrn.compare import ABLATIONS, HEADS, Plan, build_comparison, frame_of
from msrn.compare.report import check_splits
from msrn.compare.summary import best_rates, markdown, note_lines, summarise, table_rows
from msrn.errors import DataError, MSRNError
from msrn.report import save_comparison

POOLED = {0: 0.61, 1: 0.67, 2: 0.62}
MSRN = {2: 0.70, 0: 0.66, 1: 0.71, 3: 0.50}
RECORDS = [
    *(make_record("avg_pool", seed, mAP) for seed, mAP in POOLED.items()),
    *(make_record("msrn", seed, mAP) for seed, mAP in MSRN.items()),
    *(make_record("avg_pool", 0, mAP, lr=lr, is_search=True) for lr, mAP in ((0.1, 0.5), (0.3, 0.6), (1.0, 0.55))),
    *(make_record("msrn", 0, mAP, lr=lr, is_search=True) for lr, mAP in ((0.1, 0.5), (0.3, 0.6))),
    make_record("msrn", 0, None, lr=1.0, is_search=True, diverged=True),
]
PLAN = Plan("scenes", (), (HEADS["avg_pool"], HEADS["msrn"]), num_seeds=4, rates=(0.1, 0.3, 1.0))


@pytest.fixture
def comparison() -> dict[str, Any]:
    return build_comparison(frame_of(PLAN), RECORDS)


def test_means_and_deviations_are_those_of_numpy() -> None:
    summary = summarise(RECORDS, "msrn")
    assert summary["msrn"]["seeds"] == [0, 1, 2, 3]
    for name, values in (("avg_pool", list(POOLED.values())), ("msrn", list(MSRN.values()))):
        assert summary[name]["mAP"]["mean"] == pytest.approx(np.mean(values))
        assert summary[name]["mAP"]["std"] == pytest.approx(np.std(values, ddof=1))
        assert summary[name]["labels"]["cat"]["mean"] == pytest.approx(np.mean(values) - 0.1)
        assert summary[name]["val_mAP"]["mean"] == pytest.approx(np.mean(values) + 0.05)
    assert summary["msrn"]["parameters"] == 1000
    assert not {"num_images", "images", "threshold", "sha256"} & set(summary["msrn"])


def test_the_difference_is_taken_seed_by_seed() -> None:
    found = summarise(RECORDS, "msrn")["avg_pool"]["difference"]
    pairs = [POOLED[seed] - MSRN[seed] for seed in (0, 1, 2)]
    assert found["seeds"] == [0, 1, 2]  # the fourth has no partner
    assert found["mAP"]["mean"] == pytest.approx(np.mean(pairs))
    assert found["mAP"]["std"] == pytest.approx(np.std(pairs, ddof=1))
    assert "difference" not in summarise(RECORDS, "msrn")["msrn"]


def test_one_seed_has_no_deviation_and_a_label_without_positives_no_mean() -> None:
    record = make_record("msrn", 0, 0.5)
    record["test"]["labels"]["cat"] = None
    summary = summarise([record], "msrn")
    assert summary["msrn"]["mAP"] == {"mean": 0.5, "std": None}
    assert summary["msrn"]["labels"]["cat"] == {"mean": None, "std": None}


def test_a_metric_or_label_that_not_every_run_has_has_no_mean() -> None:
    records = [make_record("msrn", seed, 0.5) for seed in (0, 1)]
    records[0]["test"] |= {"new": 0.5, "labels": {**records[0]["test"]["labels"], "bird": 0.5}}
    for first, second in (records, records[::-1]):
        summary = summarise([{**first, "seed": 0}, {**second, "seed": 1}], "msrn")["msrn"]
        none = {"mean": None, "std": None}
        assert (summary.get("new", none), summary["labels"].get("bird", none)) == (none, none)
        assert summary["labels"]["cat"]["mean"] == pytest.approx(0.4)
    other = summarise([records[0], {**records[1], "variant": "csra"}], "csra")
    assert other["msrn"]["difference"]["seeds"] == []


def test_failed_runs_and_tries_are_not_in_the_mean() -> None:
    failed = {**make_record("msrn", 9, 0.0), "failed": "out of memory"}
    assert summarise([*RECORDS, failed], "msrn") == summarise(RECORDS, "msrn")


def test_a_rate_that_diverges_was_tried_and_one_that_failed_otherwise_was_not() -> None:
    assert best_rates(RECORDS) == {"avg_pool": 0.3, "msrn": 0.3}
    crashed = {**make_record("msrn", 0, None, lr=0.03, is_search=True), "failed": "was ended by SIGKILL"}
    assert best_rates([*RECORDS, crashed]) == {"avg_pool": 0.3}


@pytest.mark.parametrize(("best", "edge"), [(0.1, "least"), (0.3, None), (1.0, "greatest")])
def test_a_best_rate_at_the_edge_is_said(best: float, edge: str | None) -> None:
    tries = [make_record("msrn", 0, 0.9 if lr == best else 0.5, lr=lr, is_search=True) for lr in (0.1, 0.3, 1.0)]
    made = build_comparison(frame_of(PLAN), tries)
    assert made["variants"]["msrn"] | {"search": []} == made["variants"]["msrn"] | {
        "lr": best,
        "edge": edge,
        "search": [],
    }
    assert any("widen --lrs" in line for line in note_lines(made)) == (edge is not None)


def test_no_rate_is_the_best_before_all_are_tried() -> None:
    made = build_comparison(frame_of(PLAN), [make_record("msrn", 0, 0.5, lr=0.3, is_search=True)])
    assert (made["variants"]["msrn"]["lr"], made["variants"]["msrn"]["edge"]) == (None, None)


def test_the_table_has_the_best_first_and_the_notes_what_is_missing(comparison: dict[str, Any]) -> None:
    assert [row[:3] for row in table_rows(comparison)] == [
        ["MSRN", "64.2 ± 9.7", ""],
        ["average pooling", "63.3 ± 3.2", "-5.7 ± 2.1"],
    ]
    notes = note_lines(comparison)
    assert "MSRN diverged at lr 1" in notes
    assert "not trained yet: 1 runs" in notes  # the fourth seed of average pooling
    page = markdown(comparison)
    assert "- learning rate of every head: the best of 0.1, 0.3, 1 by validation mAP, 8 epochs each, seed 0" in page
    assert "sha256 " + "ab" * 8 in page
    assert "- unknown: unknown labels enter no metric\n- pretraining: none\n- epoch: chosen by validation mAP" in page
    assert page.count("\n| ") == 4


def test_ablations_at_the_rate_of_msrn_are_said_in_one_line() -> None:
    parts = (ABLATIONS["no_groups"], ABLATIONS["last_stage"])
    notes = note_lines(build_comparison(frame_of(replace(PLAN, variants=(*PLAN.variants, *parts))), RECORDS))
    assert "at the learning rate of msrn: without groups, last stage only" in notes


def test_rates_that_no_search_is_told_of_are_named(comparison: dict[str, Any]) -> None:
    comparison["protocol"]["search"] = None
    assert "MSRN tried lr 0.1, 0.3, 1" in note_lines(comparison)


def test_what_an_earlier_call_compared_stays(comparison: dict[str, Any]) -> None:
    plan = Plan("scenes", (), (HEADS["csra"], HEADS["msrn"]), num_seeds=1)
    made = build_comparison(frame_of(plan, comparison), RECORDS)
    assert list(made["variants"]) == ["avg_pool", "msrn", "csra"]
    assert made["summary"] == comparison["summary"]
    assert made["protocol"]["seeds"] == [0, 1, 2, 3]


def test_runs_on_other_images_are_not_compared() -> None:
    other = make_record("msrn", 7, 0.5)
    other["splits"]["val"]["sha256"] = "cd" * 32
    with pytest.raises(DataError, match="avg_pool with seed 0 and msrn with seed 7 have other val images"):
        check_splits([*RECORDS, other])


def test_the_version_of_msrn_makes_no_other_machine(comparison: dict[str, Any]) -> None:
    def machines(**versions: str) -> list[Any]:
        first, *rest = RECORDS
        machine = {**first["machine"], "versions": {**first["machine"]["versions"], **versions}}
        found: list[Any] = build_comparison(frame_of(PLAN), [{**first, "machine": machine}, *rest])["protocol"][
            "machines"
        ]
        return found

    assert len(machines(msrn="0.2.0")) == 1
    assert len(machines(torch="0.1")) == 2


def test_the_picture(comparison: dict[str, Any], tmp_path: Any) -> None:
    for suffix in ("svg", "png"):
        path = tmp_path / f"heads.{suffix}"
        save_comparison(comparison, path)
        assert path.stat().st_size > 5000
    with pytest.raises(MSRNError, match=r"ends in \.svg or \.png"):
        save_comparison(comparison, tmp_path / "heads.txt")


def test_the_picture_of_a_test_split_without_positives(tmp_path: Path) -> None:
    record = make_record("msrn", 0, 0.5)
    record["test"] |= {"mAP": None, "CF1": None, "OF1": None}
    made = build_comparison(frame_of(PLAN), [record, make_record("avg_pool", 0, 0.5)])
    save_comparison(made, tmp_path / "heads.svg")
    assert (tmp_path / "heads.svg").stat().st_size > 5000
    assert table_rows(made)[1][1] == "-"


def test_dollar_signs_in_names_are_no_formula_of_the_picture(comparison: dict[str, Any], tmp_path: Path) -> None:
    r"""Matplotlib would not draw this one: \q is no command of its formulas."""
    comparison["protocol"]["recipe"] = comparison["variants"]["msrn"]["title"] = r"$\q$"
    save_comparison(comparison, tmp_path / "heads.svg")
    assert (tmp_path / "heads.svg").stat().st_size > 5000
