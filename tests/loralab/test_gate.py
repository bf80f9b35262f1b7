"""The operating gate: every point fails for its own reason and alone, and the card says what the run says."""

import json
import random
import re
import shutil
from dataclasses import replace

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import BitsAndBytesConfig
from typer.testing import CliRunner

from loralab import (
    PROFILES,
    RunRecord,
    Scores,
    ability,
    answer,
    answers,
    choose_base,
    data_path,
    encode_all,
    generate_answers,
    load_model,
    load_tokenizer,
    nf4,
    perplexity,
    read_pairs,
    score_answers,
    write_pairs,
)
from loralab.answers import Answer
from loralab.cli import app
from loralab.evaluation import fingerprint
from loralab.export import load_base
from loralab.gate import gate, trial
from loralab.gate.model_card import MARK, write_card
from loralab.gate.run import read_run
from loralab.pairs import digest
from loralab.sweep import plan, train_job

ADAPTER = "adapter_model.safetensors"
POINTS = [
    "base and licence",
    "hyperparameters",
    "chat template and EOS",
    "trainable parameters",
    "PPL before",
    "trained",
    "PPL after and samples",
    "merge decision",
    "model card",
]


@pytest.fixture(scope="session")
def _run(_honest, base, tokenizer, eval_pairs, tmp_path_factory):
    """The honest run, as if it had been measured on 32 pairs: the gate measures it again in most tests."""
    folder = shutil.copytree(_honest, tmp_path_factory.mktemp("gate") / "first-adapter")
    few, model = eval_pairs[:32], load_model(base)
    before = perplexity(model, tokenizer, few, base.max_length), score_answers(model, tokenizer, few)
    model = PeftModel.from_pretrained(model, folder)
    after = perplexity(model, tokenizer, few, base.max_length), score_answers(model, tokenizer, few)
    measured = {"ppl_before": before[0], "ppl_after": after[0], "scores_before": before[1], "scores_after": after[1]}
    measured |= {"eval_pairs": 32, "eval_digest": digest(few)}
    RunRecord.load(folder).model_copy(update=measured).save(folder)
    write_pairs(folder / "eval.jsonl", few)
    return folder


@pytest.fixture(scope="session")
def _measured():
    return {}


@pytest.fixture(autouse=True)
def less_to_measure(_measured, monkeypatch):
    """Time only: the gate measures 20 samples and 100 pairs, and the same weights once."""
    measure = trial.measure

    def remembered(model, tokenizer, pairs, *settings):
        key = (
            fingerprint(model),
            tokenizer.chat_template,
            digest(pairs),
            settings,
            ability.SAMPLES,
            answers.generate_answers,
        )
        if key not in _measured:
            _measured[key] = measure(model, tokenizer, pairs, *settings)
        return _measured[key]

    monkeypatch.setattr(ability, "SAMPLES", 8)
    monkeypatch.setattr(ability, "MEASURED", 32)
    monkeypatch.setattr(trial, "measure", remembered)


@pytest.fixture
def run(_run, tmp_path):
    """A copy of a real run that passes all nine points, to be spoilt at will."""
    folder = shutil.copytree(_run, tmp_path / "first-adapter")
    change(folder / "gate.json", decision="keep")
    return folder


def change(path, **fields):
    """Set fields of a JSON file."""
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | fields))


def reweigh(folder, new):
    """Replace the adapter's weights by what `new` makes of them."""
    save_file(new(load_file(folder / ADAPTER)), folder / ADAPTER, metadata={"format": "pt"})


def judge(folder, **options):
    """Judge a run on the pairs beside it."""
    return gate(folder, **{"eval_file": folder / "eval.jsonl"} | options)


def asked(folder, pairs):
    """Put other pairs beside a run, as if it had been measured on them."""
    write_pairs(folder / "eval.jsonl", pairs)
    record = json.loads((folder / "run.json").read_text())
    scores = {name: _at_most(len(pairs), record[name]) for name in ("scores_before", "scores_after") if record[name]}
    change(folder / "run.json", eval_pairs=len(pairs), eval_digest=digest(pairs), **scores)


def _at_most(count, scores):
    """Return scores in which no number is larger than `count`."""
    if isinstance(scores, dict):
        return {name: _at_most(count, value) for name, value in scores.items()}
    return scores if scores is None else min(scores, count)


def by_name(points):
    return {point.name: point for point in points}


