"""The grader's parts: who may import whom, what loads torch, and what depends on where a file is."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from grader import pipeline
from grader.__main__ import PRELOADED
from grader.evaluation.reference_bands import FOLDER
from grader.exercises import EXERCISES, ROOT
from grader.records.ledger import decides
from grader.reports.html import PAGES

GRADER = ROOT / "grader"
PUBLIC = re.compile(r"from \.(\w+) import (\w+) as")
# From the top down: a part imports from its own and from those below it.
ORDER = (
    ("__main__",),
    ("cli",),
    ("grading",),
    ("term",),
    ("pipeline", "release"),
    ("reports",),
    ("records",),
    ("evaluation",),
    ("sandbox", "submission"),
    ("verdict",),
    ("text", "exercises", "errors", "console"),
)
FLOOR = {part: len(ORDER) - i for i, parts in enumerate(ORDER) for part in parts}
# `evaluation` measures its bands by running the solutions; otherwise the three wings below the records stand alone.
WINGS = {"evaluation", "sandbox", "submission"}
BETWEEN_WINGS = {("measure_bands", "sandbox")}


def imports(path: Path) -> set[str]:
    """The modules of the grader that a file imports, by their full names."""
    package = ("grader", *path.relative_to(GRADER).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith("grader.") and _is_module(name)}


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


FILES = [path for path in sorted(GRADER.rglob("*.py")) if path.parent != GRADER or path.stem != "__init__"]


def part(path: Path) -> str:
    return path.relative_to(GRADER).parts[0].removesuffix(".py")


def test_every_part_has_its_floor():
    assert {part(path) for path in FILES} == set(FLOOR)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(GRADER).as_posix())
def test_imports_run_down(path):
    own = part(path)
    others = {name.split(".")[1] for name in imports(path)} - {own}
    assert {other for other in others if FLOOR[other] >= FLOOR[own]} == set()
    if own in WINGS:
        assert {(path.stem, other) for other in others & WINGS} <= BETWEEN_WINGS


def test_no_module_imports_itself_by_way_of_others():
    names = {path: ".".join(("grader", *path.relative_to(GRADER).with_suffix("").parts)) for path in FILES}
    needs = {name: imports(path) for path, name in names.items()}
    while True:  # take away what needs nothing that is left
        free = {name for name in needs if not needs[name] & needs.keys() - {name}}
        if not free:
            break
        needs = {name: needed for name, needed in needs.items() if name not in free}
    assert needs == {}


@pytest.mark.parametrize("modules", [
    ["verdict", "text", "exercises"],
    [f"records.{name}" for name in ("ledger", "gradebook", "autograded")],
    [f"reports.{path.stem}" for path in sorted((GRADER / "reports").glob("*.py")) if path.stem != "__init__"],
    [f"submission.{path.stem}" for path in sorted((GRADER / "submission").glob("*.py")) if path.stem != "__init__"],
    ["cli", "term.collect", "term.export"],
], ids=lambda modules: modules[0].split(".")[0])  # fmt: skip
def test_words_records_reports_submissions_and_commands_need_no_torch(modules):
    slow = {"torch", "matplotlib"} | ({"nbformat"} if "cli" in modules else set())
    code = f"import sys, {', '.join(f'grader.{name}' for name in modules)}; print({slow} & sys.modules.keys())"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout == "set()\n"


# What depends on where a file is


def test_the_root_is_that_of_the_course():
    assert (ROOT / "grader" / "exercises.py").is_file() and (ROOT / "data" / "pairs").is_dir()
    assert all(exercise.solution.is_file() for exercise in EXERCISES.values())


def test_every_exercise_has_its_bands():
    assert {path.stem for path in FOLDER.glob("*.json")} == set(EXERCISES)


def test_every_template_is_found():
    templates = [path.name for path in (GRADER / "reports" / "templates").iterdir()]
    assert sorted(PAGES.list_templates()) == sorted(templates)
    assert all(PAGES.get_template(name) for name in templates if name.endswith(".html.j2"))


def test_what_is_loaded_ahead_is_the_module_of_the_job():
    assert importlib.util.find_spec(PRELOADED) is not None
    assert pipeline.grade.__module__ == PRELOADED


# What decides no verdict


def _loralab_modules(path: Path) -> set[str]:
    """The modules of loralab that a file, or the code of a notebook, imports."""
    if path.suffix == ".ipynb":
        cells = nbformat.read(path, as_version=4).cells
        source = "\n".join(cell.source for cell in cells if cell.cell_type == "code" and "loralab" in cell.source)
    else:
        source = path.read_text()
    public = {
        name: f"loralab/{module}.py" for module, name in PUBLIC.findall((ROOT / "loralab/__init__.pyi").read_text())
    }
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            own = path.parent.name == "loralab" and node.level == 1
            module = f"loralab.{node.module or ''}".strip(".") if own else node.module or ""
            if module == "loralab":
                found |= {public.get(alias.name, f"loralab/{alias.name}.py") for alias in node.names}
            elif module.startswith("loralab."):
                found.add(f"{module.replace('.', '/')}.py")
        elif isinstance(node, ast.Import):
            found |= {f"{alias.name.replace('.', '/')}.py" for alias in node.names if alias.name.startswith("loralab.")}
    return found


def test_no_part_of_loralab_that_decides_verdicts_is_left_out_of_their_hash():
    """What the grader and the exercises' notebooks import, and what that imports in turn."""
    notebooks = [*ROOT.glob("solutions/*/*.ipynb"), *ROOT.glob("exercises/*/*.ipynb")]
    graders = [path for path in FILES if decides(path.relative_to(ROOT).as_posix())]
    waiting = set().union(*map(_loralab_modules, notebooks + graders))
    needed = set()
    while waiting:
        name = waiting.pop()
        if name not in needed and (ROOT / name).is_file():
            needed.add(name)
            waiting |= _loralab_modules(ROOT / name)
    assert {"loralab/training.py", "loralab/measure.py", "loralab/scores.py"} <= needed
    assert [name for name in sorted(needed) if not decides(name)] == []
