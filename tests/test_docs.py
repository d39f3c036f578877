"""README and docs name only what exists: commands, options, recipe keys, files, Python names."""

import importlib.util
import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import msrn
from msrn.cli.main import app
from msrn.recipes import list_recipes
from msrn.recipes.reference import recipe_reference
from msrn.recipes.schema import known_keys

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
RECIPES = sorted((ROOT / "src").rglob("recipes/*.yaml"))


def command_lines(text: str) -> list[list[str]]:
    """Every indented or commented line that starts with `msrn`, as words; continuation lines are joined."""
    joined = text.replace("\\\n", " ")
    return [
        shlex.split(line.split(" | ")[0]) for line in re.findall(r"^(?: {4,}|#\s+)msrn (.+)$", joined, re.MULTILINE)
    ]


def check_command(words: list[str]) -> None:
    command, depth = typer.main.get_command(app), 0
    while hasattr(command, "commands"):  # a group such as `msrn data`
        assert words[depth] in command.commands, f"no command {' '.join(words[: depth + 1])}"
        command, depth = command.commands[words[depth]], depth + 1
    options = {name for parameter in command.params for name in parameter.opts}
    with_value = {
        name for parameter in command.params for name in parameter.opts if not getattr(parameter, "is_flag", True)
    }
    for before, word in itertools.pairwise(words):
        if before in with_value:
            continue  # the option's value, which may hold "=" too
        if word.startswith("--"):
            assert word in options, f"msrn {words[0]} has no {word}"
        elif "=" in word and words[0] != "serve":  # which takes NAME=BUNDLE
            assert word.split("=")[0] in known_keys(), f"no recipe key {word}"
    if words[0] == "train" and not words[1].endswith(".yaml"):
        assert words[1] in list_recipes()


@pytest.mark.parametrize("page", [*PAGES, *RECIPES], ids=lambda page: page.name)
def test_commands_options_and_keys_exist(page):
    for words in command_lines(page.read_text(encoding="utf-8")):
        check_command(words)


def leaf_commands(command, name=""):
    """Every command that does something, with its whole name."""
    if hasattr(command, "commands"):
        for word, below in command.commands.items():
            yield from leaf_commands(below, f"{name} {word}".strip())
    else:
        yield name, command


def test_epilogs_hold_commands_that_exist():
    for name, command in leaf_commands(typer.main.get_command(app)):
        examples = re.findall(r"^ {2}msrn (.+)$", command.epilog or "", re.MULTILINE)
        assert examples, f"msrn {name} --help shows no example"
        for line in examples:
            check_command(shlex.split(line.split(" | ")[0]))


def test_every_recipe_opens_with_its_command():
    assert RECIPES
    for path in RECIPES:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert lines[0].startswith("# ")
        assert any(f"msrn train {path.stem}" in line for line in lines[:3])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+?)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_python_in_the_readme_uses_public_names():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        compile(block, "README.md", "exec")
        for name in re.findall(r"\bmsrn\.(\w+)", block):
            assert name in msrn.__all__


def test_tables_of_results_are_those_of_the_json_files():
    spec = importlib.util.spec_from_file_location("table", ROOT / "benchmarks" / "table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, (page, _) in module.TABLES.items():
        assert module.block(name) in (ROOT / page).read_text(encoding="utf-8"), (
            "run: python benchmarks/table.py --write"
        )


def test_the_recipe_reference_is_that_of_the_program():
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert page == recipe_reference(), "run: python -m msrn.recipes.reference > docs/recipes.md"


def test_every_fault_has_a_row_and_every_row_a_test() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| (.+?) \| .+ \| `(\S+?)::(\w+)` \|$", page, flags=re.MULTILINE))
    marks = {
        (title, str(path.relative_to(ROOT / "tests")), name)
        for path in (ROOT / "tests").rglob("test_*.py")
        for title, name in re.findall(
            r'@pytest\.mark\.fault\(\s*"([^"]+)",?\s*\)\n(?:@.+\n|(?: .+|\))\n)*def (\w+)\(',
            path.read_text(encoding="utf-8"),
        )
    }
    assert rows == marks
    assert len(rows) == page.count("::")


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    """Every page is in the menu, every link and anchor leads somewhere, every name of the API exists."""
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "-q",
        "-f",
        ROOT / "mkdocs.yml",
        "-d",
        tmp_path / "site",
    ]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(https?://[^"]+\.(?:js|css|woff2?))"', page), (
        "the site asks nobody for anything"
    )

    api = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    found = set(re.findall(r'id="(msrn\.[\w.]+)"', api))
    assert {f"msrn.{name}" for name in msrn.__all__ if not name.startswith("__")} <= found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_rows_of_tables_have_the_cells_of_their_header(page: Path) -> None:
    for table in re.findall(r"^\|.*\n\| ?:?-.*\n(?:\|.*\n)+", page.read_text(encoding="utf-8"), re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(widths) == 1, table[:200]


def test_links_to_files_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "CHANGELOG.md"):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_spelling() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "src", ROOT / "examples"]
    done = subprocess.run(
        [sys.executable, "-m", "codespell_lib", *pages], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.stdout == ""