def failed(points):
    return [point.name for point in points if point.passed is False]


def not_judged(points):
    return [point.name for point in points if point.passed is None]


def test_a_good_run_passes_all_nine_points(run):
    points = judge(run)
    assert [point.name for point in points] == POINTS
    assert all(point.passed for point in points), points
    assert not any(point.advice for point in points)


@pytest.mark.parametrize(
    ("method", "rank"),
    [
        ("rslora", 64),
        *((method, 4) for method in ("dora", "pissa", "qlora")),
        *(pytest.param(*other, marks=pytest.mark.slow) for other in (("rslora", 1), ("rslora", 4), ("lora", 4))),
    ],
)
def test_a_run_of_every_method_of_the_sweep_is_found_complete_and_true(
    method, rank, base, tokenizer, eval_pairs, tmp_path
):
    (job,) = plan(base, [rank], ["qv"], [method], 1, tmp_path / "runs", epochs=0.5, eval_pairs=16)
    train_job(job)
    write_pairs(tmp_path / "eval.jsonl", eval_pairs[:16])
    points = gate(job.folder, decision="keep", eval_file=tmp_path / "eval.jsonl", recompute=True)
    after = by_name(points)["PPL after and samples"]
    assert set(failed(points)) <= {after.name}  # so short a run learns next to nothing
    assert not not_judged(points)
    assert "run.json" not in after.advice
    bare = load_model(base, quantization=nf4() if method == "qlora" else None)
    first = answer(bare, tokenizer, eval_pairs[0].instruction, 24).splitlines()[0]
    assert f"  before:\n    {first}" in after.details


def unknown_licence(run, monkeypatch):
    monkeypatch.setitem(PROFILES, "embedded", replace(PROFILES["embedded"], licence="unknown: see its model card"))


def template_without_end(run, monkeypatch):
    def load(base):
        tokenizer = load_tokenizer(base)
        tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "")
        return tokenizer

    monkeypatch.setattr(trial, "load_tokenizer", load)


def rising_loss(run, monkeypatch):
    change(run / "run.json", losses=RunRecord.load(run).losses[::-1])


def no_better_than_its_base(run, monkeypatch):
    change(run / "run.json", ppl_after=RunRecord.load(run).ppl_before)


def card_with_broken_metadata(run, monkeypatch):
    (run / "README.md").write_text("---\nlicense: [\n---\n# Mine\n")


SPOILT = {
    "base and licence": unknown_licence,
    "hyperparameters": lambda run, _: change(run / "run.json", learning_rate=0.1),
    "chat template and EOS": template_without_end,
    "trainable parameters": lambda run, _: change(run / "run.json", trainable=4_002_048),
    "PPL before": lambda run, _: change(run / "run.json", ppl_before=None),
    "trained": rising_loss,
    "PPL after and samples": no_better_than_its_base,
    "merge decision": lambda run, _: (run / "gate.json").unlink(),
    "model card": card_with_broken_metadata,
}


@pytest.mark.parametrize("name", POINTS)
def test_each_point_fails_alone_and_says_what_to_do(name, run, monkeypatch):
    SPOILT[name](run, monkeypatch)
    points = judge(run)
    assert failed(points) == [name]
    assert not not_judged(points)
    assert by_name(points)[name].advice


@pytest.mark.parametrize(
    ("fields", "advice"),
    [
        ({"epochs": 40.0}, "memorise"),
        ({"rank": 4}, "disagree"),
        ({"learning_rate": 1e-4}, "barely trains"),
    ],
)
def test_hyperparameters_of_the_training_are_judged(fields, advice, run):
    change(run / "run.json", **fields)
    points = judge(run)
    assert failed(points) == ["hyperparameters"]
    assert advice in by_name(points)["hyperparameters"].advice


@pytest.mark.parametrize(
    ("rank", "share", "right"),
    [
        (16, 1 / 2, True),
        (16, 2, True),
        (16, 0.4, False),
        (16, 3, False),
        (4, 4, True),
        (64, 1 / 4, True),
        (64, 2, False),
    ],
)
def test_the_range_of_learning_rates_follows_the_rank_as_it_was_measured(rank, share, right, run, base, monkeypatch):
    monkeypatch.setattr(trial, "_measure", lambda *_: None)  # time only: this point needs no answers
    change(run / "run.json", learning_rate=share * base.learning_rate)
    change(run / "adapter_config.json", r=rank)
    advice = by_name(judge(run))["hyperparameters"].advice
    assert ("the learning rate is outside" in advice) == (not right)


