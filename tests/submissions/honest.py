"""Hand-ins that must get all points: forms in which students send their work, and ways to write the same solution.

Variants of the training itself (seeds, batches, optimisers) stand in tests/grader/test_wrong_and_honest.py.
"""

from __future__ import annotations

import json
import shutil
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import nbformat
import torch
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output
from safetensors.torch import load_file, save_file

from loralab import pack

from .case import CONFIG, EX1, FULL, RECORD, RUN, WEIGHTS, Case, Cases, Parts, save
from .zips import stored, write_zip

HONEST = Cases()
ZIP = f"{EX1}.zip"
PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def form(tries: str) -> Callable[[Callable[[Path, Parts], None]], Callable[[Path, Parts], None]]:
    """Decorates what changes about a folder with the solved notebook and an honest run, both in it already."""

    def collect(change: Callable[[Path, Parts], None]) -> Callable[[Path, Parts], None]:
        def build(folder: Path, parts: Parts) -> None:
            save(parts.notebook(), folder)
            parts.run(folder / RUN, change.__name__)
            change(folder, parts)

        HONEST.append(Case(change.__name__.replace("_", "-"), tries, "runs", FULL, build))
        return change

    return collect


@form("notebook and run folder as they are")
def flat(folder: Path, parts: Parts) -> None:
    pass


@form("the run in a folder runs/")
def runs_folder(folder: Path, parts: Parts) -> None:
    (folder / "runs").mkdir()
    (folder / RUN).rename(folder / "runs" / RUN)


@form("the zip that loralab.pack makes, alone")
def packed(folder: Path, parts: Parts) -> None:
    _packed(folder)


def _packed(folder: Path) -> Path:
    """Replace the folder's content by the zip of it."""
    notebook = folder / f"{EX1}.ipynb"
    path = pack(EX1, folder, [RUN], notebook)
    notebook.unlink()
    shutil.rmtree(folder / RUN)
    return path


@form("the zip under the name that a learning platform gives to a second try")
def packed_and_renamed(folder: Path, parts: Parts) -> None:
    _packed(folder).rename(folder / "ex1_first_adapter (2) - Übung.zip")


@form("the zip packed again on a Mac, with what a Mac adds")
def packed_on_a_mac(folder: Path, parts: Parts) -> None:
    with zipfile.ZipFile(_packed(folder), "a") as archive:
        archive.writestr("__MACOSX/", b"")
        for name in (f"{RUN}/{WEIGHTS}", f"{RUN}/{RECORD}", f"{EX1}.ipynb"):
            head, _, tail = name.rpartition("/")
            archive.writestr(f"__MACOSX/{head}{'/' * bool(head)}._{tail}", b"\0\5\x16\7Mac OS X")
        archive.writestr(".DS_Store", b"\0\0\0\1Bud1")
        archive.writestr(f"{RUN}/.DS_Store", b"\0\0\0\1Bud1")


@form("a zip without compression, with an entry for every folder")
def stored_with_folders(folder: Path, parts: Parts) -> None:
    with zipfile.ZipFile(_packed(folder)) as archive:
        files = [stored(name, archive.read(name)) for name in archive.namelist()]
    write_zip(folder / ZIP, [stored(f"{RUN}/", b"", mode=0o040755), *files])


def _zipped(folder: Path, rename: Callable[[str], str], method: int = zipfile.ZIP_DEFLATED) -> None:
    """Replace the folder's content by a zip of it, its entries named anew."""
    names = [f"{EX1}.ipynb", *(f"{RUN}/{name}" for name in (WEIGHTS, CONFIG, RECORD))]
    with zipfile.ZipFile(folder / ZIP, "w", method) as archive:
        for name in names:
            archive.writestr(rename(name), (folder / name).read_bytes())
    (folder / f"{EX1}.ipynb").unlink()
    shutil.rmtree(folder / RUN)


@form("a zip of a folder in a folder")
def zip_two_folders_deep(folder: Path, parts: Parts) -> None:
    _zipped(folder, lambda name: f"homework/try 2/{name}")


