"""`loralab train`, `compare` and `chat`."""

import json
import math
import re
import shlex
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from transformers import LlamaConfig, Qwen2Config, TrainerCallback
from typer.testing import CliRunner

from loralab import Pair, RunRecord, Scores, load_model, perplexity, read_pairs, train, write_pairs
from loralab import train_command as command
from loralab.bases import HIGHEST_RATE, UNKNOWN_RATE, rate_rule
from loralab.chat import open_chat, talk
from loralab.cli import app
from loralab.compare import conclusions
from loralab.errors import LoralabError
from loralab.fourbit import recorded_quantization, same_quantization
from loralab.pairs import Turn, digest
from loralab.record import duration
from loralab.split import hold_out
from loralab.sweep import plan as sweep_plan
from tests.conftest import with_adapter

SHORTER = {"train": ["--epochs", "1"], "sweep": ["--epochs", "0.1", "--seeds", "1"]}  # what takes minutes otherwise
DOC = Path(__file__).parents[2] / "docs" / "own-data.md"


@pytest.fixture
def run():
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def data(train_pairs, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "mine.jsonl"
    write_pairs(path, train_pairs[:16])
    return path


@pytest.fixture(scope="module")
def few(train_pairs, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("few") / "few.jsonl"
    write_pairs(path, train_pairs[:4])
    return path


class Interrupt(TrainerCallback):
    """Presses Ctrl-C during a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step:
            signal.raise_signal(signal.SIGINT)


def planned(data, out, **options):
    usual = {"rank": 2, "targets": "qv", "evaluation": "0", "epochs": 2, "batch_size": 4}
    return command.plan_training(str(data), out=out, **usual | options)


@pytest.mark.parametrize("step", [1, 3])  # in an epoch, and at its end (4 steps each)
def test_an_interrupted_run_resumes_to_the_same_result(data, tmp_path, step):
    whole = command.run_training(planned(data, tmp_path / "whole"), quiet=True)
    plan, usual = planned(data, tmp_path / "part"), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        command.run_training(plan, callbacks=[Interrupt(step)], quiet=True)
    assert command.saved_step(plan.out) == step + 1
    assert not (plan.out / "run.json").exists()
    assert signal.getsignal(signal.SIGINT) is usual
    with pytest.raises(ValueError, match="holds an interrupted run: continue it with --resume"):
        command.run_training(plan)
    with pytest.raises(ValueError, match="was started with rank 2, not 4: --resume needs the same settings"):
        command.check_out(replace(plan, rank=4), resume=True)
    with pytest.raises(ValueError, match="other training pairs: --resume needs the same data"):
        command.check_out(replace(plan, data=replace(plan.data, pairs=plan.data.pairs[1:])), resume=True)
    resumed = command.run_training(plan, resume=True, quiet=True)
    assert resumed.losses == whole.losses
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "part")]
    assert weights[0] == weights[1]
    assert sorted(path.name for path in plan.out.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "run.json",
    ]
    with pytest.raises(ValueError, match="holds a finished run: there is nothing to resume"):
        command.check_out(plan, resume=True)


def test_a_checkpoint_that_was_not_finished_is_passed_over(tmp_path):
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-12", "checkpoint-best"):
        (tmp_path / name).mkdir()
        if name != "checkpoint-12":  # killed before `Trainer` wrote its state
            (tmp_path / name / "trainer_state.json").write_text("{}")
    assert command.saved_step(tmp_path) == 10


@pytest.fixture(scope="module")
def off_topic(eval_pairs, tmp_path_factory) -> Path:
    """Evaluation pairs whose loss rises with every epoch of training on the course's pairs."""
    path = tmp_path_factory.mktemp("off_topic") / "eval.jsonl"
    asked = [pair.instruction for pair in eval_pairs[:4]]
    write_pairs(
        path, [Pair(instruction=text, output=f"Ask Kim about {i} gauges tomorrow.") for i, text in enumerate(asked)]
    )
    return path


@pytest.fixture(scope="module")
def best_kept(data, off_topic, tmp_path_factory):
    """A plan, and the record of a run of three epochs (4 steps each) that kept the best one."""

    def plan(out):
        return planned(data, out, evaluation=str(off_topic), epochs=3, keep_best=True)

    folder = tmp_path_factory.mktemp("kept") / "run"
    return plan, folder, command.run_training(plan(folder), quiet=True)


def test_the_epoch_with_the_lowest_held_out_loss_is_kept(best_kept, data, off_topic, base, tokenizer, tmp_path):
    plan, folder, record = best_kept
    epochs, losses = zip(*record.held_out, strict=True)
    assert epochs == (1, 2, 3) and min(losses) == losses[0] < losses[-1] and record.kept_epoch == 1
    assert math.log(record.ppl_after) == pytest.approx(losses[0])
    model = PeftModel.from_pretrained(load_model(base), folder)
    assert perplexity(model, tokenizer, read_pairs(off_topic)) == pytest.approx(record.ppl_after)
    assert RunRecord.load(folder) == record
    assert f"kept: epoch 1 of 3, with a held-out loss of {losses[0]:.3f}" in command.show_result(record, plan(folder))
    usual = command.run_training(replace(plan(tmp_path), keep_best=False), quiet=True)
    assert usual.losses == record.losses and (usual.held_out, usual.kept_epoch) == (None, None)
    assert math.log(usual.ppl_after) == pytest.approx(losses[-1])


@pytest.mark.parametrize("step", [5, 7, 11])  # in the second epoch, at its end, and at the end of the last one
def test_an_interrupted_run_keeps_the_same_epoch_even_if_its_folder_was_moved(best_kept, step, tmp_path):
    plan, whole, record = best_kept
    with pytest.raises(KeyboardInterrupt):
        command.run_training(plan(tmp_path / "run"), callbacks=[Interrupt(step)], quiet=True)
    assert command.saved_step(tmp_path / "run") == step + 1
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="was started with keep best True, not False"):
        command.check_out(replace(plan(tmp_path / "moved"), keep_best=False), resume=True)
    resumed = command.run_training(plan(tmp_path / "moved"), resume=True, quiet=True)
    assert (resumed.losses, resumed.held_out, resumed.kept_epoch) == (record.losses, record.held_out, 1)
    weights = [(folder / "adapter_model.safetensors").read_bytes() for folder in (whole, tmp_path / "moved")]
    assert weights[0] == weights[1]
    assert not list((tmp_path / "moved").glob("checkpoint-*"))


def test_without_evaluation_pairs_no_epoch_can_be_chosen(base, model, tokenizer, train_pairs, tmp_path):
    with pytest.raises(ValueError, match="keep_best chooses an epoch by its loss on eval_pairs: give at least one"):
        train(with_adapter(model), tokenizer, train_pairs[:4], tmp_path, base, keep_best=True)


def test_the_command_trains_measures_and_overwrites_nothing(run, data, tmp_path):
    folder = tmp_path / "my run"
    words = ["train", data, "--rank", 2, "--targets", "qv", "--epochs", 0.04, "--out", folder]
    result = run(*words, "--eval", "0.5", "--seed", 3)
    assert result.exit_code == 0, result.output
    for line in ("format: instruction + output", "pairs: 8 for training, 8 held out", "learning rate: 0.005 (measured"):
        assert line in result.output
    assert "held-out perplexity: " in result.output and "exact match: 0.00 (0.00 to 0.32) before" in result.output
    assert f'next: loralab gate "{folder}" --eval "{folder / "eval.jsonl"}"' in result.output
    record, asked = RunRecord.load(folder), read_pairs(folder / "eval.jsonl")
    assert (record.train_pairs, record.eval_pairs, record.seed) == (8, 8, 3)
    assert record.eval_digest == digest(asked)
    assert record.train_digest == digest(pair for pair in read_pairs(data) if pair not in asked)
    before = (folder / "run.json").read_bytes()
    again = run(*words)
    assert (again.exit_code, again.output.count("\n")) == (2, 1)
    assert "holds a finished run: give another --out" in again.output
    assert (folder / "run.json").read_bytes() == before


def test_ctrl_c_says_how_to_continue(run, data, tmp_path, monkeypatch):
    words = ["train", data, "--rank", 2, "--targets", "q", "--eval", "0", "--epochs", 1, "--out", tmp_path / "run"]
    usual = command.run_training
    monkeypatch.setattr(command, "run_training", partial(usual, callbacks=[Interrupt(0)]))
    stopped = run(*words)
    assert stopped.exit_code == 130
    assert "stopped after step 1: add --resume to continue" in stopped.output
    monkeypatch.setattr(command, "run_training", usual)
    assert "holds an interrupted run: continue it with --resume" in run(*words).output
    resumed = run(*words, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert len(RunRecord.load(tmp_path / "run").losses) == 4


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (99.4, "99 s"), (110, "2 min"), (5399, "90 min"), (7000, "1.9 h")],
)
def test_a_duration_has_two_digits(seconds, text):
    assert duration(seconds) == text