@pytest.mark.parametrize(
    ("setting", "value", "more", "advice"),
    [
        ("lora_alpha", 128, {}, "alpha/rank is 8"),
        ("lora_alpha", 64, {"use_rslora": True}, "alpha/root of rank is 16"),
        ("lora_dropout", 0.5, {}, "dropout"),
    ],
)
def test_hyperparameters_of_the_adapter_are_judged(setting, value, more, advice, run):
    change(run / "adapter_config.json", **{setting: value}, **more)
    change(run / "run.json", **{setting.removeprefix("lora_"): value})
    assert advice in by_name(judge(run))["hyperparameters"].advice


def test_a_base_that_nobody_finds_leaves_what_needs_it_unjudged(run):
    change(run / "run.json", base="mystery")
    points = judge(run)
    assert failed(points) == ["base and licence"]
    assert not_judged(points) == [POINTS[i] for i in (1, 2, 3, 6)]


def test_a_licence_that_was_looked_up_counts_and_is_remembered(run, monkeypatch):
    unknown_licence(run, monkeypatch)
    assert not failed(judge(run, licence="apache-2.0"))
    assert not failed(judge(run))
    assert ModelCard.load(run / "README.md").data.license == "apache-2.0"


def test_held_out_pairs_that_do_not_fit_the_base_fail_the_template(run, eval_pairs):
    asked(run, [*eval_pairs[:3], eval_pairs[3].model_copy(update={"output": "word " * 300})])
    assert failed(judge(run)) == ["chat template and EOS"]


def test_a_run_that_was_trained_with_masked_ends_fails_the_template(base, tokenizer, train_pairs, trained):
    whole = encode_all(train_pairs[:8], tokenizer, base.max_length)
    endless = [row | {"labels": [*row["labels"][:-1], -100]} for row in whole[:5]]
    folder = trained("endless", pairs=train_pairs[:8], encoded=[*endless, *whole[5:]], eval_pairs=(), epochs=1)
    point = by_name(gate(folder))["chat template and EOS"]
    assert point.passed is False
    assert "3 of 8 training pairs" in point.found
    assert "encode with loralab.encode" in point.advice


def test_a_run_of_before_ends_were_counted_is_not_blamed(run):
    record = json.loads((run / "run.json").read_text())
    del record["ends"]
    (run / "run.json").write_text(json.dumps(record))
    points = judge(run)
    assert not failed(points)
    assert not_judged(points) == ["chat template and EOS"]
    assert "not recorded" in by_name(points)["chat template and EOS"].found


def test_a_missing_tensor_fails_the_count(run):
    reweigh(run, lambda weights: dict(list(weights.items())[:-1]))
    points = judge(run)
    assert failed(points) == ["trainable parameters"]
    assert not_judged(points) == ["PPL after and samples"]


def test_an_adapter_that_was_never_trained_is_found_twice(run):
    reweigh(run, lambda weights: {n: w * 0 if ".lora_B." in n else w for n, w in weights.items()})
    points = judge(run)
    assert failed(points) == ["trained", "PPL after and samples"]
    assert "B is all zeros" in by_name(points)["trained"].advice
    assert "base's own" in by_name(points)["PPL after and samples"].advice


def test_a_run_that_diverged_can_be_read_and_is_explained(run):
    record = RunRecord.load(run)
    record.model_copy(update={"losses": [*record.losses[:-1], float("nan")]}).save(run)
    points = judge(run)
    assert failed(points) == ["trained"]
    assert "diverged" in by_name(points)["trained"].advice


def answering(monkeypatch, change_answer):
    """Let the adapter's answers pass through `change_answer(number, answer)`; the base's stay as they are."""

    def changed(model, tokenizer, instructions, limit):
        answers = generate_answers(model, tokenizer, instructions, limit)
        return [change_answer(i, a) for i, a in enumerate(answers)] if isinstance(model, PeftModel) else answers

    monkeypatch.setattr("loralab.answers.generate_answers", changed)