@form("a zip with the path of a desktop in it")
def zip_with_a_desktops_path(folder: Path, parts: Parts) -> None:
    _zipped(folder, lambda name: f"Users/kim/Desktop/lora/{name}")


@form("a zip made on Colab: the notebook from the drive, the runs from the machine")
def zip_made_on_colab(folder: Path, parts: Parts) -> None:
    drive = "content/drive/MyDrive/Colab Notebooks"
    _zipped(folder, lambda name: f"{drive}/{name}" if name.endswith(".ipynb") else f"content/runs/{name}")


@form("a zip with backslashes between its folders, as an older PowerShell makes it")
def zip_of_powershell(folder: Path, parts: Parts) -> None:
    _zipped(folder, lambda name: f"homework/{name}".replace("/", "\\"))


@form("a zip compressed with LZMA")
def zip_with_lzma(folder: Path, parts: Parts) -> None:
    _zipped(folder, lambda name: name, zipfile.ZIP_LZMA)


@form("a zip in a zip, as a learning platform packs a file that was uploaded")
def zip_in_an_envelope(folder: Path, parts: Parts) -> None:
    inner = _packed(folder).rename(folder / "inner.zip")
    with zipfile.ZipFile(folder / "kim_123_file.zip", "w") as archive:
        archive.write(inner, ZIP)
    inner.unlink()


def _zipped_in(folder: Path, around: str, encoding: str) -> None:
    with zipfile.ZipFile(_packed(folder)) as archive:
        files = {f"{around}/{name}".encode(encoding): archive.read(name) for name in archive.namelist()}
    write_zip(folder / ZIP, [stored(name, content, flags=0) for name, content in files.items()])


@form("a zip of Windows in Japanese, in whose folder's name a letter's second byte is a backslash")
def zip_in_shift_jis(folder: Path, parts: Parts) -> None:
    _zipped_in(folder, "表示ソフト", "cp932")


@form("a zip of Windows in Korean")
def zip_in_cp949(folder: Path, parts: Parts) -> None:
    _zipped_in(folder, "과제 제출", "cp949")


@form("a tar.gz of the folder")
def tar_gz(folder: Path, parts: Parts) -> None:
    with tarfile.open(folder / f"{EX1}.tar.gz", "w:gz") as archive:
        for name in (f"{EX1}.ipynb", RUN):
            archive.add(folder / name, f"./{name}")
    (folder / f"{EX1}.ipynb").unlink()
    shutil.rmtree(folder / RUN)


@form("the run's files beside the notebook, without their folder")
def flattened_run(folder: Path, parts: Parts) -> None:
    for path in (folder / RUN).iterdir():
        path.rename(folder / path.name)
    (folder / RUN).rmdir()


@form("the run's folder under a name with an underscore")
def misnamed_run(folder: Path, parts: Parts) -> None:
    (folder / RUN).rename(folder / "first_adapter")


@form("the notebook under the name that a browser or a learning platform gives to it")
def renamed_notebook(folder: Path, parts: Parts) -> None:
    (folder / f"{EX1}.ipynb").rename(folder / f"{EX1} kim (1).ipynb")


@form("what file managers and editors leave in a folder")
def what_systems_leave(folder: Path, parts: Parts) -> None:
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", f"._{EX1}.ipynb", f"{RUN}/.DS_Store", f"{RUN}/._{RECORD}"):
        (folder / name).write_bytes(b"\0\1\2")
    (folder / "__MACOSX" / RUN).mkdir(parents=True)
    (folder / "__MACOSX" / RUN / f"._{RECORD}").write_bytes(b"\0")
    (folder / ".ipynb_checkpoints").mkdir()
    shutil.copy(folder / f"{EX1}.ipynb", folder / ".ipynb_checkpoints" / f"{EX1}-checkpoint.ipynb")


@form("notes, pictures and a paper beside the notebook, with names in other scripts")
def notes_and_pictures(folder: Path, parts: Parts) -> None:
    (folder / "README.md").write_text("# My notes\n")
    (folder / "부속 노트.txt").write_text("노트", "utf-8")
    (folder / "Verlauf größer.png").write_bytes(b"\x89PNG")
    (folder / "lora paper.pdf").write_bytes(b"%PDF-1.4")


