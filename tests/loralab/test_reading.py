"""Training data in the forms and files that people have."""

import bz2
import gzip
import json
import lzma

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given
from hypothesis import strategies as st

from loralab import Pair, PairsError, as_pairs, load_pairs, read_pairs, write_pairs
from loralab import rows as rows_module
from loralab.pairs import Turn

ROWS = [{"instruction": f"Where is shed {i}?", "output": f"00{i}"} for i in range(3)]
PAIRS = [Pair(**row) for row in ROWS]


def written(path, rows):
    """Write rows to a file in the format that its name says."""
    jsonl = "\n".join(map(json.dumps, rows)).encode()
    match "".join(path.suffixes):
        case ".jsonl":
            path.write_bytes(jsonl)
        case ".json":
            path.write_text(json.dumps(rows, indent=2))
        case ".jsonl.gz":
            path.write_bytes(gzip.compress(jsonl))
        case ".jsonl.bz2":
            path.write_bytes(bz2.compress(jsonl))
        case ".jsonl.xz":
            path.write_bytes(lzma.compress(jsonl))
        case ".csv" | ".csv.gz":
            pd.DataFrame(rows).to_csv(path, index=False)
        case ".tsv":
            pd.DataFrame(rows).to_csv(path, index=False, sep="\t")
        case ".parquet":
            Dataset.from_list(rows).to_parquet(path)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "a.jsonl",
        "a.json",
        "a.jsonl.gz",
        "a.jsonl.bz2",
        "a.jsonl.xz",
        "a.csv",
        "a.csv.gz",
        "a.tsv",
        "a.parquet",
        "a[1].parquet",
    ],
)
def test_every_file_format_gives_the_same_pairs(tmp_path, name):
    assert read_pairs(written(tmp_path / name, ROWS)) == PAIRS


def test_a_table_with_semicolons_is_read(tmp_path):
    (tmp_path / "a.csv").write_text('instruction;output\n"Where; exactly?";In shed 1, or 2\n')
    assert read_pairs(tmp_path / "a.csv") == [Pair(instruction="Where; exactly?", output="In shed 1, or 2")]


def test_json_lines_in_a_json_file_and_a_wrapped_array_are_read(tmp_path):
    (tmp_path / "lines.json").write_text("\n".join(map(json.dumps, ROWS)))
    for indent in (None, 1):  # None writes one line
        (tmp_path / "wrapped.json").write_text(json.dumps({"version": 1, "data": ROWS}, indent=indent) + "\n")
        row = ROWS[0] | {"history": [{"role": "system", "content": "Be short."}]}  # a list, but not of rows
        (tmp_path / "single.json").write_text(json.dumps(row, indent=indent) + "\n")
        assert read_pairs(tmp_path / "lines.json") == read_pairs(tmp_path / "wrapped.json") == PAIRS
        assert [pair.instruction for pair in read_pairs(tmp_path / "single.json")] == [PAIRS[0].instruction]


def test_folders_that_datasets_writes_or_reads_are_read(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1])).save_to_disk(tmp_path / "two")
    (tmp_path / "files").mkdir()
    written(tmp_path / "files" / "train.jsonl", ROWS)
    assert [read_pairs(tmp_path / name) for name in ("one", "two", "files")] == [PAIRS] * 3


def test_splits_without_a_train_split_are_named(tmp_path):
    DatasetDict(a=Dataset.from_list(ROWS), b=Dataset.from_list(ROWS)).save_to_disk(tmp_path / "two")
    with pytest.raises(PairsError, match="it has the splits a, b; name one"):
        read_pairs(tmp_path / "two")


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.xlsx", b"PK", "a.xlsx: .xlsx files cannot be read; save the table as CSV"),
        ("a.zip", b"PK\xff", "a.zip: .zip files cannot be read; unpack it"),
        ("a.jsonl.gz", b"not gzip", "a.jsonl.gz: cannot be decompressed"),
        ("a.parquet", b"not parquet", "a.parquet: cannot be read by datasets: "),
        ("a.csv", b"", "a.csv: cannot be read as a table: "),
        (
            "a.csv",
            "instruction,output\nOù,là\n".encode("latin-1"),
            "a.csv:2: not UTF-8 (byte 0xf9); save the file as UTF-8",
        ),
        ("a.csv", b"instruction,answer\nx,y\n", "a.csv: row 1: the field 'output' is missing"),
        ("a.json", b"[]", "a.json: no pairs in it"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, name, content, what):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PairsError) as error:
        read_pairs(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path}/{what}")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("row", "pair"),
    [
        ({"prompt": "a", "completion": "b"}, {}),
        ({"question": "a", "answer": "b"}, {}),
        ({"input": "a", "output": "b"}, {}),
        ({"instruction": "a", "output": "b", "input": None, "system": ""}, {}),
        ({"instruction": "a", "input": "The door is open.", "output": "b"}, {"instruction": "a\n\nThe door is open."}),
        ({"instruction": "a", "output": "b", "system": "Be brief."}, {"history": [("system", "Be brief.")]}),
        (
            {"instruction": "a", "output": "b", "history": [["q", "r"]]},
            {"history": [("user", "q"), ("assistant", "r")]},
        ),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, {}),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, {}),
        ({"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}, {}),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "a"}]},
                    {"role": "assistant", "content": "b"},
                ]
            },
            {},
        ),
    ],
)
def test_every_usual_form_is_understood(row, pair):
    history = tuple(Turn(role=role, content=text) for role, text in pair.get("history", ()))
    assert as_pairs([row]) == [Pair(**{"instruction": "a", "output": "b"} | pair | {"history": history})]


