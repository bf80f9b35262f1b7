"""The chapters as they are committed, and executed anew from top to bottom."""

from __future__ import annotations

import re
from itertools import groupby

import nbformat
import pytest
from nbformat import NotebookNode

from tools.notebooks import BASES, chapters, learner_notebooks, run

PATHS = chapters()
# What would name the machine that a chapter ran on: its folders, its users, where its packages lie.
MACHINE = re.compile(r"(?<![\w./])/(home|root|tmp|usr|opt|mnt|Users|work|var)/|site-packages|ipykernel_\d|[A-Z]:\\\\")
FIGURE = re.compile(r"image/png|base64,")

each_chapter = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def committed():
    return {path: nbformat.read(path, as_version=4) for path in PATHS}


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [one for one in notebook.cells if one.cell_type == "code"]


def prose(notebook: NotebookNode) -> str:
    return "\n\n".join(one.source for one in notebook.cells if one.cell_type == "markdown")


def shape(notebook: NotebookNode) -> dict[str, list[str]]:
    """What each code cell shows, by kind: text, tables and figures, in their order (printed text may come in pieces)."""

    def kind(output: NotebookNode) -> str:
        return output.output_type if "data" not in output else "+".join(sorted(output.data))

    return {one.id: [name for name, _ in groupby(map(kind, one.outputs))] for one in code(notebook)}


def blemishes(notebook: NotebookNode) -> list[str]:
    """What no reader should see: errors, warnings, and the machine on which the chapter ran."""
    found = []
    for one in code(notebook):
        for output in one.outputs:
            if output.output_type == "error" or output.get("name") == "stderr":
                found.append(f"{one.id}: {output.get('evalue') or output.text}")
            # A figure's bytes are letters at random; what a reader reads is not.
            said = " ".join(str(v) for k, v in output.get("data", {}).items() if not FIGURE.search(f"{k}{v}"))
            if leak := MACHINE.search(output.get("text", "") + said):
                found.append(f"{one.id}: shows {leak.group()!r}")
    return found


def test_all_seven_chapters_are_there():
    assert [path.name[:2] for path in PATHS] == ["01", "02", "03", "04", "05", "06", "07"]


@each_chapter
def test_ids_are_stable_names_and_parameters_are_papermills(path, committed):
    notebook = committed[path]
    ids = [one.id for one in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert [name for name in ids if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)] == []
    assert ids[:3] == ["title", "bootstrap", "parameters"]
    assert [one.id for one in notebook.cells if "parameters" in one.metadata.get("tags", [])] == ["parameters"]
    assert re.findall(r"^(\w+) =", notebook.cells[2].source, re.M) == ["BASE", "SEED", "RUNS"]


@each_chapter
def test_it_is_committed_with_the_outputs_of_one_clean_run(path, committed):
    notebook = committed[path]
    counts = [one.execution_count for one in code(notebook)]
    assert None not in counts and counts == sorted(set(counts))
    assert blemishes(notebook) == []
    shown = "".join(o.get("text", "") for one in code(notebook) for o in one.outputs)
    assert f"base: {BASES.get(path.stem[:2], 'embedded')}" in shown


@each_chapter
def test_every_figure_has_alternative_text(path, committed):
    outputs = [(one.id, o) for one in code(committed[path]) for o in one.outputs if "image/png" in o.get("data", {})]
    assert outputs
    bare = [name for name, o in outputs if len(o.metadata.get("image/png", {}).get("alt", "")) < 40]
    assert bare == []


@each_chapter
def test_every_guess_is_shown_beside_the_result(path, committed):
    source = "\n".join(one.source for one in code(committed[path]))
    guesses = [name for line in re.findall(r"^(guess_.*?) = ", source, re.M) for name in line.split(", ")]
    assert guesses
    assert [name for name in guesses if len(re.findall(rf"\b{name}\b", source)) < 2] == []


# What is done to figures and axes; the functions of loralab.plots are not counted.
PLOTTING = re.compile(r"\b(plt|fig|axes|left|right|panels?)\b.*[.(]|^ +(fontsize|color|linewidth|xytext|label)=")