@form("what Trainer leaves in a run folder: checkpoints, optimiser states and other pickles, a model card")
def checkpoints(folder: Path, parts: Parts) -> None:
    run = folder / RUN
    checkpoint = run / "checkpoint-100"
    checkpoint.mkdir()
    for name in (WEIGHTS, CONFIG):
        shutil.copy(run / name, checkpoint / name)
    (checkpoint / "trainer_state.json").write_text("{}")
    torch.save({"lr": 0.1}, checkpoint / "optimizer.pt")
    torch.save({"lr": 0.1}, run / "training_args.bin")
    (run / "README.md").write_text("---\nlibrary_name: peft\n---\n")
    (run / "tokenizer.json").write_text("{}")


@form("an earlier attempt in a run folder of its own")
def earlier_attempt(folder: Path, parts: Parts) -> None:
    parts.run(folder / "first-try", "earlier")
    (folder / "first-try" / RECORD).unlink()


def _in_16_bits(run: Path, dtype: torch.dtype) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in load_file(run / WEIGHTS).items()}
    save_file(weights, run / WEIGHTS, {"format": "pt"})


@form("the adapter stored in fp16")
def adapter_in_fp16(folder: Path, parts: Parts) -> None:
    _in_16_bits(folder / RUN, torch.float16)


@form("the adapter stored in bf16")
def adapter_in_bf16(folder: Path, parts: Parts) -> None:
    _in_16_bits(folder / RUN, torch.bfloat16)


@form("JSON with its keys in another order and in other lines, as an editor saves it on Windows")
def json_saved_by_an_editor(folder: Path, parts: Parts) -> None:
    for name in (RECORD, CONFIG):
        path = folder / RUN / name
        text = json.dumps(dict(reversed(json.loads(path.read_text()).items())), indent=4)
        path.write_bytes(text.replace("\n", "\r\n").encode() + b"\r\n")


@form("the config as older and newer versions of peft write it, fewer or further entries at their defaults")
def config_of_another_peft(folder: Path, parts: Parts) -> None:
    path = folder / RUN / CONFIG
    config = json.loads(path.read_text())
    config["target_modules"].reverse()
    config |= {"peft_version": "0.20.0", "inference_mode": False, "a_setting_to_come": None, "another_to_come": False}
    for name in ("use_dora", "lora_bias", "exclude_modules", "corda_config", "eva_config"):
        config.pop(name, None)
    path.write_text(json.dumps(config))


def _edit_config(folder: Path, **changes: object) -> None:
    path = folder / RUN / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@form("the same layers by a regular expression, the same scale by rsLoRA, and a start of another kind")
def config_in_other_words(folder: Path, parts: Parts) -> None:
    layers = r".*\.self_attn\.[qkvo]_proj"
    _edit_config(folder, target_modules=layers, use_rslora=True, lora_alpha=8, init_lora_weights="gaussian")


@form(
    "the same layers by their parents, patterns that match nothing, and the path of the base on the student's machine"
)
def config_with_paths(folder: Path, parts: Parts) -> None:
    targets = [f"self_attn.{name}_proj" for name in "qkvo"]
    base = r"C:\Users\kim\lora-course\data\base"
    _edit_config(folder, target_modules=targets, rank_pattern={"gate_proj": 4}, base_model_name_or_path=base)
    record = folder / RUN / RECORD
    record.write_text(json.dumps(json.loads(record.read_text()) | {"base": "base"}))


@form("all layers by their full names")
def config_with_every_layer(folder: Path, parts: Parts) -> None:
    names = [
        name.removeprefix("base_model.model.").partition(".lora_A")[0] for name in load_file(folder / RUN / WEIGHTS)
    ]
    _edit_config(folder, target_modules=sorted({name for name in names if "lora_B" not in name}))


@form("trained on a GPU, whose perplexities differ in the second place")
def trained_on_a_gpu(folder: Path, parts: Parts) -> None:
    path = folder / RUN / RECORD
    record = json.loads(path.read_text())
    record |= {"ppl_before": record["ppl_before"] * 1.02, "ppl_after": record["ppl_after"] * 0.98}
    path.write_text(json.dumps(record | {"hardware": "Tesla T4", "dtype": "float16", "peak_memory": 123_456_789}))