def test_a_dry_run_measures_steps_and_leaves_nothing(run, few, tmp_path):
    result = run("train", few, "--targets", "q", "--eval", "0", "--out", tmp_path / "run", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "steps: 8 (8 epochs of 1, 4 pairs each)" in result.output
    assert re.search(r"memory: about \d+\.\d GB of \d+\.\d GB free; it fits", result.output)
    assert re.search(r"time: about [\d.]+ s \(\d+\.\d\d s per step, measured\)", result.output)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_counts_the_checkpointing_that_the_training_would_turn_on(few, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(command, "_seconds_per_step", lambda plan: 1.0)
    monkeypatch.setattr(command, "encode_all", lambda *_: [{"input_ids": [0] * 256}])
    plan = planned(few, tmp_path / "run", batch_size=64)
    for room, verdict in ((2.5e9, "it fits"), (0.5e9, "it does not fit; see loralab fit")):
        monkeypatch.setattr(command, "_room", lambda room=room: room)
        assert verdict in command.dry_run(plan).splitlines()[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "adalora"], "unknown method 'adalora': there are lora, rslora, dora, pissa, qlora"),
        (["--rank", "0"], "the rank is 0; it must be at least 1"),
        (["--batch-size", "0"], "the batch size is 0; it must be at least 1"),
        (["--seed", "-1"], "the seed is -1; it must be 0 to 4294967295"),
        (["--targets", "attention"], "this model has no layer attention; it has down_proj, gate_proj"),
        (["--targets", ","], "targets are ','"),
        (["--method", "pissa", "--rank", "999"], "rank 999 is impossible for pissa"),
        (["--eval", "0.9"], "--eval 0.9: give the share of pairs to hold out (0 to 0.5), or a file"),
        (["--eval", "0", "--keep-best"], "--keep-best needs evaluation pairs: give --eval a file or a share above 0"),
        (["--epochs", "nan"], "must be above 0 and finite"),
        (["--base", "nowhere"], "unknown base 'nowhere'"),
        (["--resume"], "holds no interrupted run: leave out --resume"),
    ],
)
def test_impossible_input_is_one_line_before_anything_is_trained(run, few, tmp_path, words, message):
    result = run("train", few, "--out", tmp_path / "run", *words)
    assert (result.exit_code, result.output.count("\n")) == (2, 1)
    assert result.output.startswith("Error: ") and message in result.output
    assert not (tmp_path / "run").exists()


