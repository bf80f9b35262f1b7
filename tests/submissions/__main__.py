"""Writes the class to a folder: `python -m tests.submissions --out FOLDER`."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import typer
from tqdm.auto import tqdm

from loralab import Pair, choose_base, data_path, load_model, load_tokenizer, read_pairs, train
from tests.conftest import with_adapter

from .case import RECORD, RUN, Case, Parts
from .honest import HONEST
from .hostile import HOSTILE

SECRETS = ("secrets.txt", "gradebook.db", "home/.ssh", "home/.bashrc")


def plant_secrets(outside: Path) -> Path:
    """Make the folder of things that no submission may read or change, and return it."""
    for name in SECRETS:
        (outside / name).parent.mkdir(parents=True, exist_ok=True)
        (outside / name).write_text(f"secret: {name}\n")
    return outside


def train_parts(scratch: Path, outside: Path) -> Parts:
    """Train the two run folders that hand-ins are made of, unless they are there already."""
    base = choose_base("embedded")
    tokenizer = load_tokenizer(base)
    eval_pairs = read_pairs(data_path("pairs/eval.jsonl"))
    lessons: dict[str, list[Pair]] = {
        "honest": read_pairs(data_path("pairs/train.jsonl"))[:100],
        "on-eval": eval_pairs[:100],
    }
    for name, pairs in lessons.items():
        folder = scratch / name / RUN
        if not (folder / RECORD).exists():
            model = with_adapter(load_model(base))
            train(model, tokenizer, pairs, folder, base, eval_pairs=eval_pairs, quiet=True)
    return Parts(*(scratch / name / RUN for name in lessons), plant_secrets(outside))


def expected(cases: list[Case]) -> dict[str, dict[str, object]]:
    """What must come of every hand-in, by `<student>/<exercise>`."""
    return {
        f"{case.shown_id}/{case.exercise}": {
            "case": case.name,
            "tries": case.tries,
            "kind": case.kind,
            "honest": case.honest,
            **{mode: asdict(case.expected(mode)) for mode in ("sandbox", "artifacts")},
        }
        for case in cases
    }


def main(
    out: Annotated[Path, typer.Option(help="The folder to write submitted/ and expected.json to.")],
    only: Annotated[str, typer.Option(help="Only the cases whose name matches this regular expression.")] = "",
    kind: Annotated[
        list[str] | None, typer.Option(help="Only cases of this kind: files, runs, notebook, code.")
    ] = None,
) -> None:
    """Write honest and hostile hand-ins for a class, and what must come of each."""
    out = out.resolve()
    chosen = [case for case in (*HONEST, *HOSTILE) if re.search(only, case.name) and (not kind or case.kind in kind)]
    submitted = out / "submitted"
    shutil.rmtree(submitted, ignore_errors=True)
    parts = train_parts(out / "parts", out / "outside")
    for case in tqdm(chosen, desc="hand-ins"):
        case.write(submitted, parts)
    (out / "expected.json").write_text(json.dumps(expected(chosen), indent=1) + "\n")
    honest = sum(case.honest for case in chosen)
    print(f"{submitted}: {honest} honest and {len(chosen) - honest} hostile hand-ins; see expected.json")


if __name__ == "__main__":
    typer.run(main)