def test_a_conversation_gives_a_pair_for_each_answer():
    words = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")]
    first, second = as_pairs([{"messages": [{"role": role, "content": text} for role, text in words]}])
    assert (first.instruction, first.output, len(first.history)) == ("a", "b", 1)
    assert (second.instruction, second.output, len(second.history)) == ("c", "d", 3)
    assert second.question[-2:] == [{"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference data"),
        ({"text": "a"}, "no known format (fields found: 'text'); name the fields instruction and output, "),
        ({"messages": "a"}, "the field 'messages' must be a list of messages"),
        ({"messages": []}, "the field 'messages' must be a list of messages"),
        ({"messages": ["a"]}, "message 1 of 'messages' is not an object"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "message 1 of 'messages' has the role 'tool'"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "message 1 of 'messages' has a part"),
        ({"messages": [{"role": "user", "content": "a"}]}, "no answer of the assistant follows"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]},
            "the field 'content' is empty",
        ),
        ({"instruction": "a", "output": "b", "history": "q"}, "the field 'history' must be a list"),
        ({"prompt": "a", "completion": 3}, "the field 'completion' must be a text"),
        ({"prompt": "a", "completion": ""}, "the field 'completion' is empty"),
        ({"instruction": "x", "output": "\u200b"}, "the field 'output' is empty"),
        ({"instruction": "\ufeff\u00ad", "output": "x"}, "the field 'instruction' is empty"),
        ({}, "no known format (fields found: none)"),
        ("a", "a JSON str, not an object"),
    ],
)
def test_a_row_of_no_use_says_why(row, what):
    with pytest.raises(PairsError) as error:
        as_pairs([row])
    assert str(error.value).startswith(f"pair 1: {what}")


def test_the_formats_found_are_told_once(tmp_path):
    rows = [{"prompt": "a", "completion": "b"}, {"instruction": "c", "input": "d", "output": "e"}, *ROWS]
    found = load_pairs(written(tmp_path / "mixed.jsonl", rows))
    assert found.formats == ("prompt + completion", "instruction + output + input", "instruction + output")


def test_duplicates_count_after_the_input_is_joined(tmp_path):
    rows = [{"instruction": "Translate.", "input": text, "output": "x"} for text in ("one", "two", "one")]
    with pytest.raises(PairsError, match=r"a.csv: row 3: the same pair as row 1; delete one of them"):
        read_pairs(written(tmp_path / "a.csv", rows))


def test_conversations_that_begin_alike_give_their_beginning_once(tmp_path):
    def chat(*texts):
        return {"messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]}

    rows = [chat("Hi", "Hello", "Where?", "There"), chat("Hi", "Hello", "When?", "Now")]
    assert [pair.output for pair in read_pairs(written(tmp_path / "a.jsonl", rows))] == ["Hello", "There", "Now"]
    with pytest.raises(PairsError, match=r"a.jsonl:3: the same pair as line 2; delete one of them"):
        read_pairs(written(tmp_path / "a.jsonl", [*rows, rows[1]]))


def test_a_dataset_s_name_may_have_a_dot(monkeypatch):
    asked = []
    monkeypatch.setattr(rows_module, "_load", lambda source, name, wanted: asked.append((name, wanted)) or ROWS)
    assert read_pairs("teknium/OpenHermes-2.5") == read_pairs("teknium/OpenHermes-2.5:train") == PAIRS
    assert asked == [("teknium/OpenHermes-2.5", ""), ("teknium/OpenHermes-2.5", "train")]
    with pytest.raises(PairsError, match="data/mine.jsonl: no such file"):
        read_pairs("data/mine.jsonl")


texts = st.text(min_size=1).filter(lambda text: text.strip())
turns = st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text())


@given(st.lists(st.tuples(texts, texts, st.lists(turns, max_size=3)), min_size=1, max_size=5, unique_by=str))
def test_pairs_survive_being_written(tmp_path_factory, content):
    pairs = []
    for instruction, output, history in content:
        try:
            pair = Pair(
                instruction=instruction,
                output=output,
                history=tuple(Turn(role=role, content=text) for role, text in history),
            )
        except ValueError:  # nothing visible, or a lone surrogate
            continue
        if pair not in pairs:
            pairs.append(pair)
    path = tmp_path_factory.mktemp("written") / "pairs.jsonl"
    write_pairs(path, pairs)
    assert (read_pairs(path) if pairs else []) == pairs