@each_chapter
def test_most_of_the_code_is_not_about_plotting(path, committed):
    lines = [line for one in code(committed[path])[2:] for line in one.source.splitlines() if line.strip()]
    plotting = [line for line in lines if PLOTTING.search(line)]
    assert len(plotting) <= 0.2 * len(lines), plotting


@each_chapter
def test_it_asks_for_a_guess_answers_and_leads_on(path, committed):
    text = prose(committed[path])
    assert text.count("**Predict:**") >= 3
    assert "> **Remember:**" in text
    assert len(re.findall(r"<details><summary>\d\. ", text)) in (2, 3)
    assert "The usual claim" in text
    assert "## Recap" in text
    assert text.count("<details>") == text.count("</details>")
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    assert [link for link in links if not (path.parent / link).exists()] == []


# IPython runs this in the kernel before the first cell. Trainings on every eighth example take an eighth of the steps, and
# those of a sweep, too, if they are not in processes of their own; every eighth text is measured, every eighth question
# answered with a few tokens, and what was found is lent to those after it; the base's own number of epochs is 2.
# `make chapters` and `make proof` run them whole.
SHORTER = """
def shorten(trainer, pool, measure, answers, profiles):
    profiles["embedded"] = replace(profiles["embedded"], epochs=2)
    generate, of_all = answers.generate_answers, measure.token_losses

    def generate_little(model, tokenizer, questions, max_new_tokens=80, **settings):
        found = generate(model, tokenizer, questions[::8], min(max_new_tokens, 8), **settings)
        return [found[i // 8] for i in range(len(questions))]

    def of_every_eighth(model, tokenizer, encoded, *rest):
        measured = of_all(model, tokenizer, encoded[::8], *rest)
        return [measured[i // 8] for i in range(len(encoded))]

    answers.generate_answers = generate_little
    measure.token_losses = of_every_eighth
    whole = trainer.__init__

    def few(examples):
        every_eighth = range(0, len(examples), 8)
        return examples.select(every_eighth) if hasattr(examples, "select") else [examples[i] for i in every_eighth]

    def on_few(self, *args, train_dataset=None, **settings):
        whole(self, *args, train_dataset=train_dataset and few(train_dataset), **settings)

    trainer.__init__ = on_few
    pool.run_all = lambda function, jobs, *settings, **others: ((job, function(job)) for job in jobs)

from dataclasses import replace
from loralab import answers, measure, pool
from loralab.bases import PROFILES
from transformers import Trainer
shorten(Trainer, pool, measure, answers, PROFILES)
del PROFILES, answers, measure, pool, replace, shorten
"""


@pytest.fixture
def shorter_trainings(tmp_path, monkeypatch):
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "shorter.py").write_text(SHORTER)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))


@each_chapter
def test_it_runs_from_top_to_bottom_and_shows_all_that_is_committed(path, committed, tmp_path, shorter_trainings):
    notebook = run(path, tmp_path / "run", "embedded")
    assert blemishes(notebook) == []
    assert shape(notebook) == shape(committed[path])


# A GPU without bf16, as Colab's T4 is: the base is held in fp16, and the gradient scaler refuses to train fp16 weights.
T4 = """
def simulate():
    def refusing(self, *args, model=None, **settings):
        if any(p.requires_grad and p.dtype == torch.float16 for p in model.parameters()):
            raise ValueError("Attempting to unscale FP16 gradients.")
        init(self, *args, model=model, **settings)

    init, Trainer.__init__ = Trainer.__init__, refusing
    hardware._of_this_cpu = lambda width: hardware.Precision("cpu", torch.float16, torch.float16, "a simulated T4")
    hardware.Precision.autocast = {"bf16": False, "fp16": False}

import torch
from loralab import hardware
from transformers import Trainer
simulate()
"""


@pytest.mark.slow
@pytest.mark.parametrize("path", learner_notebooks(), ids=lambda path: path.stem)
def test_it_runs_on_a_gpu_that_has_no_bf16(path, tmp_path, shorter_trainings, monkeypatch):
    with (tmp_path / "ipython" / "profile_default" / "startup" / "shorter.py").open("a") as startup:
        startup.write(T4)
    monkeypatch.setenv("LORALAB_SELFCHECK", "tell")  # what was trained on every eighth pair is no good
    run(path, tmp_path / "run", "embedded")
