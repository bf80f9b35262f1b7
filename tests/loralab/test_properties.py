"""Whatever is read gives what it holds or one line; whatever is written is read back."""

import bz2
import gzip
import json
import lzma
import math

import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import PretrainedConfig

from loralab import Pair, PairsError, RunRecord, as_pairs, encode, load_pairs, read_pairs
from loralab.collate import AnswersAtTheEnd
from loralab.errors import LoralabError
from loralab.gpus import find_gpu
from loralab.pairs import IGNORED, Turn, _letters
from loralab.quantized import stored_quantization
from loralab.scores import Scores
from tests.verdicts import claim

few = settings(max_examples=60, deadline=None)
many = settings(max_examples=200, deadline=None)

PACKERS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
FIELDS = ["instruction", "input", "output", "system", "history", "prompt", "completion", "messages", "conversations"]
KEYS = st.sampled_from([*FIELDS, "role", "content", "from", "value", "text", "chosen", "rejected"]) | st.text(
    max_size=3
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["user", "assistant"])
)
VALUES = st.recursive(
    SCALARS, lambda some: st.lists(some, max_size=3) | st.dictionaries(KEYS, some, max_size=4), max_leaves=12
)
ROWS = st.dictionaries(KEYS, VALUES, max_size=5)


def usable(text):
    """Tell whether a pair takes this text."""
    try:
        Pair(instruction=text, output=text)
    except ValueError:
        return False
    return True


TEXTS = st.text(min_size=1, max_size=40).filter(usable)
HISTORIES = st.lists(
    st.builds(Turn, role=st.sampled_from(["system", "user", "assistant"]), content=TEXTS), max_size=2
).map(tuple)
PAIRS = st.builds(Pair, instruction=TEXTS, output=TEXTS, history=HISTORIES)


def one_line(error):
    """Tell whether each problem has one line."""
    return all(line.strip() for line in str(error).split("\n"))


@few
@given(
    content=st.binary(max_size=80) | st.lists(VALUES | st.text(max_size=20), max_size=4).map(
        lambda rows: "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows).encode("utf-8", "surrogatepass")
    ),
    kind=st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".txt", ""]),
    packed=st.sampled_from(sorted(PACKERS)),
    really=st.booleans(),
)  # fmt: skip
def test_any_file_gives_pairs_or_says_why_not(content, kind, packed, really, tmp_path_factory):
    path = tmp_path_factory.mktemp("any") / f"mine{kind}{packed}"
    path.write_bytes(PACKERS[packed](content) if really else content)
    try:
        found = load_pairs(path)
    except PairsError as error:
        assert one_line(error)
    else:
        assert found.pairs and len(set(found.pairs)) == len(found.pairs)


@many
@given(VALUES | ROWS)
def test_any_row_gives_pairs_or_says_why_not(row):
    try:
        assert as_pairs([row])
    except PairsError as error:
        assert one_line(error)


def as_messages(pair):
    return {"messages": [*pair.question, {"role": "assistant", "content": pair.output}]}


def as_sharegpt(pair):
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    turns = as_messages(pair)["messages"]
    return {"conversations": [{"from": names[turn["role"]], "value": turn["content"]} for turn in turns]}


@few
@given(
    pairs=st.lists(PAIRS, min_size=1, max_size=4, unique=True),
    form=st.sampled_from(["columns", "messages", "sharegpt"]),
    kind=st.sampled_from([".jsonl", ".json"]),
    packed=st.sampled_from(sorted(PACKERS)),
)
def test_pairs_in_any_form_are_read_as_they_are(pairs, form, kind, packed, tmp_path_factory):
    if form != "columns":  # every answer in a conversation is a pair, so these have none before the last
        pairs = [pair.model_copy(update={"history": pair.history[:1]}) for pair in pairs]
        assume(all(turn.role == "system" for pair in pairs for turn in pair.history) and len(set(pairs)) == len(pairs))
    row_of = {"columns": lambda pair: pair.model_dump(), "messages": as_messages, "sharegpt": as_sharegpt}[form]
    rows = [row_of(pair) for pair in pairs]
    text = json.dumps(rows, indent=1) if kind == ".json" else "\n".join(json.dumps(row) for row in rows)
    path = tmp_path_factory.mktemp("forms") / f"pairs{kind}{packed}"
    path.write_bytes(PACKERS[packed](text.encode()))
    assert read_pairs(path) == pairs


@few
@given(
    rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4, unique=True), separator=st.sampled_from([",", "\t"])
)
def test_a_table_is_read_as_it_is(rows, separator, tmp_path_factory):
    assume(not any("\r" in text or "\0" in text for row in rows for text in row))  # csv cannot hold them
    path = tmp_path_factory.mktemp("table") / ("a.csv" if separator == "," else "a.tsv")
    pd.DataFrame(rows, columns=["instruction", "output"]).to_csv(path, sep=separator, index=False)
    assert [(pair.instruction, pair.output) for pair in read_pairs(path)] == rows


@few
@given(pair=PAIRS)
def test_labels_spell_the_answer_and_mask_the_rest(pair, tokenizer):
    try:
        encoded = encode(pair, tokenizer, 512)
    except PairsError as error:
        assert one_line(error)
        return
    tokens, labels = encoded["input_ids"], encoded["labels"]
    learned = [label for label in labels if label != IGNORED]
    assert len(tokens) == len(labels) <= 512
    assert labels == [IGNORED] * (len(tokens) - len(learned)) + tokens[len(tokens) - len(learned) :]
    assert learned[-1] == tokenizer.eos_token_id and tokenizer.eos_token_id not in learned[:-1]
    assert _letters(tokenizer.decode(learned[:-1])) == _letters(pair.output)


