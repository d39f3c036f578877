"""`msrn compare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from msrn.cli.completion import complete_key, complete_recipe

if TYPE_CHECKING:
    from rich.console import Console

    from msrn.compare import ComparisonFolder, Plan

EPILOG = """Examples:

  msrn compare scenes --heads avg_pool,csra,msrn --seeds 3 --lrs 0.001,0.002,0.005 --out runs/scenes-heads

  msrn compare voc2007-mobilenet data.root=/data/VOCdevkit --lrs 0.03,0.1,0.3 --search-epochs 4 --ablations

  msrn compare voc2007-mobilenet data.root=/data/VOCdevkit data.size=[224,224] --lr-from runs/160 --out runs/224

  msrn compare scenes --variants mine.yaml --heads msrn --dry-run

  msrn compare --report runs/scenes-heads --json - | jq .summary.msrn.mAP"""

DEFAULT_HEADS = "avg_pool,max_pool,csra,ml_gcn,ml_decoder,msrn_published,msrn"


def compare(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="Recipe that all share: a name, or path of a YAML file.",
            show_default=False,
            autocompletion=complete_recipe,
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Keys of the recipe to change for all.",
            show_default=False,
            autocompletion=complete_key,
        ),
    ] = None,
    heads: Annotated[
        str, typer.Option(metavar="NAMES", help="What is compared, joined by commas; ablations go by name too.")
    ] = DEFAULT_HEADS,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each, with seeds from 0.")] = 3,
    lrs: Annotated[
        str | None,
        typer.Option(
            metavar="RATES",
            help="Learning rates that each tries on validation images, joined by commas; by default all take the recipe's.",
            show_default=False,
        ),
    ] = None,
    search_epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs of a try, instead of the recipe's.", show_default=False)
    ] = None,
    lr_from: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Take the rates that an earlier comparison found.", show_default=False),
    ] = None,
    ablations: Annotated[
        bool,
        typer.Option(
            "--ablations", help="Also MSRN without or with another of its parts, such as groups, graph or residual."
        ),
    ] = False,
    search_ablations: Annotated[
        bool, typer.Option("--search-ablations", help="Each ablation tries the rates too, instead of taking MSRN's.")
    ] = False,
    word_vectors: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File of msrn labels vectors, for the ablation of vectors.", show_default=False
        ),
    ] = None,
    variants: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="YAML of your own variants: names with lists of KEY=VALUE.", show_default=False
        ),
    ] = None,
    reference: Annotated[str, typer.Option(metavar="NAME", help="What the others are measured against.")] = "msrn",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the comparison; by default runs/compare-RECIPE.", show_default=False)
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time; they share the processors.")] = 1,
    keep: Annotated[bool, typer.Option("--keep", help="Keep checkpoints and bundles of finished runs.")] = False,
    keep_predictions: Annotated[
        bool, typer.Option("--keep-predictions", help="Keep the probabilities of each test split, as .npz.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Train nothing: list the runs, what is done, and how long the rest takes.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Train nothing: make table and picture of a folder anew.", show_default=False),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the comparison as JSON; '-' prints it.")
    ] = None,
) -> None:
    """Compare heads and parts of MSRN: one recipe, data order and budget, one search of the learning rate, several seeds.

    Every run is a process of its own and leaves its JSON. Started again, the comparison goes on where it stopped. Exit code 1 says
    that a run failed.
    """
    from msrn.cli.output import check_outputs, make_console
    from msrn.compare import ComparisonFolder, rebuild
    from msrn.errors import MSRNError
    from msrn.files import write_json

    check_outputs([name for name in (recipe, variants, word_vectors) if name is not None], **{"--json": json_file})
    console = make_console(json_file)
    if report is not None:
        if recipe is not None:
            raise MSRNError(
                "--report takes no recipe: it makes table and picture from the runs of its folder. Leave one out."
            )
        comparison = rebuild(ComparisonFolder(report))
        print_comparison(console, comparison)
        if json_file is not None:
            write_json(json_file, comparison)
        return
    if recipe is None:
        raise MSRNError("a comparison needs a recipe, as in 'msrn compare scenes'; --report DIR needs none.")
    plan = _plan(
        recipe,
        tuple(overrides or ()),
        heads=_words(heads),
        num_seeds=seeds,
        rates=_rates(lrs),
        search_epochs=search_epochs,
        lr_from=lr_from,
        ablations=ablations,
        search_ablations=search_ablations,
        word_vectors=word_vectors,
        variants=variants,
        reference=reference,
    )
    folder = ComparisonFolder(out or Path("runs") / f"compare-{plan.base.name}")
    if dry_run:
        listed = _list_runs(console, plan, folder)
        if json_file is not None:
            write_json(json_file, listed)
        return
    comparison = _carry_out(console, plan, folder, num_jobs=jobs, keep=keep, keep_predictions=keep_predictions)
    print_comparison(console, comparison)
    console.print(f"comparison: {folder.path}", markup=False, highlight=False, soft_wrap=True)
    if json_file is not None:
        write_json(json_file, comparison)
    if comparison["failed"]:
        raise typer.Exit(1)


def _carry_out(console: "Console", plan: "Plan", folder: "ComparisonFolder", **options: Any) -> dict[str, Any]:
    """Train what is left to train, and keep the comparison up to date after every run."""
    from msrn.compare import Executor, build_comparison, frame_of, write_comparison

    frame = frame_of(plan, folder.earlier())

    def update(*, picture: bool = False) -> dict[str, Any]:
        comparison = build_comparison(frame, folder.records())
        write_comparison(folder, comparison, picture=picture)
        return comparison

    with folder.alone():
        executor = Executor(plan, folder, console, after_run=update, **options)
        executor.check()
        update()
        executor.run()
        return update(picture=True)


def _plan(
    recipe: str,
    overrides: tuple[str, ...],
    *,
    heads: list[str],
    num_seeds: int,
    rates: tuple[float, ...],
    search_epochs: int | None,
    lr_from: Path | None,
    ablations: bool,
    search_ablations: bool,
    word_vectors: Path | None,
    variants: Path | None,
    reference: str,
) -> "Plan":
    from msrn.compare import Plan, choose_variants, drop_repeated, read_variants
    from msrn.errors import RecipeError

    own = [] if variants is None else read_variants(variants)
    file = None if word_vectors is None else str(word_vectors)
    chosen, skipped = choose_variants(heads, ablations=ablations, word_vectors=file, own=own)
    if reference not in {variant.name for variant in chosen}:
        raise RecipeError(
            f"--reference {reference} is not compared. Add it to --heads, or name one of them as the reference."
        )
    if search_epochs is not None and not rates:
        raise RecipeError("--search-epochs is for the tries of --lrs. Give the rates to try, or leave it out.")
    known = {} if lr_from is None else _known_rates(lr_from)
    plan = Plan(
        recipe,
        overrides,
        tuple(chosen),
        num_seeds=num_seeds,
        rates=rates,
        search_epochs=search_epochs,
        searches_all=search_ablations,
        known_rates=known,
        rates_from=None if lr_from is None else lr_from.resolve().name,
        skipped=skipped,
        reference=reference,
    )
    plan = drop_repeated(plan)
    unknown = [
        variant.name for variant in plan.variants if lr_from is not None and plan.rate_source(variant) == "recipe"
    ]
    if unknown:
        raise RecipeError(
            f"{lr_from} holds no learning rate for {', '.join(unknown)}. Leave them out of --heads, or search theirs by --lrs."
        )
    return plan


def _known_rates(folder: Path) -> dict[str, float]:
    from msrn.compare import ComparisonFolder
    from msrn.errors import TrainingError

    earlier = ComparisonFolder(folder).earlier("--lr-from")
    if earlier is None:
        raise TrainingError(f"{folder} holds no comparison. Give the folder of an msrn compare by --lr-from.")
    return {name: own["lr"] for name, own in earlier["variants"].items() if own["lr"] is not None}


def _words(text: str) -> list[str]:
    return [word for word in text.replace(",", " ").split() if word]


def _rates(text: str | None) -> tuple[float, ...]:
    from msrn.errors import RecipeError

    try:
        rates = [] if text is None else [float(word) for word in _words(text)]
    except ValueError:
        rates = [-1.0]
    if not all(0 < rate < float("inf") for rate in rates) or len(set(rates)) < len(rates):
        raise RecipeError(f"--lrs takes different positive numbers, as in 0.03,0.1,0.3; got '{text}'.")
    return tuple(rates)


def _list_runs(console: "Console", plan: "Plan", folder: "ComparisonFolder") -> dict[str, Any]:
    """Print every run, and whether it is done."""
    from rich.markup import escape
    from rich.table import Table

    from msrn.compare.execute import all_runs, estimate_s, progress
    from msrn.compare.folder import JOB_FILE
    from msrn.compare.summary import duration

    folder.earlier()  # says so where the folder is no comparison's
    records = folder.records()
    table = Table(
        "run",
        "epochs",
        "state",
        "takes",
        title=escape(f"{plan.base.name}, runs of the comparison"),
        title_justify="left",
    )
    listed = []
    for run in all_runs(plan, folder):
        record = folder.record(run)
        state = "begun" if (folder.training_dir(run) / JOB_FILE).is_file() else "to do"
        if folder.is_done(run):
            state = "done"
        elif record is not None:
            state = "failed, again"
        seconds = estimate_s(run, plan, records)
        epochs = plan.recipe_of(run).trainer.max_epochs
        table.add_row(escape(str(run)), str(epochs), state, "-" if seconds is None else duration(seconds))
        listed.append({"run": run.name, "epochs": epochs, "state": state, "estimated_seconds": seconds})
    console.print(table)
    num_done, num_all, left_s = progress(plan, folder)
    left = "the first run will tell how long" if left_s is None else f"about {duration(left_s)} left"
    console.print(f"{num_done} of {num_all} done; {left}", highlight=False)
    for name, reason in plan.skipped.items():
        console.print(f"left out: {name}, {reason}", highlight=False, markup=False)
    return {"runs": listed, "done": num_done, "estimated_seconds_left": left_s, "skipped": plan.skipped}


def print_comparison(console: "Console", comparison: dict[str, Any]) -> None:
    """Print protocol, table and notes."""
    from rich.markup import escape
    from rich.table import Table

    from msrn.compare.summary import COSTS_HEADER, HEADER, METRICS_HEADER, note_lines, protocol_lines, table_rows

    for line in protocol_lines(comparison):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    rows = table_rows(comparison)
    for title, columns in (
        (f"{comparison['protocol']['recipe']}, test split, %", METRICS_HEADER),
        ("what it takes", COSTS_HEADER),
    ):
        table = Table(HEADER[0], title=escape(title), title_justify="left")
        for column in columns:
            table.add_column(column, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*(escape(row[HEADER.index(column)]) for column in (HEADER[0], *columns)))
        console.print(table)
    for line in note_lines(comparison):
        console.print(line, highlight=False, markup=False, soft_wrap=True, style="yellow")