@form("files that may only be read")
def read_only_files(folder: Path, parts: Parts) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o444)


def _nothing(folder: Path, parts: Parts) -> None:
    save(parts.notebook(), folder)
    parts.run(folder / RUN, folder.parent.name)


IDS = {
    "id-with-spaces": "Anna Maria de la Cruz",
    "id-with-umlauts": "jürgen-groß",
    "id-with-umlauts-of-a-mac": unicodedata.normalize("NFD", "zoë-ångström"),
    "id-in-hangul": "김민준",
    "id-with-an-apostrophe": "o'neill, pat (2nd try)",
    "id-that-looks-like-an-option": "--help",
    "id-that-is-a-number": "007",
    "id-with-dots": "j.r.r.tolkien@example.edu",
    "long-id": "student-" * 12,
}
HONEST += [
    Case(name, "a student's id as people have them", "runs", FULL, _nothing, student=student)
    for name, student in IDS.items()
]


def notebook(tries: str) -> Callable[[Callable[[NotebookNode, Parts], str | bytes | None]], Callable]:
    """Decorates what changes about the solved notebook, or gives the content of its file. An honest run lies beside it."""

    def collect(change: Callable[[NotebookNode, Parts], str | bytes | None]) -> Callable:
        def build(folder: Path, parts: Parts) -> None:
            parts.run(folder / RUN, change.__name__)
            solved = parts.notebook()
            content = change(solved, parts)
            save(solved, folder)
            if content is not None:
                (folder / f"{EX1}.ipynb").write_bytes(content.encode() if isinstance(content, str) else content)

        HONEST.append(Case(change.__name__.replace("_", "-"), tries, "notebook", FULL, build))
        return change

    return collect


@notebook("with its outputs, pictures and widgets, as it was saved after running")
def with_outputs(solved: NotebookNode, parts: Parts) -> None:
    for number, cell in enumerate(solved.cells):
        if cell.cell_type == "code":
            cell.execution_count = number
            cell.outputs = [
                new_output("stream", name="stderr", text="UserWarning: something\n"),
                new_output("display_data", {"image/png": PICTURE, "text/html": "<b>bold</b>"}),
                new_output("display_data", {"application/vnd.jupyter.widget-view+json": {"model_id": "a1"}}),
            ]
    state = {"a1": {"model_name": "FloatProgressModel", "state": {"value": 1.0}}}
    solved.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": state, "version_major": 2}}


@notebook("with 3 MB of outputs")
def with_large_outputs(solved: NotebookNode, parts: Parts) -> None:
    solved.cells[-1].outputs = [new_output("stream", text="step 1: loss 5.0\n" * 180_000)]


@notebook("in the format of 2019, without ids of cells")
def of_an_older_format(solved: NotebookNode, parts: Parts) -> None:
    solved.nbformat_minor = 2
    for cell in solved.cells:
        del cell["id"]


@notebook("with further cells of the student's own, one of which would fail")
def with_further_cells(solved: NotebookNode, parts: Parts) -> None:
    solved.cells.insert(5, new_code_cell("train_pairs[:3]"))
    solved.cells.insert(9, new_markdown_cell("My notes: perplexity is *not* accuracy."))
    solved.cells.append(new_code_cell("1 / 0"))


@notebook("with the texts moved about and some deleted")
def with_texts_moved(solved: NotebookNode, parts: Parts) -> None:
    texts = [cell for cell in solved.cells if cell.cell_type == "markdown"]
    solved.cells = [cell for cell in solved.cells if cell.cell_type == "code"] + texts[::-2]


@notebook("with a check edited and another deleted: the instructor's own are run")
def with_checks_edited(solved: NotebookNode, parts: Parts) -> None:
    solved.cells = [cell for cell in solved.cells if cell.id != "check2"]
    for cell in solved.cells:
        if cell.id == "check1":
            cell.source = "print(encode_pair(tokenizer, train_pairs[0]))"