def test_a_full_gpu_is_one_line(run, few, tmp_path, monkeypatch):
    def fill(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(command, "run_training", fill)
    result = run("train", few, "--eval", "0", "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert result.output.splitlines()[-1].startswith("Error: the GPU's memory is full: take a smaller base or batch")


@pytest.mark.parametrize("data", ["mine.v2.jsonl.gz", "data/mine/", "owner/mine:train"])  # Windows allows no colon
def test_a_run_is_named_after_its_data_on_every_system(data):
    assert command._plain_name(data) == "mine"


def test_bad_data_is_named_line_by_line(run, tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"instruction": "a"}\n{"instruction": "b"}\n')
    result = run("train", tmp_path / "mine.jsonl", "--out", tmp_path / "run")
    assert result.exit_code == 1 and result.output.count("the field 'output' is missing") == 2


def test_a_folder_with_other_files_is_left_alone(few, tmp_path):
    (tmp_path / "photo.png").write_text("mine")
    with pytest.raises(ValueError, match="is not empty: give another --out"):
        command.check_out(planned(few, tmp_path))


@pytest.mark.parametrize(("count", "share", "held"), [(100, 0.1, 10), (30, 0.1, 8), (10, 0.1, 5), (2, 0.5, 1)])
def test_the_share_that_is_held_out(count, share, held):
    pairs = [Pair(instruction=f"{i}?", output="Yes.") for i in range(count)]
    rest, asked = hold_out(pairs, share, seed=1)
    assert (len(asked), sorted(rest + asked, key=pairs.index)) == (held, pairs)
    assert hold_out(pairs, share, seed=1) == (rest, asked)
    assert count == 2 or hold_out(pairs, share, seed=2) != (rest, asked)


def test_the_answers_of_one_conversation_stay_together():
    def conversation(i):
        first = Pair(instruction=f"{i}?", output="What?")
        history = (Turn(role="user", content=f"{i}?"), Turn(role="assistant", content="What?"))
        return [first, Pair(instruction="That.", output=f"Ah, {i}.", history=history)]

    pairs = [pair for i in range(20) for pair in conversation(i)]
    rest, asked = hold_out(pairs, 0.1)
    assert len(asked) == 8
    assert not {pair.question[0]["content"] for pair in rest} & {pair.question[0]["content"] for pair in asked}


def test_one_pair_cannot_be_split():
    with pytest.raises(ValueError, match="too few different pairs to hold some out"):
        hold_out([Pair(instruction="a", output="b")], 0.1)


@pytest.mark.parametrize(
    ("config", "hidden", "rate"),
    [
        (Qwen2Config, 2000, 5e-4),
        (Qwen2Config, 896, 5.3e-4),
        (LlamaConfig, 4096, 2.9e-4),
        (LlamaConfig, 64, HIGHEST_RATE),
    ],
)
def test_the_learning_rate_of_other_bases_follows_the_rule(config, hidden, rate, tmp_path):
    config(hidden_size=hidden, num_attention_heads=4).save_pretrained(tmp_path)
    assert rate_rule(str(tmp_path)) == rate


def test_a_base_without_a_config_has_the_cautious_rate(tmp_path):
    assert rate_rule(str(tmp_path)) == UNKNOWN_RATE


def test_resuming_without_a_checkpoint_is_one_line(base, model, tokenizer, train_pairs, tmp_path):
    for asked in (True, tmp_path / "checkpoint-1"):
        with pytest.raises(ValueError, match="no checkpoint to resume from"):
            train(
                with_adapter(load_model(base)), tokenizer, train_pairs[:4], tmp_path, base, resume_from_checkpoint=asked
            )


def test_a_frozen_adapter_is_one_line(base, model, tokenizer, train_pairs, tmp_path):
    with_adapter(model, rank=1).save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    frozen = PeftModel.from_pretrained(load_model(base), tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"the adapter is frozen.*is_trainable=True"):
        train(frozen, tokenizer, train_pairs[:4], tmp_path / "run", base)


def test_new_rows_that_would_not_be_saved_are_one_line(base, model, tokenizer, train_pairs, tmp_path):
    model.resize_token_embeddings(model.config.vocab_size + 1)
    with pytest.raises(ValueError, match="the vocabulary was resized to .* rows .*modules_to_save"):
        train(with_adapter(model, rank=1), tokenizer, train_pairs[:4], tmp_path / "run", base)


def test_a_layer_that_is_trained_but_not_saved_is_one_line(base, model, tokenizer, train_pairs, tmp_path):
    adapted = with_adapter(model, rank=1)
    adapted.get_base_model().model.norm.weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"^model\.norm\.weight would be trained, but not saved"):
        train(adapted, tokenizer, train_pairs[:4], tmp_path / "run", base)


@pytest.mark.parametrize(
    ("given", "targets", "layers"),
    [
        (r".*self_attn\.(q|v)_proj", ["q_proj", "v_proj"], None),
        (["model.layers.0.self_attn.q_proj"], ["q_proj"], ["model.layers.0.self_attn.q_proj"]),
    ],
)
def test_the_record_has_the_layers_that_were_adapted(given, targets, layers, base, model, tokenizer, few, tmp_path):
    config = LoraConfig(r=1, target_modules=given, task_type="CAUSAL_LM", rank_pattern={"q_proj": 2})
    adapted = get_peft_model(model, config)
    record = train(adapted, tokenizer, read_pairs(few), tmp_path / "run", base, epochs=0.04, quiet=True)
    assert (record.targets, record.adapter.layers) == (targets, layers)
    assert record.adapter.rank_pattern == {"q_proj": 2}
    assert RunRecord.load(tmp_path / "run") == record
    saved = json.loads((tmp_path / "run" / "adapter_config.json").read_text())["target_modules"]
    assert sorted(saved) == (layers or targets)
    again = PeftModel.from_pretrained(load_model(base), tmp_path / "run")
    assert again.base_model.targeted_module_names == adapted.base_model.targeted_module_names


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 64}, "holds a run with rank 64, not 4"),
        ({"seed": 9}, "holds a run with seed 9, not 0"),
        ({"method": "qlora"}, "holds a run with method qlora, not lora"),
        ({"quantization": {"load_in_4bit": True}}, "holds a run with another quantization"),
        ({"train_digest": "0" * 64}, r"holds a run with other training pairs \(train_digest 000000000000\)"),
        ({"eval_digest": "1" * 64}, "holds a run with other evaluation pairs"),
        ({"adapter": {"bias": "all"}}, "holds a run with bias all, not none"),
        ({"adapter": {"rank_pattern": {"q_proj": 8}}}, "holds a run with rank_pattern {'q_proj': 8}, not {}"),
    ],
)
def test_a_sweep_does_not_take_another_job_s_run(changes, message, base, tmp_path):
    job = sweep_plan(base, [4], ["qv"], ["lora"], 1, tmp_path)[0]
    fields = {
        "name": job.name, "base": base.name, "rank": 4, "alpha": 8, "dropout": 0, "targets": ["q_proj", "v_proj"],
        "trainable": 1, "parameters": 2, "train_pairs": 1, "tokens": 1, "epochs": job.epochs, "batch_size": 4,
        "learning_rate": job.learning_rate, "seed": 0, "losses": [], "seconds": 1, "peak_memory": 1,
        "eval_pairs": len(job.data.eval_pairs), "dtype": "float32", "adapter": {}, "quantization": {},
    }  # fmt: skip
    RunRecord(**fields).save(job.folder)
    assert job.record() is not None
    RunRecord(**fields | changes).save(job.folder)
    with pytest.raises(ValueError, match=message):
        job.record()