FAULTS = {
    "without an end": lambda answer: Answer(answer.text, False),
    "empty": lambda answer: Answer("\n", True),
    "with a phrase repeated": lambda answer: Answer("Press and twelve twelve twelve", True),
    "the prompt again": lambda answer: Answer("the prompt", True),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_answers_fail_and_are_counted(fault, run, eval_pairs, monkeypatch):
    def spoil(number, answer):
        return FAULTS[fault](answer) if number < 3 else answer

    if fault == "the prompt again":
        asked(run, [p.model_copy(update={"instruction": "the prompt"}) for p in eval_pairs[:3]])
        answering(monkeypatch, lambda number, answer: FAULTS[fault](answer))
    else:
        answering(monkeypatch, spoil)
    point = by_name(judge(run))["PPL after and samples"]
    assert point.passed is False
    assert f"3 {fault}" in point.found
    assert f"answers are {fault}" in point.advice


def test_a_single_faulty_answer_is_counted_and_fails_nothing(run, monkeypatch):
    monkeypatch.setattr(ability, "SAMPLES", 10)
    answering(monkeypatch, lambda number, answer: answer if number else Answer(answer.text, False))
    points = judge(run)
    assert not failed(points)
    assert "of 10 answers 10 changed, 1 without an end" in by_name(points)["PPL after and samples"].found


@pytest.fixture(scope="module")
def salad(trained, train_pairs, eval_pairs):
    """A run whose answers were shuffled among the messages: it learns how records look, and not to read."""
    answers = random.Random(0).sample([pair.output for pair in train_pairs], len(train_pairs))
    pairs = [pair.model_copy(update={"output": text}) for pair, text in zip(train_pairs, answers, strict=True)]
    return trained("salad", pairs=pairs, eval_pairs=eval_pairs[:32], epochs=3)


def test_word_salad_fails_although_its_perplexity_fell(salad, eval_pairs):
    record = RunRecord.load(salad)
    assert record.ppl_after < record.ppl_before / 10
    write_pairs(salad / "eval.jsonl", eval_pairs[:32])
    points = judge(salad, decision="keep")
    assert failed(points) == ["PPL after and samples"]
    advice = by_name(points)["PPL after and samples"].advice
    assert "it ignores the question" in advice
    assert "answers are exactly right" in advice


def test_held_out_pairs_that_were_trained_on_fail(trained, eval_pairs):
    folder = trained("leaky", pairs=eval_pairs[:32], eval_pairs=eval_pairs[:32], epochs=1)
    write_pairs(folder / "eval.jsonl", eval_pairs[:32])
    point = by_name(judge(folder))["PPL before"]
    assert point.passed is False
    assert "32 of them trained on" in point.found
    assert "held-out pairs were trained on" in point.advice


def test_a_record_that_denies_a_training_on_its_own_evaluation_pairs_does_not_help(run):
    change(run / "run.json", leaks=0, train_digest=RunRecord.load(run).eval_digest)
    point = by_name(judge(run))["PPL before"]
    assert point.passed is False
    assert "32 of them trained on" in point.found


def test_other_pairs_than_those_of_the_run_are_refused_in_one_line(run, eval_pairs, tmp_path):
    write_pairs(tmp_path / "other.jsonl", eval_pairs[32:64])  # as many, of the same kind
    wanted, found = RunRecord.load(run).eval_digest, digest(eval_pairs[32:64])
    with pytest.raises(ValueError, match="not the pairs that the run was measured on") as error:
        gate(run, eval_file=tmp_path / "other.jsonl")
    line = str(error.value)
    assert wanted[:12] in line and found[:12] in line and "\n" not in line
    assert line.endswith("leave out --eval, since those are there")
    assert not (run / "README.md").exists()


def test_the_courses_pairs_are_not_put_onto_the_card_of_a_run_on_others(run, eval_pairs):
    assert read_run(run).pairs == eval_pairs[:32]  # kept beside the adapter
    (run / "eval.jsonl").rename(run.parent / "eval.jsonl")
    assert read_run(run).pairs == eval_pairs[:32]  # kept by a sweep
    (run.parent / "eval.jsonl").unlink()
    with pytest.raises(ValueError, match="not the course's; give them with --eval FILE"):
        gate(run)
    assert not (run / "README.md").exists()


def test_a_run_on_the_courses_pairs_needs_no_file(honest, eval_pairs):
    assert read_run(honest).pairs == eval_pairs
    with pytest.raises(ValueError, match="leave out --eval, since those are there"):
        read_run(honest, data_path("pairs/eval_forms.jsonl"))


def test_a_record_without_a_digest_takes_any_pairs_of_the_right_number(run, eval_pairs, tmp_path):
    change(run / "run.json", eval_digest=None)
    with pytest.raises(ValueError, match="--eval FILE"):
        gate(run)
    write_pairs(tmp_path / "few.jsonl", eval_pairs[:20])
    with pytest.raises(ValueError, match="20 pairs, but the run was measured on 32"):
        gate(run, eval_file=tmp_path / "few.jsonl")
    assert not failed(judge(run))


def test_a_card_of_a_judgement_on_other_pairs_is_kept(run, eval_pairs, tmp_path):
    change(run / "run.json", eval_digest=None)
    judge(run)
    card = (run / "README.md").read_text()
    write_pairs(tmp_path / "other.jsonl", eval_pairs[32:64])
    point = by_name(gate(run, eval_file=tmp_path / "other.jsonl"))["model card"]
    assert point.passed and "kept as it is" in point.found and digest(eval_pairs[:32])[:12] in point.found
    assert (run / "README.md").read_text() == card
    judge(run, data="Messages to a desk.")
    assert "Messages to a desk." in (run / "README.md").read_text()


def test_a_run_that_measured_nothing_is_measured_by_the_gate(run, eval_pairs):
    fields = ["ppl_before", "ppl_after", "scores_before", "scores_after", "question_gain", "eval_digest", "leaks"]
    known = RunRecord.load(run)
    change(run / "run.json", eval_pairs=0, **dict.fromkeys(fields))
    points = judge(run)
    assert not failed(points)
    assert not_judged(points) == ["PPL before"]  # nobody compared these pairs with those in training
    assert f"PPL {known.ppl_before:.2f} on 32" in by_name(points)["PPL before"].found
    assert not_judged(gate(run)) == ["PPL before", "PPL after and samples"]


QUANTISED = {
    "fp4": (BitsAndBytesConfig(load_in_4bit=True), "load_in_4bit=True, bnb_4bit_quant_type='fp4')"),
    "int8": (BitsAndBytesConfig(load_in_8bit=True), "load_in_8bit=True)"),
}


@pytest.mark.parametrize("kind", QUANTISED)
def test_the_base_is_loaded_in_the_quantisation_of_the_record(kind, trained, base, train_pairs, eval_pairs, tmp_path):
    quantization, code = QUANTISED[kind]
    settings = {"pairs": train_pairs[:8], "eval_pairs": eval_pairs[:8], "epochs": 1}
    folder = trained(kind, model=load_model(base, quantization=quantization), **settings)
    write_pairs(folder / "eval.jsonl", eval_pairs[:8])
    before = by_name(judge(folder, recompute=True, decision="merge"))["PPL before"]
    recorded, again = re.findall(r"\d+\.\d+", before.found)
    assert float(again) == pytest.approx(float(recorded), rel=1e-3), before
    assert code in code_of(folder / "README.md")
    assert "dequantize" in by_name(judge(folder))["merge decision"].found
    merged = load_base(RunRecord.load(folder), base).state_dict()
    expected = load_model(base, quantization=quantization).dequantize().float().state_dict()
    assert all(torch.equal(merged[name], expected[name]) for name in merged)


def test_whether_pairs_leaked_is_not_judged_in_an_older_record(run):
    change(run / "run.json", leaks=None)
    points = judge(run)
    assert not failed(points)
    assert not_judged(points) == ["PPL before"]


def test_free_text_is_judged_by_recall(trained):
    pairs, held_out = (read_pairs(data_path(f"pairs/facts/{name}.jsonl"))[:32] for name in ("train", "eval"))
    shuffled = [p.model_copy(update={"output": q.output}) for p, q in zip(pairs, [*pairs[9:], *pairs[:9]], strict=True)]
    folder = trained("facts", pairs=shuffled, eval_pairs=held_out, epochs=3)
    write_pairs(folder / "eval.jsonl", held_out)
    point = by_name(judge(folder))["PPL after and samples"]
    assert "own answer first among 8 in" in point.found
    leaked = by_name(judge(folder))["PPL before"]  # every answer, but no instruction, is in the training pairs
    assert leaked.passed is False and "the instruction or the answer of 32 is in the training pairs" in leaked.advice
    assert "exact match" not in point.found
    assert point.passed is False
    assert "it cannot tell the right answer from others" in point.advice
    assert "right answer ranked first among 8" in (folder / "README.md").read_text()


def test_a_run_without_scores_is_judged_by_its_samples(run, monkeypatch):
    monkeypatch.setattr(ability, "SAMPLES", 24)  # with eight, the same share of right answers can be chance
    change(run / "run.json", scores_before=None, scores_after=None, question_gain=None)
    points = judge(run)
    assert not failed(points), by_name(points)["PPL after and samples"]
    assert "exact match 0.00 to" in by_name(points)["PPL after and samples"].found


def test_recomputing_finds_false_scores(run):
    fields = RunRecord.load(run).scores_after.fields
    perfect = Scores(count=32, exact=32, ended=32, valid=32, fields=dict.fromkeys(fields, 32))
    change(run / "run.json", scores_after=perfect.model_dump())
    assert not failed(judge(run))
    points = judge(run, recompute=True)
    assert failed(points) == ["PPL after and samples"]
    assert "32 exact answers of 32, measured again" in by_name(points)["PPL after and samples"].advice


@pytest.mark.parametrize(
    ("field", "name"), [(None, None), ("ppl_before", "PPL before"), ("ppl_after", "PPL after and samples")]
)
def test_recomputing_finds_a_false_perplexity(field, name, run):
    if field:
        change(run / "run.json", **{field: 1.25 * getattr(RunRecord.load(run), field)})
    points = judge(run, recompute=True)
    assert failed(points) == ([name] if field else [])


def test_recomputing_that_nothing_came_of_leaves_the_perplexity_unjudged(run):
    change(run / "run.json", base="mystery")
    points = judge(run, recompute=True)
    assert by_name(points)["PPL before"].passed is None
    assert "trained on 'mystery'" in by_name(points)["PPL before"].advice


def test_an_adapter_that_peft_cannot_load_is_reported_in_one_line(run):
    change(run / "adapter_config.json", target_modules=["c_attn"])
    points = judge(run)
    assert not failed(points)
    assert "PPL after and samples" in not_judged(points)
    advice = by_name(points)["PPL after and samples"].advice
    assert "the adapter cannot be put on its base (" in advice
    assert "\n" not in advice


def test_a_merge_into_4_bits_is_warned_about(run):
    change(run / "run.json", method="qlora", quantization=None)
    points = judge(run, decision="merge")
    assert not failed(points)
    assert "dequantize" in by_name(points)["merge decision"].found


def test_the_card_says_what_the_run_says(run):
    judge(run, data="Questions to a desk that does not exist.")
    record, card = RunRecord.load(run), ModelCard.load(run / "README.md")
    assert (card.data.base_model, card.data.license, card.data.library_name) == ("embedded", "apache-2.0", "peft")
    assert (card.data.pipeline_tag, card.data.tags) == ("text-generation", ["lora"])
    assert [(r.metric_name, r.metric_value) for r in card.data.eval_results] == [
        ("perplexity before training", pytest.approx(record.ppl_before, abs=1e-3)),
        ("perplexity after training", pytest.approx(record.ppl_after, abs=1e-3)),
        ("exact match after training", pytest.approx(record.scores_after.exact_match.value, abs=1e-3)),
    ]
    for text in (
        "a desk that does not exist",
        "114,688 of 4,116,736",
        "16, 32",
        record.hardware,
        record.created,
        str(record.scores_after.exact_match),
    ):
        assert text in card.text
    assert re.findall("^## (.*)", card.text, re.M) == [
        "Base and licence",
        "Training data",
        "Method",
        "Results",
        "Intended use",
        "Limits",
        "Made with",
        "How to load it",
    ]
    assert not list(run.glob("*.part"))


def test_the_samples_on_the_card_keep_their_lines(run, eval_pairs):
    judge(run)
    text = (run / "README.md").read_text()
    for shown in (eval_pairs[0].instruction, eval_pairs[0].output):
        assert f"```text\n{shown}\n```" in text
    assert "what the right question saves" in text


def test_backticks_in_an_answer_do_not_end_its_block_on_the_card(run, monkeypatch):
    answering(monkeypatch, lambda number, answer: Answer("```\nprint()\n```", True))
    judge(run)
    assert "````text\n```\nprint()\n```\n````" in (run / "README.md").read_text()


def test_the_card_names_no_path_of_this_machine(run, base):
    judge(run)
    text = (run / "README.md").read_text()
    assert not any(str(path) in text for path in (run.parent, data_path(), base.source))


def code_of(card):
    return re.search("```python\n(.*?)```", card.read_text(), re.S)[1]


def test_the_code_on_the_card_loads_the_adapter(run, monkeypatch):
    judge(run)
    monkeypatch.chdir(run.parent)
    names = {}
    exec(code_of(run / "README.md"), names)
    assert names["model"].active_adapters == ["default"]


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_the_card_of_a_hub_base_names_it_in_full(method, run):
    change(run / "run.json", base="qwen2.5-0.5b", method=method, quantization=None)
    card = write_card(read_run(run, run / "eval.jsonl"), trial.Trial(base=choose_base("qwen2.5-0.5b")), "Apache-2.0")
    assert ModelCard.load(card).data.base_model == "Qwen/Qwen2.5-0.5B-Instruct"
    compile(code_of(card), "card", "exec")
    assert ("load_in_4bit" in code_of(card)) == (method == "qlora")


def test_a_card_edited_by_hand_is_kept(run):
    judge(run)
    card = run / "README.md"
    mine = card.read_text().replace(MARK, "My own words.")
    card.write_text(mine)
    assert not failed(judge(run))
    assert card.read_text() == mine


def call(run, *words):
    return CliRunner().invoke(app, ["gate", str(run), "--eval", str(run / "eval.jsonl"), *map(str, words)])


def test_the_command_ends_with_0_for_a_good_run_and_shows_its_answers(run, eval_pairs):
    result = call(run)
    assert result.exit_code == 0, result.output
    assert "9 of 9 points passed" in result.output
    assert eval_pairs[0].instruction in result.output


def test_the_command_ends_with_1_until_the_decision_is_made(run):
    (run / "gate.json").unlink()
    result = call(run)
    assert result.exit_code == 1
    assert "fail" in result.output
    assert "merge decision: to serve it" in result.output
    assert call(run, "--decision", "swap").exit_code == 0
    assert json.loads((run / "gate.json").read_text())["decision"] == "swap"


BROKEN = {
    "no such run folder": lambda run: shutil.rmtree(run),
    "no adapter_model.safetensors": lambda run: (run / ADAPTER).unlink(),
    "adapter_model.bin is a pickle": lambda run: (run / ADAPTER).rename(run / "adapter_model.bin"),
    "no adapter_config.json": lambda run: (run / "adapter_config.json").unlink(),
    "run.json: the file": lambda run: (run / "run.json").write_text('{"name": '),
    "truncated or not safetensors": lambda run: (run / ADAPTER).write_bytes(b"not tensors"),
    "adapter_config.json: not UTF-8 text": lambda run: (run / "adapter_config.json").write_bytes(b"\xff{"),
    "adapter_config.json: r:": lambda run: change(run / "adapter_config.json", r=0),
    "adapter_config.json: peft_type: Field required": lambda run: (run / "adapter_config.json").write_text('{"r": 16}'),
    "adapter_config.json: not a LoRA configuration (TypeError: ": lambda run: change(
        run / "adapter_config.json", eva_config=3
    ),
    "gate.json: the file: Invalid JSON": lambda run: (run / "gate.json").write_text("{"),
    "is a folder": lambda run: ((run / "gate.json").unlink(), (run / "gate.json").mkdir()),
}


@pytest.mark.parametrize("message", BROKEN)
def test_the_command_ends_with_2_and_one_line_for_a_folder_that_is_no_run(message, run):
    BROKEN[message](run)
    result = call(run, "--decision", "keep")
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "setting",
    [
        {"peft_type": [1]},
        {"peft_type": "NOVEL"},
        {"bias": "novel"},
        {"lora_alpha": "32"},
        {"rank_pattern": 3},
        {"alpha_pattern": ["q_proj"]},
    ],
    ids=str,
)
def test_the_command_ends_with_2_and_one_line_for_an_adapter_that_it_cannot_judge(setting, run):
    change(run / "adapter_config.json", **setting)
    result = call(run)
    assert result.exit_code == 2
    assert f"adapter_config.json: {next(iter(setting))}: " in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_base_whose_weights_are_cut_off_is_reported_in_the_points(run, base, tmp_path):
    cut = shutil.copytree(base.source, tmp_path / "embedded")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:1000])
    result = call(run, "--base", cut)
    assert result.exit_code == 1
    assert "deserializ" in " ".join(result.output.split())


def test_the_command_refuses_an_unknown_decision(run):
    result = call(run, "--decision", "maybe")
    assert result.exit_code == 2
    assert "keep, merge, swap" in result.stderr