@notebook("with tags and metadata of JupyterLab, VS Code, Colab and jupytext")
def with_foreign_metadata(solved: NotebookNode, parts: Parts) -> None:
    for cell in solved.cells:
        cell.metadata |= {"collapsed": True, "tags": ["mine", "hide-input"], "vscode": {"languageId": "python"}}
        cell.metadata |= {"colab": {"base_uri": "https://localhost:8080/"}, "outputId": "a1", "lines_to_next_cell": 2}
    solved.metadata |= {"colab": {"provenance": []}, "accelerator": "GPU", "jupytext": {"formats": "ipynb,py"}}


@notebook("from a conda environment with a kernel of its own name and another Python")
def of_another_kernel(solved: NotebookNode, parts: Parts) -> None:
    solved.metadata["kernelspec"] = {
        "display_name": "Python [conda env:lora]",
        "language": "python",
        "name": "conda-lora",
    }
    solved.metadata["language_info"] = {"name": "python", "version": "3.13.1", "codemirror_mode": {"name": "ipython"}}


@notebook("with line ends of Windows, in the file and in its cells")
def with_line_ends_of_windows(solved: NotebookNode, parts: Parts) -> str:
    for cell in solved.cells:
        cell.source = cell.source.replace("\n", "\r\n")
    return nbformat.writes(solved).replace("\n", "\r\n")


@notebook("with a byte order mark")
def with_a_byte_order_mark(solved: NotebookNode, parts: Parts) -> str:
    return "\ufeff" + nbformat.writes(solved)


@notebook("in UTF-16, as an editor on Windows saves it")
def in_utf_16(solved: NotebookNode, parts: Parts) -> bytes:
    return nbformat.writes(solved).encode("utf-16")


@notebook("without nbgrader's metadata, which some converters drop")
def without_metadata(solved: NotebookNode, parts: Parts) -> None:
    for cell in solved.cells:
        cell.metadata.pop("nbgrader", None)


@notebook("with a solution cell that was split in JupyterLab")
def with_a_split_cell(solved: NotebookNode, parts: Parts) -> None:
    index = next(number for number, cell in enumerate(solved.cells) if cell.id == "task2")
    first, second = solved.cells[index].source.split("\n\n\n", 1)
    rest = new_code_cell(second, id="rest", metadata=solved.cells[index].metadata)
    solved.cells[index].source = first
    solved.cells.insert(index + 1, rest)


@notebook("in one line, with sources as one text each and escapes for what is not ASCII")
def in_one_line(solved: NotebookNode, parts: Parts) -> str:
    return json.dumps(solved, separators=(",", ":"))


@notebook("with sources as lists of lines")
def with_lists_of_lines(solved: NotebookNode, parts: Parts) -> str:
    plain = json.loads(json.dumps(solved))
    for cell in plain["cells"]:
        cell["source"] = cell["source"].splitlines(keepends=True)
    return json.dumps(plain, indent=4, ensure_ascii=False)


def code(name: str, tries: str, task: str, text: str) -> None:
    """A solution of one task written another way."""

    def build(folder: Path, parts: Parts) -> None:
        parts.run(folder / RUN, name)
        save(parts.notebook(**{task: dedent(text).strip("\n")}), folder)

    HONEST.append(Case(name, tries, "code", FULL, build))