def record_of(hits: int | None, **changes) -> RunRecord:
    fields = {
        "name": "r", "base": "embedded", "rank": 4, "trainable": 1, "parameters": 2, "train_pairs": 1, "tokens": 1,
        "epochs": 1, "batch_size": 4, "learning_rate": 1, "seed": 0, "losses": [], "seconds": 12.3, "peak_memory": 1,
        "eval_pairs": 50, "eval_digest": "a", "dtype": "float32", "ppl_after": 2.5, "adapter_bytes": 12345,
        "scores_after": None if hits is None else Scores(count=50, exact=hits, ended=50, valid=50),
    }  # fmt: skip
    return RunRecord(**fields | changes)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (record_of(10), "The exact match of one is higher than that of two (40 and 10 of 50; Fisher's exact"),
        (
            record_of(38),
            "The exact match of one and two does not differ beyond chance (40 and 38 of 50; Fisher's exact",
        ),
        (record_of(10, eval_digest="b"), "cannot be compared: the runs were measured on different evaluation pairs"),
        (record_of(10, eval_digest=None), "cannot be compared: the evaluation pairs of two are not recorded"),
        (record_of(None), "cannot be compared: no answers were scored for two"),
    ],
)
def test_only_runs_on_the_same_pairs_are_compared(other, message):
    assert message in conclusions({"one": record_of(40), "two": other})[0]