@few
@given(pairs=st.lists(PAIRS, min_size=1, max_size=4))
def test_a_batch_learns_what_its_texts_learn(pairs, tokenizer):
    try:
        encoded = [encode(pair, tokenizer, 512) for pair in pairs]
    except PairsError:
        assume(False)
    batch = AnswersAtTheEnd(tokenizer)(encoded)
    width = batch["input_ids"].shape[1]
    for i, one in enumerate(encoded):
        size = len(one["input_ids"])
        assert batch["attention_mask"][i].tolist() == [0] * (width - size) + [1] * size
        assert batch["input_ids"][i].tolist()[width - size :] == one["input_ids"]
        learned = [label for label in one["labels"] if label != IGNORED]
        labels = batch["labels"][i].tolist()
        assert labels == [IGNORED] * (len(labels) - len(learned)) + learned


COUNTS = st.integers(0, 2**63 - 1)
LOSSES = st.floats(min_value=0) | st.just(math.nan)


@st.composite
def scores(draw, most):
    count = draw(st.integers(0, most))
    exact = draw(st.integers(0, count))
    return Scores(count=count, exact=exact, ended=draw(st.integers(exact, count)))


@st.composite
def records(draw):
    parameters, pairs, asked = draw(st.integers(1, 2**63 - 1)), draw(st.integers(1, 10**9)), draw(st.integers(0, 10**6))
    return claim(
        draw(st.lists(LOSSES, max_size=4)),
        name=draw(TEXTS),
        rank=draw(st.none() | st.integers(1, 10**6)),
        alpha=draw(st.none() | st.floats(0, 1e6)),
        dropout=draw(st.none() | st.floats(0, 1)),
        targets=draw(st.lists(TEXTS, max_size=2)),
        quantization=draw(st.none() | st.dictionaries(TEXTS, st.booleans() | TEXTS, max_size=2)),
        parameters=parameters,
        trainable=draw(st.integers(0, parameters)),
        train_pairs=pairs,
        ends=draw(st.none() | st.integers(0, pairs)),
        tokens=draw(COUNTS),
        epochs=draw(st.floats(min_value=0.001, max_value=1e9)),
        learning_rate=draw(st.floats(0, 1e9)),
        seed=draw(st.integers(0, 2**32 - 1)),
        seconds=draw(st.floats(min_value=1e-6, max_value=1e12)),
        peak_memory=draw(COUNTS),
        ppl_after=draw(st.none() | st.floats(min_value=1) | st.just(math.nan)),
        question_gain=draw(st.none() | st.floats()),
        eval_pairs=asked,
        leaks=draw(st.none() | st.integers(0, asked)),
        scores_after=draw(st.none() | scores(asked)),
    )


@few
@given(record=records())
def test_a_record_is_read_as_it_was_written(record, tmp_path_factory):
    folder = tmp_path_factory.mktemp("record")
    record.save(folder)
    found = RunRecord.load(folder)
    assert found.model_dump_json() == record.model_dump_json()  # in which NaN equals NaN
    assert 0 <= found.trainable_percent <= 100
    assert len(found.loss_ends) == 2


NUMBERS = st.integers() | st.floats() | st.just(10**400)


@many
@given(
    changes=st.dictionaries(st.sampled_from(sorted(RunRecord.model_fields)), VALUES | NUMBERS, min_size=1, max_size=3)
)
def test_a_changed_record_is_possible_or_one_line(changes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("changed")
    (folder / "run.json").write_text(json.dumps(json.loads(claim().model_dump_json()) | changes))
    try:
        record = RunRecord.load(folder)
    except LoralabError as error:
        assert "\n" not in str(error)
    else:
        assert record.parameters > 0 and record.seconds > 0 and record.epochs >= 0 and record.batch_size >= 1
        assert 0 <= record.trainable_percent <= 100


@few
@given(content=st.binary(max_size=60))
def test_bytes_that_are_no_record_are_one_line(content, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "run.json").write_bytes(content)
    with pytest.raises(LoralabError) as caught:
        RunRecord.load(folder)
    assert "\n" not in str(caught.value)


QUANTIZED = ["quant_method", "bits", "group_size", "load_in_4bit", "load_in_8bit", "modules_to_not_convert", "ignore"]
METHODS = st.sampled_from(["bitsandbytes", "gptq", "awq", "fp8", "compressed-tensors"])


@many
@given(st.dictionaries(st.sampled_from(QUANTIZED), METHODS | SCALARS | st.lists(st.text(max_size=4), max_size=2)))
def test_any_quantisation_is_counted_or_one_line(content):
    try:
        found = stored_quantization(PretrainedConfig(quantization_config=content))
    except LoralabError as error:
        assert "\n" not in str(error)
    else:
        assert (found is None) == (not content)
        if found:
            assert 0 < found.bytes(4096, 64) <= 4 * 4096
            assert found.converts("model.layers.0.mlp.up_proj", False) in (True, False)


@many
@given(st.text(max_size=12) | st.from_regex(r"\A\d{0,3} ?[x*]? ?(rtx|a100|t4|24|40)? ?-?\d{0,4} ?(gb|gib)?\Z"))
def test_any_gpu_is_known_or_one_line(typed):
    try:
        found = find_gpu(typed)
    except LoralabError as error:
        assert error.args
    else:
        assert 0 < found.gib < 1_000 and found.count >= 1