code(
    "writes-to-stderr",
    "a right answer that warns, logs and prints to standard error",
    "task1",
    """
    import logging, sys, warnings

    def encode_pair(tokenizer, pair):
        if pair is train_pairs[0]:
            print("a note", file=sys.stderr)
            warnings.warn("something to know")
            logging.getLogger("mine").error("an error that is none")
        text = [{"role": "user", "content": pair.instruction}]
        prompt = list(tokenizer.apply_chat_template(text, add_generation_prompt=True, return_dict=True)["input_ids"])
        ending = list(tokenizer(pair.output, add_special_tokens=False)["input_ids"]) + [tokenizer.eos_token_id]
        return dict(input_ids=prompt + ending, labels=[-100 for _ in prompt] + ending)
    """,
)
code(
    "whole-conversation",
    "the template applied to the whole conversation, which is then cut at its end",
    "task1",
    """
    from itertools import chain, repeat

    def encode_pair(tokenizer, pair):
        messages = [dict(role=r, content=c) for r, c in (("user", pair.instruction), ("assistant", pair.output))]
        length = len(tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=True)["input_ids"])
        ids = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
        while ids[-1] != tokenizer.eos_token_id:
            ids = ids[:-1]
        return {"labels": list(chain(repeat(-100, length), ids[length:])), "input_ids": ids}
    """,
)
code(
    "helpers-and-classes",
    "helpers, a cache and a class, with type hints and names that are not ASCII",
    "task1",
    """
    from __future__ import annotations
    from dataclasses import dataclass
    from functools import lru_cache

    @dataclass(frozen=True)
    class Länge:
        π: int = -100

        def __mul__(self, anzahl: int) -> list[int]:
            return [self.π] * anzahl

    @lru_cache(maxsize=None)
    def _prompt(question: str) -> tuple[int, ...]:
        turn = {"role": "user", "content": question}
        return tuple(tokenizer.apply_chat_template([turn], add_generation_prompt=True, return_dict=True)["input_ids"])

    class Encoder:
        def __call__(self, tokenizer, pair) -> dict[str, list[int]]:
            prompt, answer = _prompt(pair.instruction), tokenizer(pair.output, add_special_tokens=False).input_ids
            labels = Länge() * len(prompt) + answer + [tokenizer.eos_token_id]
            return {"input_ids": [*prompt, *answer, tokenizer.eos_token_id], "labels": labels}

    encode_pair = Encoder()
    """,
)
code(
    "tabs-and-magics",
    "tabs for indents, magics, a shell command and a helper file of its own",
    "task1",
    """
    %config InlineBackend.figure_format = "retina"
    !echo a shell command
    import tempfile
    Path("notes.txt").write_text("scratch")
    with tempfile.TemporaryFile() as scratch:
    \tscratch.write(b"scratch")

    def encode_pair(tokenizer, pair):
    \tuser = {"role": "user", "content": pair.instruction}
    \tprompt = tokenizer.apply_chat_template([user], add_generation_prompt=True, return_dict=True)["input_ids"]
    \tending = tokenizer(pair.output, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    \treturn {"input_ids": prompt + ending, "labels": [-100] * len(prompt) + ending}
    """,
)
PERPLEXITY = """
def perplexity(losses):
    return math.exp(sum(nll for nll, _ in losses) / sum(n for _, n in losses))
"""
code(
    "loss-by-hand",
    "cross-entropy by hand, from log_softmax and gather",
    "task2",
    """
    def answer_loss(model, encoded):
        ids, labels = (torch.tensor(encoded[name])[None].to(model.device) for name in ("input_ids", "labels"))
        with torch.inference_mode():
            log_p = torch.log_softmax(model(ids).logits[:, :-1].float(), dim=-1)
        wanted = labels[:, 1:]
        learned = wanted != -100
        nll = -log_p.gather(-1, wanted.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        return nll[learned].sum().item(), learned.sum().item()
    """
    + PERPLEXITY.replace("\n", "\n    "),
)
code(
    "loss-token-by-token",
    "a loop over the tokens, and perplexity with numpy",
    "task2",
    """
    import numpy as np

    @torch.no_grad()
    def answer_loss(model, encoded):
        logits = model(torch.tensor([encoded["input_ids"]], device=model.device)).logits[0].float()
        total, count = 0.0, 0
        for position, label in enumerate(encoded["labels"][1:]):
            if label == -100:
                continue
            total -= (logits[position, label] - torch.logsumexp(logits[position], dim=0)).item()
            count += 1
        return total, count

    def perplexity(losses):
        nll, n = np.asarray(losses).T
        return float(np.exp(nll.sum() / n.sum()))
    """,
)
code(
    "loss-of-the-model",
    "the model's own loss, times the number of tokens",
    "task2",
    """
    def answer_loss(model, encoded):
        batch = {name: torch.tensor([values], device=model.device) for name, values in encoded.items()}
        count = sum(label != -100 for label in encoded["labels"][1:])
        with torch.no_grad():
            return model(**batch).loss.item() * count, count
    """
    + PERPLEXITY.replace("\n", "\n    "),
)
code(
    "settings-in-a-dict",
    "the adapter's settings in a dict, its targets as a set",
    "task3",
    """
    SETTINGS = dict(r=16, lora_alpha=2 * 16, lora_dropout=5e-2, bias="none", task_type="CAUSAL_LM")

    def attach_adapter(model):
        return get_peft_model(model, LoraConfig(target_modules={f"{x}_proj" for x in "vkqo"}, **SETTINGS))
    """,
)
code(
    "targets-found-by-name",
    "the targets collected from the model's own modules",
    "task3",
    """
    def attach_adapter(model):
        linear = {name.split(".")[-1] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
        found = sorted(name for name in linear if name[0] in "qkvo" and name.endswith("_proj"))
        return get_peft_model(model, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules=found))
    """,
)
code(
    "layer-with-functional",
    "a LoRA layer with torch.nn.functional, whose merge builds its layer from new",
    "task5",
    """
    import torch.nn.functional as F

    class LoRALinear(torch.nn.Module):
        def __init__(self, linear, r, alpha):
            super().__init__()
            for parameter in linear.parameters():
                parameter.requires_grad = False
            self.base, self.r, self.alpha = linear, r, alpha
            self.A = torch.nn.Parameter(torch.empty(r, linear.in_features))
            self.B = torch.nn.Parameter(torch.zeros(linear.out_features, r))
            torch.nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

        def delta(self):
            return torch.einsum("or,ri->oi", self.B, self.A) * self.alpha / self.r

        def forward(self, x):
            return F.linear(x, self.base.weight + self.delta(), self.base.bias)

        @torch.no_grad()
        def merge(self):
            d_out, d_in = self.base.weight.shape
            plain = torch.nn.Linear(d_in, d_out, bias=self.base.bias is not None)
            plain.weight.copy_(self.base.weight + self.delta())
            if self.base.bias is not None:
                plain.bias.copy_(self.base.bias)
            return plain
    """,
)
TRAIN = """
    def train_adapter(model, tokenizer, base, folder):
        encoded = [encode_pair(tokenizer, pair) for pair in train_pairs]
        return train(model, tokenizer, train_pairs, folder, base, eval_pairs=eval_pairs, encoded=encoded, {})
"""
for name, tries, settings in (
    ("larger-batches", "batches of eight, without a progress bar", "batch_size=8, seed=SEED, quiet=True"),
    ("workers-that-load", "a process of its own that loads the data", "seed=SEED, dataloader_num_workers=1"),
    ("another-seed", "a seed of its own and a linear decay", 'seed=2024, lr_scheduler_type="linear"'),
    ("checkpoints-while-training", "a checkpoint after every epoch", 'seed=SEED, save_strategy="epoch"'),
):
    code(name, tries, "task4", TRAIN.format(settings))