def test_compare_warns_of_leaks_and_of_other_bases():
    runs = {"one": record_of(40, leaks=3), "two": record_of(40, base="smollm2-135m")}
    assert [line.split(":")[0] for line in conclusions(runs)[1:]] == ["The bases differ", "one"]


def test_compare_prints_a_table_and_draws(run, tmp_path):
    record_of(40, question_gain=1.25).save(tmp_path / "one")
    record_of(10, ppl_after=math.nan).save(tmp_path / "two")
    words = ["compare", tmp_path / "one", tmp_path / "two"]
    result = run(*words, "--plot", tmp_path / "both.png")
    assert result.exit_code == 0, result.output
    for text in ("0.80", "1.25", "12,345", "The exact match of one is higher"):
        assert text in result.output
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")
    assert f"plot: {tmp_path / 'both'}\n" in run(*words, "--plot", tmp_path / "both").output
    assert (tmp_path / "both").is_file()
    for more, message in (
        (["--plot", tmp_path / "x.docx"], "--plot"),
        ([tmp_path / "one"], "the same run is given twice"),
    ):
        wrong = run(*words, *more)
        assert wrong.exit_code == 2 and message in wrong.output.splitlines()[-1]


def test_chat_shows_base_and_adapter_and_ends_with_the_input(few, tmp_path):
    command.run_training(planned(few, tmp_path / "run", epochs=0.04), quiet=True)
    chat = open_chat(tmp_path / "run", system="You are brief.", max_tokens=4)
    console = Console(record=True, width=80, markup=False)
    questions = iter(["What does [b] the Robin do?", ""])

    def read(prompt: str) -> str:
        try:
            return next(questions)
        except StopIteration:
            raise EOFError from None

    talk(chat, console, read)
    shown = console.export_text()
    assert "base" in shown and "adapter" in shown and "cut off" in shown

    def press(prompt: str) -> str:
        raise KeyboardInterrupt

    talk(chat, console, press)
    for asked in (chat, replace(chat, system=None)):
        with pytest.raises(LoralabError, match="this cannot be asked: instruction: holds half of a character"):
            asked.answer("\udcff")  # a byte of the command line that is not UTF-8


