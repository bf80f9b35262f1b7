"""Attacks by what a run folder holds: adapters, their configs and their records."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from loralab import data_path
from loralab.shapes import adapter_shape

from ..case import CONFIG, RECORD, RUN, WEIGHTS, Case, Cases, Parts, failed, graded
from .files import sprung

RUNS = Cases()
case = RUNS.add
Weights = dict[str, torch.Tensor]

# What an adapter that does not do the task earns by its form alone: its rank, targets, count and size, and that it moved.
# A record's losses are only claims: where the record does not match its adapter, they must add nothing.
IDLE, MOVED = 15, 15


def edit(path: Path, **changes: Any) -> None:
    """Change top-level entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def reweigh(run: Path, change: Callable[[Weights], Any]) -> None:
    """Change the tensors of an adapter, in its own file."""
    weights = load_file(run / WEIGHTS)
    change(weights)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, run / WEIGHTS, {"format": "pt"})


def scale(weights: Weights, factor: float, kind: str = "lora_B") -> None:
    for name, tensor in weights.items():
        if kind in name:
            tensor.mul_(factor)


def raw(header: bytes, content: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with any header, of any claimed length."""
    return struct.pack("<Q", len(header) if length is None else length) + header + content


@case(
    "runs",
    "a record without evaluation, so that it claims nothing",
    graded(r"no perplexities to compare with: train", 98),
)
def record_without_evaluation(folder: Path, parts: Parts) -> None:
    run = parts.run(folder / RUN, "record-without-evaluation")
    edit(run / RECORD, ppl_before=None, ppl_after=None, eval_pairs=0, eval_digest=None, leaks=None)


@case(
    "runs",
    "a pickle that runs code when it is loaded, under peft's old name",
    failed("is a pickle, which can run code"),
)
def pickle_adapter(folder: Path, parts: Parts) -> None:
    run = parts.run(folder / RUN, "pickle-adapter")
    (run / WEIGHTS).unlink()
    (run / "adapter_model.bin").write_bytes(sprung(parts))


@case("runs", "the same pickle under the name of a safe file", failed("not safetensors"))
def pickle_in_disguise(folder: Path, parts: Parts) -> None:
    run = parts.run(folder / RUN, "pickle-in-disguise")
    (run / WEIGHTS).write_bytes(sprung(parts))


@case("runs", "pickles beside a sound run, for a grader that loads whatever lies there", graded("", 100))
def pickles_beside(folder: Path, parts: Parts) -> None:
    run = parts.run(folder / RUN, "pickles-beside")
    for name in ("training_args.bin", "adapter_model.bin", "optimizer.pt", ".OTTER_LOG", "run.pkl"):
        (run / name).write_bytes(sprung(parts))


@case("runs", "modules beside the hand-in that Python would import at its start", graded("", 100))
def planted_modules(folder: Path, parts: Parts) -> None:
    parts.run(folder / RUN, "planted-modules")
    plant(folder, parts)


def plant(folder: Path, parts: Parts) -> None:
    """Modules and start-up files that make a folder among the things outside if they are run."""
    line = f"import os; os.makedirs({str(parts.outside / 'a-planted-file-was-run')!r}, exist_ok=True)\n"
    for name in ("sitecustomize", "usercustomize", "torch", "json", "conftest", "loralab", "peft", "ipython_config"):
        (folder / f"{name}.py").write_text(line)
    (folder / "planted.pth").write_text(line)
    startup = folder / ".ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00.py").write_text(line)


@case("runs", "a safetensors header that says it is 4 EB long", failed("cannot be read"))
def huge_header(folder: Path, parts: Parts) -> None:
    run = parts.run(folder / RUN, "huge-header")
    (run / WEIGHTS).write_bytes(raw(b"{}", length=2**62))


@case("runs", "a safetensors header nested a hundred thousand deep", failed("cannot be read"))
def deep_header(folder: Path, parts: Parts) -> None:
    run = parts.run(folder / RUN, "deep-header")
    (run / WEIGHTS).write_bytes(raw(b'{"__metadata__":' + b"[" * 100_000))


@case("runs", "one tensor of a billion by a billion entries, in four bytes", failed("cannot be read"))
def shape_that_overflows(folder: Path, parts: Parts) -> None:
    run = parts.run(folder / RUN, "shape-that-overflows")
    header = {"a": {"dtype": "F32", "shape": [10**12, 10**12], "data_offsets": [0, 4]}}
    (run / WEIGHTS).write_bytes(raw(json.dumps(header).encode(), b"\0" * 4))


@case("runs", "every tensor shares the same bytes", failed("cannot be read"))
def tensors_that_overlap(folder: Path, parts: Parts) -> None:
    run = parts.run(folder / RUN, "tensors-that-overlap")
    header = {
        name: {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [0, tensor.numel() * 4]}
        for name, tensor in load_file(run / WEIGHTS).items()
    }
    (run / WEIGHTS).write_bytes(raw(json.dumps(header).encode(), b"\0" * 4096 * 4))


@case("runs", "fifty thousand further tensors without a single entry", failed("is not part of it"))
def many_tensors(folder: Path, parts: Parts) -> None:
    run = parts.run(folder / RUN, "many-tensors")
    reweigh(run, lambda weights: weights.update({f"x{number}": torch.zeros(0) for number in range(50_000)}))


@case("runs", "matrices of other shapes than the config's", failed("has shape"))
def wrong_shapes(folder: Path, parts: Parts) -> None:
    run = parts.run(folder / RUN, "wrong-shapes")
    reweigh(run, lambda weights: weights.update({name: tensor.T for name, tensor in weights.items()}))


@case("runs", "weights that are not numbers, so that every comparison is false", failed("holds NaN or infinity"))
def nan_weights(folder: Path, parts: Parts) -> None:
    run = parts.run(folder / RUN, "nan-weights")
    reweigh(run, lambda weights: scale(weights, float("nan")))


@case("runs", "finite weights that overflow in the model", failed("any training run of this course"))
def weights_that_overflow(folder: Path, parts: Parts) -> None:
    run = parts.run(folder / RUN, "weights-that-overflow")
    reweigh(run, lambda weights: scale(weights, 1e38 / 10, ""))


@case(
    "runs", "weights large enough that a perplexity is beyond any float", graded("does not match its own adapter", IDLE)
)
def perplexity_that_overflows(folder: Path, parts: Parts) -> None:
    run = parts.run(folder / RUN, "perplexity-that-overflows")
    reweigh(run, lambda weights: scale(weights, 1e4))


@case("runs", "a trained lm_head in the file, beside the adapter", failed("is not part of it"))
def modules_to_save(folder: Path, parts: Parts) -> None:
    run = parts.run(folder / RUN, "modules-to-save")
    head = {"base_model.model.lm_head.modules_to_save.default.weight": torch.ones(8, 8)}
    reweigh(run, lambda weights: weights.update(head))


@case("runs", "modules_to_save in the config alone", failed("modules_to_save is"))
def modules_to_save_in_the_config(folder: Path, parts: Parts) -> None:
    edit(parts.run(folder / RUN, "modules-to-save-in-the-config") / CONFIG, modules_to_save=["lm_head"])


@case(
    "runs",
    "target modules by a regular expression that never ends",
    failed("not a regular expression that can be read"),
)
def regular_expression_without_an_end(folder: Path, parts: Parts) -> None:
    edit(parts.run(folder / RUN, "regular-expression-without-an-end") / CONFIG, target_modules="(?:.|.)+[!?]")


@case("runs", "ranks by a pattern, which only some layers have", failed("rank_pattern is"))
def rank_by_a_pattern(folder: Path, parts: Parts) -> None:
    edit(parts.run(folder / RUN, "rank-by-a-pattern") / CONFIG, rank_pattern={r"layers\.0\..*": 64})


@case("runs", "a start that changes the base, which is not handed in", failed("init_lora_weights is 'pissa'"))
def start_that_changes_the_base(folder: Path, parts: Parts) -> None:
    edit(parts.run(folder / RUN, "start-that-changes-the-base") / CONFIG, init_lora_weights="pissa")


@case("runs", "remote code by auto_map", failed("auto_map is"))
def remote_code(folder: Path, parts: Parts) -> None:
    run = parts.run(folder / RUN, "remote-code")
    edit(run / CONFIG, auto_map={"AutoModel": "evil--model.Evil"}, trust_remote_code=True)
    plant(run, parts)


@case("runs", "a class to be imported by auto_mapping", failed("auto_mapping"))
def class_to_be_imported(folder: Path, parts: Parts) -> None:
    mapping = {"base_model_class": "system", "parent_library": "os"}
    edit(parts.run(folder / RUN, "class-to-be-imported") / CONFIG, auto_mapping=mapping)


@case("runs", "a path instead of the base's name", failed("base_model_name_or_path"))
def path_as_a_base(folder: Path, parts: Parts) -> None:
    edit(parts.run(folder / RUN, "path-as-a-base") / CONFIG, base_model_name_or_path="../../../outside")


@case("runs", "the name of another base over an adapter of the right shape", failed("base_model_name_or_path"))
def name_of_another_base(folder: Path, parts: Parts) -> None:
    name = "Qwen/Qwen2.5-0.5B-Instruct"
    edit(parts.run(folder / RUN, "name-of-another-base") / CONFIG, base_model_name_or_path=name)


@case("runs", "an adapter for Qwen2.5-0.5B", failed("is not part of it|has shape|base_model_name_or_path"))
def adapter_for_another_base(folder: Path, parts: Parts) -> None:
    run = parts.run(folder / RUN, "adapter-for-another-base")
    shape = adapter_shape(str(data_path("configs/qwen2.5-0.5b")), 16, ("q_proj", "k_proj", "v_proj", "o_proj"))
    tensors = {name: torch.full(size, 0.01, dtype=torch.float16) for name, size in shape.tensors.items()}
    save_file(tensors, run / WEIGHTS, {"format": "pt"})


@case("runs", "a record that says it was trained on a larger base", failed("run.json says it was trained on"))
def record_of_another_base(folder: Path, parts: Parts) -> None:
    edit(parts.run(folder / RUN, "record-of-another-base") / RECORD, base="qwen2.5-0.5b")


@case(
    "runs", "the record of an honest run over an adapter that was never trained", graded("B is still all zeros", IDLE)
)
def record_with_lies(folder: Path, parts: Parts) -> None:
    run = parts.run(folder / RUN, "record-with-lies")
    reweigh(run, lambda weights: scale(weights, 0))


@case(
    "runs", "a sound adapter, and a record that claims a perplexity of 1", graded("does not match its own adapter", 95)
)
def record_that_boasts(folder: Path, parts: Parts) -> None:
    edit(parts.run(folder / RUN, "record-that-boasts") / RECORD, ppl_after=1.0)


@case(
    "runs",
    "an adapter that hardly moves, with a record that is true of it and losses that are invented",
    graded("counts only for an adapter that", IDLE),
)
def idle_with_a_true_record(folder: Path, parts: Parts) -> None:
    run = parts.run(folder / RUN, "idle-with-a-true-record")
    reweigh(run, lambda weights: scale(weights, 1e-4))
    edit(run / RECORD, ppl_after=json.loads((run / RECORD).read_text())["ppl_before"])


def _with_less_training(run: Path, **record: float) -> None:
    told = json.loads((run / RECORD).read_text())
    share = record.get("train_pairs", 100) * record.get("epochs", told["epochs"]) / (100 * told["epochs"])
    edit(run / RECORD, tokens=round(share * told["tokens"]), **record)


@case("runs", "a record that says: half the pairs", graded("on 50 pairs, not 100", 97))
def half_the_pairs(folder: Path, parts: Parts) -> None:
    _with_less_training(parts.run(folder / RUN, "half-the-pairs"), train_pairs=50, ends=50)


@case("runs", "a record that says: a quarter of the epochs", graded("for 2 epochs, not 8", 97))
def a_quarter_of_the_epochs(folder: Path, parts: Parts) -> None:
    _with_less_training(parts.run(folder / RUN, "a-quarter-of-the-epochs"), epochs=2)


@case("runs", "fifteen thousand targets in the record", failed("characters in addition to its losses"))
def fifteen_thousand_targets(folder: Path, parts: Parts) -> None:
    edit(parts.run(folder / RUN, "fifteen-thousand-targets") / RECORD, targets=["a layer that is none" * 3] * 15_000)


@case("runs", "two columns of 2^40 that cancel", failed("any training run of this course"))
def columns_that_cancel(folder: Path, parts: Parts) -> None:
    def cancel(weights: Weights) -> None:
        for name, tensor in weights.items():
            if "lora_B" in name:
                tensor[:, 0], tensor[:, 1] = 2.0**40, -(2.0**40)
            else:
                tensor[1] = tensor[0]

    reweigh(parts.run(folder / RUN, "columns-that-cancel"), cancel)


@case(
    "runs",
    "noise in place of weights, with the record of an honest run",
    graded("does not match its own adapter", MOVED),
)
def noise(folder: Path, parts: Parts) -> None:
    run = parts.run(folder / RUN, "noise")
    generator = torch.Generator().manual_seed(0)
    reweigh(run, lambda weights: [tensor.normal_(0, 0.05, generator=generator) for tensor in weights.values()])


@case("runs", "numbers in the record that no float can hold", failed("run.json"))
def numbers_beyond_floats(folder: Path, parts: Parts) -> None:
    edit(parts.run(folder / RUN, "numbers-beyond-floats") / RECORD, trainable=10**400, parameters=1, tokens=10**400)


@case("runs", "a record without parameters, to divide by", failed(r"run\.json.*parameters"))
def division_by_zero(folder: Path, parts: Parts) -> None:
    edit(parts.run(folder / RUN, "division-by-zero") / RECORD, parameters=0)


@case("runs", "half a character in the record, which no file can be written with", failed("run.json"))
def half_a_character(folder: Path, parts: Parts) -> None:
    edit(parts.run(folder / RUN, "half-a-character") / RECORD, name="\ud800", hardware="\udfff")


@case("runs", "a record in UTF-16", failed("not UTF-8"))
def record_in_utf_16(folder: Path, parts: Parts) -> None:
    run = parts.run(folder / RUN, "record-in-utf-16")
    (run / RECORD).write_bytes((run / RECORD).read_text().encode("utf-16"))


@case("runs", "a record nested a million deep", failed("run.json"))
def deep_record(folder: Path, parts: Parts) -> None:
    run = parts.run(folder / RUN, "deep-record")
    (run / RECORD).write_text("[" * 10**6)


@case("runs", "a config nested thirty thousand deep", failed("not valid JSON|nested"))
def deep_config(folder: Path, parts: Parts) -> None:
    run = parts.run(folder / RUN, "deep-config")
    (run / CONFIG).write_text('{"r": ' + "[" * 30_000)


@case("runs", "a rank of a billion, for a grader that makes room before it looks", failed("r: Input should be less"))
def rank_of_a_billion(folder: Path, parts: Parts) -> None:
    edit(parts.run(folder / RUN, "rank-of-a-billion") / CONFIG, r=10**9)


@case("runs", "an alpha that is not a number", failed("lora_alpha"))
def alpha_that_is_no_number(folder: Path, parts: Parts) -> None:
    edit(parts.run(folder / RUN, "alpha-that-is-no-number") / CONFIG, lora_alpha=float("nan"))


@case("runs", "what a pickle calls __reduce__, in the config", failed("__reduce__"))
def reduce_in_the_config(folder: Path, parts: Parts) -> None:
    call = ["os.mkdir", [str(parts.outside / "a-config-was-run")]]
    edit(parts.run(folder / RUN, "reduce-in-the-config") / CONFIG, __reduce__=call)


@case("runs", "__reduce__ in the metadata of a safetensors file", graded("not as peft writes this adapter", 97))
def reduce_in_metadata(folder: Path, parts: Parts) -> None:
    run = parts.run(folder / RUN, "reduce-in-metadata")
    call = json.dumps(["os.mkdir", [str(parts.outside / "metadata-was-run")]])
    save_file(load_file(run / WEIGHTS), run / WEIGHTS, {"format": "pt", "__reduce__": call, "py/reduce": call})


@case("runs", "HTML, a script and a formula in the record, beside a sound adapter", graded("", 100))
def script_in_the_record(folder: Path, parts: Parts) -> None:
    script = "</td><script>alert(document.cookie)</script><img src=x onerror=alert(1)>"
    run = parts.run(folder / RUN, "script-in-the-record")
    edit(
        run / RECORD, name=script, hardware=f"=cmd|'/C calc'!A0 {script}", created="\x1b[2J", versions={script: script}
    )


@case("runs", "trained on the public evaluation pairs", graded("it was trained on the evaluation pairs", 97))
def trained_on_the_evaluation_pairs(folder: Path, parts: Parts) -> None:
    parts_of_cheat = Parts(parts.on_eval, parts.on_eval, parts.outside)
    parts_of_cheat.run(folder / RUN, "trained-on-the-evaluation-pairs")


def _reference(folder: Path, parts: Parts) -> None:
    parts.run(folder / RUN, "the reference")


# The reference solution's adapter is a real one, and so are its points: what is wrong is that two students have the
# same, which the report's groups of identical adapters show to the instructor.
RUNS += [
    Case(
        f"reference-copied-{number}",
        "the adapter of the reference solution, copied",
        "runs",
        graded("", 100),
        _reference,
    )
    for number in (1, 2)
]


@case("runs", "one adapter for all three ranks", graded("the same adapter as", 40), exercise="ex2_rank_sweep")
def one_adapter_for_all_ranks(folder: Path, parts: Parts) -> None:
    for rank in (4, 16, 64):
        parts.run(folder / f"rank-{rank}", "one-adapter-for-all-ranks")
        edit(folder / f"rank-{rank}" / RECORD, name=f"rank-{rank}")


@case(
    "runs",
    "one adapter of rank 16 for rank 64 as well, padded with zeros so that the shapes fit",
    graded("of a lower rank", 30),
    exercise="ex2_rank_sweep",
)
def one_adapter_padded(folder: Path, parts: Parts) -> None:
    _as_rank_64_too(folder, parts, "one-adapter-padded", _padded)


def _as_rank_64_too(folder: Path, parts: Parts, owner: str, grown: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    parts.run(folder / "rank-16", owner)
    run = parts.run(folder / "rank-64", owner)
    reweigh(run, lambda weights: weights.update({name: grown(name, weights[name]) for name in weights}))
    edit(run / CONFIG, r=64, lora_alpha=128)
    told = sum(tensor.numel() for tensor in load_file(run / WEIGHTS).values())
    edit(run / RECORD, name="rank-64", rank=64, alpha=128, trainable=told, adapter_bytes=(run / WEIGHTS).stat().st_size)


def _padded(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(tensor, (0, 0, 0, 48) if ".lora_A." in name else (0, 48))


@case(
    "runs",
    "one adapter of rank 16 for rank 64 as well, padded with noise that is as large as what it learned",
    graded("the same adapter as", 40),
    exercise="ex2_rank_sweep",
)
def one_adapter_under_noise(folder: Path, parts: Parts) -> None:
    random = torch.Generator().manual_seed(0)

    def noisy(name: str, tensor: torch.Tensor) -> torch.Tensor:
        grown = _padded(name, tensor)
        fresh = torch.randn(grown.shape, generator=random) * tensor.std()
        return torch.where(_padded(name, torch.ones_like(tensor)) > 0, grown, fresh)

    _as_rank_64_too(folder, parts, "one-adapter-under-noise", noisy)


@case(
    "runs",
    "one adapter of rank 16 for rank 4 as well, cut to its strongest directions",
    graded("the same adapter as", 40),
    exercise="ex2_rank_sweep",
)
def one_adapter_cut(folder: Path, parts: Parts) -> None:
    parts.run(folder / "rank-16", "one-adapter-cut")
    run = parts.run(folder / "rank-4", "one-adapter-cut")

    def cut(weights: Weights) -> None:
        for name in [name for name in weights if ".lora_A." in name]:
            b = name.replace(".lora_A.", ".lora_B.")
            u, s, v = torch.linalg.svd(weights[b] @ weights[name], full_matrices=False)
            weights |= {name: v[:4].clone(), b: (u[:, :4] * s[:4]).contiguous()}

    reweigh(run, cut)
    edit(run / CONFIG, r=4, lora_alpha=8)
    told = sum(tensor.numel() for tensor in load_file(run / WEIGHTS).values())
    edit(run / RECORD, name="rank-4", rank=4, alpha=8, trainable=told, adapter_bytes=(run / WEIGHTS).stat().st_size)


@case(
    "runs",
    "one adapter for all three ranks, the configs changed to say otherwise",
    graded("has shape", 40),
    exercise="ex2_rank_sweep",
)
def one_adapter_under_three_configs(folder: Path, parts: Parts) -> None:
    for rank in (4, 16, 64):
        parts.run(folder / f"rank-{rank}", "one-adapter-under-three-configs")
        edit(folder / f"rank-{rank}" / RECORD, name=f"rank-{rank}", rank=rank)
        edit(folder / f"rank-{rank}" / CONFIG, r=rank, lora_alpha=2 * rank)


@case("runs", "one adapter for both bases of exercise 4", graded("the same adapter as", 50), exercise="ex4_qlora")
def one_adapter_for_both_bases(folder: Path, parts: Parts) -> None:
    for name in ("lora", "qlora"):
        parts.run(folder / name, "one-adapter-for-both-bases")
        edit(folder / name / RECORD, name=name, method=name)


@case(
    "runs",
    "one adapter for both bases, its halves scaled so far apart that their products overflow",
    graded("any training run of this course", 50),
    exercise="ex4_qlora",
)
def one_adapter_rescaled(folder: Path, parts: Parts) -> None:
    one_adapter_for_both_bases(folder, parts)
    # By powers of two, which change no product.
    reweigh(folder / "qlora", lambda weights: (scale(weights, 2.0**66, "lora_A"), scale(weights, 2.0**-66)))