code(
    "a-trial-first",
    "a short trial into a folder of its own, a callback, and a picture",
    "task4",
    """
    import matplotlib.pyplot as plt
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            print(f"epoch {state.epoch:.0f}: loss {state.log_history[-1].get('loss', 0):.2f}", flush=True)

    def train_adapter(model, tokenizer, base, folder):
        pairs = [encode_pair(tokenizer, pair) for pair in train_pairs]
        trial = attach_adapter(load_model(base))
        train(trial, tokenizer, train_pairs, Path(folder).parent / "trial", base, epochs=0.2, encoded=pairs, quiet=True)
        record = train(model, tokenizer, train_pairs, folder, base, eval_pairs=eval_pairs, epochs=base.epochs,
                       seed=SEED, encoded=pairs, callbacks=[Watch()])
        plt.plot(record.losses)
        plt.savefig("losses.png")
        return record
    """,
)
code(
    "talkative",
    "prints a megabyte while it trains",
    "task4",
    """
    def train_adapter(model, tokenizer, base, folder):
        for step in range(10_000):
            print(f"{step:05} " + "." * 94)
        encoded = list(map(lambda pair: encode_pair(tokenizer, pair), train_pairs))
        options = dict(eval_pairs=eval_pairs, epochs=base.epochs, seed=SEED, encoded=encoded)
        return train(model, tokenizer, train_pairs, folder, base, **options)
    """,
)