def test_a_quantised_base_is_reloaded_as_it_was(base):
    record = record_of(1, quantization={"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"})
    assert recorded_quantization(record).bnb_4bit_quant_type == "fp4"
    assert recorded_quantization(record_of(1, quantization={"load_in_8bit": True})).load_in_8bit
    assert recorded_quantization(record_of(1, method="qlora")).bnb_4bit_quant_type == "nf4"
    assert recorded_quantization(record_of(1, quantization={})) is None
    assert not same_quantization({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, {"load_in_4bit": True})


def test_a_digest_knows_content_and_order():
    one, two = Pair(instruction="a", output="b"), Pair(instruction="c", output="d")
    assert digest([one, two]) == digest([Pair(instruction="a", output="b"), two])
    assert len({digest([one, two]), digest([two, one]), digest([one]), digest([])}) == 4
    assert digest([{"labels": [1], "input_ids": [2]}]) == digest([{"input_ids": [2], "labels": [1]}])


def documented() -> list[list[str]]:
    """The `loralab` commands of the guide, one list of words each."""
    blocks = re.findall(r"```sh\n(.*?)```", DOC.read_text("utf-8"), re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("loralab ")]


def test_the_guide_for_your_own_data_runs_as_documented(run, train_pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pairs("my-pairs.jsonl", train_pairs[:30])
    commands = documented()
    assert [words[0] for words in commands] == [
        "check", "train", "train", "train", "sweep", "compare", "gate", "chat", "export", "push"
    ]  # fmt: skip
    printed = {}
    for words in commands:
        torch.manual_seed(0)
        result = run(*words, *([] if "--dry-run" in words else SHORTER.get(words[0], [])))
        wanted = {0, 1} if words[0] == "gate" else {0}  # the gate fails so short a run
        assert result.exit_code in wanted, f"{shlex.join(words)}\n{result.output}"
        assert "Traceback" not in result.output
        printed[shlex.join(words)] = result.output
    (dry_run,) = (output for words, output in printed.items() if words.startswith("train") and "--dry-run" in words)
    assert re.fullmatch(shown_output("format: "), dry_run), dry_run
    for name in ("mine/README.md", "small/run.json", "sweep/rates.png", "sweep/sweep.html", "mine-merged/config.json"):
        assert (tmp_path / "runs" / name).is_file()
    assert len(list(tmp_path.glob("runs/sweep/*/run.json"))) == 4
    assert RunRecord.load("runs/small").kept_epoch is not None


def shown_output(start: str) -> str:
    """The pattern of an output that the guide shows; "..." stands for what differs from machine to machine."""
    blocks = re.findall(r"```text\n(.*?)```", DOC.read_text("utf-8"), re.S)
    (block,) = (block for block in blocks if block.startswith(start))
    return re.escape(block).replace(re.escape("..."), ".*")
