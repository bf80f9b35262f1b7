"""Reading and encoding instruction pairs."""

import copy
import json

import pytest

from loralab import Pair, PairsError, encode, read_pairs, write_pairs
from loralab.pairs import Turn

GOOD = {"instruction": "Where is the workshop?", "output": "In Aldermere."}


def written(tmp_path, *lines, encoding="utf-8"):
    path = tmp_path / "mine.jsonl"
    text = "\n".join(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    path.write_bytes(text.encode(encoding))
    return path


def test_reads_what_was_written(tmp_path):
    pairs = [Pair(instruction="Où?", output="Here — there."), Pair(instruction="A\nB", output="C")]
    write_pairs(tmp_path / "some" / "pairs.jsonl", pairs)
    assert read_pairs(tmp_path / "some" / "pairs.jsonl") == pairs


def test_blank_lines_a_byte_order_mark_and_more_fields_are_fine(tmp_path):
    path = written(
        tmp_path, GOOD | {"topic": "place"}, "", "  ", {"instruction": "x", "output": "y"}, encoding="utf-8-sig"
    )
    assert [pair.output for pair in read_pairs(path)] == ["In Aldermere.", "y"]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ({"instruction": "Where?"}, "the field 'output' is missing (fields found: 'instruction')"),
        ({"instruction": "Where?", "output": "  "}, "the field 'output' is empty"),
        ({"instruction": 3, "output": "x"}, "the field 'instruction' must be a text"),
        ('{"instruction": "Where?", ', "not valid JSON"),
        ('["Where?", "There."]', "a JSON list, not an object"),
        (GOOD, "the same pair as line 1"),
        ('{"a":' * 100_000, "not valid JSON"),
        ('{"a": ' + "1" * 5_000 + "}", "not valid JSON"),
        ('{"instruction": "Where?", "output": "\\ud83d"}', "the field 'output' holds half of a character"),
    ],
)
def test_a_bad_line_is_named_with_file_and_number(tmp_path, line, what):
    with pytest.raises(PairsError) as error:
        read_pairs(written(tmp_path, GOOD, line))
    assert str(error.value).startswith(f"{tmp_path / 'mine.jsonl'}:2: {what}")
    assert len(str(error.value).splitlines()) == 1


def test_every_bad_line_is_named_up_to_ten(tmp_path):
    with pytest.raises(PairsError) as error:
        read_pairs(written(tmp_path, *["{"] * 14))
    lines = str(error.value).splitlines()
    assert len(lines) == 11
    assert lines[-1] == "... and 4 more"


def test_the_wrong_encoding_is_named_with_its_line(tmp_path):
    with pytest.raises(PairsError, match=r"mine.jsonl:2: not UTF-8 \(byte 0xe9\); save the file as UTF-8"):
        read_pairs(
            written(
                tmp_path,
                GOOD,
                {"instruction": "Où est le café?", "output": "x"}.__repr__().replace("'", '"').replace("Où", "Ou"),
                encoding="latin-1",
            )
        )


def test_an_empty_or_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(PairsError, match="no pairs in it; write one"):
        read_pairs(written(tmp_path, ""))
    with pytest.raises(PairsError, match="no such file; give a file"):
        read_pairs(tmp_path / "nothing.jsonl")


def test_an_answer_too_long_to_fit_is_named(tmp_path, tokenizer):
    path = written(tmp_path, GOOD, {"instruction": "Long?", "output": "very " * 400})
    assert len(read_pairs(path)) == 2
    with pytest.raises(
        PairsError,
        match=r"mine.jsonl:2: \d+ tokens \(\d+ for the instruction, \d+ for the answer\), but 256 fit; shorten the answer",
    ):
        read_pairs(path, tokenizer, 256)


def test_labels_are_the_answer_and_its_end_and_nothing_else(tokenizer):
    pair = Pair(**GOOD)
    encoded = encode(pair, tokenizer)
    learned = [token for token in encoded["labels"] if token != -100]
    prompt = encoded["input_ids"][: -len(learned)]
    assert learned[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(learned[:-1]) == pair.output
    assert tokenizer.decode(prompt) == "<|im_start|>user\nWhere is the workshop?<|im_end|>\n<|im_start|>assistant\n"
    assert encoded["input_ids"][-len(learned) :] == learned


def test_an_instruction_that_is_too_long_is_named_as_such(tokenizer):
    with pytest.raises(PairsError, match=r"but 64 fit; shorten the instruction or raise max_length"):
        encode(Pair(instruction="very " * 100, output="yes"), tokenizer, 64)
    earlier = (Turn(role="user", content="very " * 100), Turn(role="assistant", content="yes"))
    with pytest.raises(PairsError, match=r"fit; shorten the earlier messages and the instruction or raise max_length"):
        encode(Pair(instruction="Why?", output="So.", history=earlier), tokenizer, 64)


def test_earlier_messages_come_before_the_instruction_and_are_not_learned(tokenizer):
    history = (Turn(role="user", content="One?"), Turn(role="assistant", content="Two."))
    encoded = encode(Pair(**GOOD, history=history), tokenizer)
    learned = [token for token in encoded["labels"] if token != -100]
    assert tokenizer.decode(learned) == "In Aldermere.<|im_end|>"
    assert "Two.<|im_end|>" in tokenizer.decode(encoded["input_ids"][: -len(learned)])


CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKS = "{{ m['content'].split('</think>')[-1] }}"


@pytest.mark.parametrize(
    ("template", "end", "pair", "what"),
    [
        (
            CHAT,
            "<|im_end|>",
            GOOD | {"output": "In the shed.<|im_end|>"},
            "the output contains the special token '<|im_end|>'",
        ),
        (CHAT, "<|im_end|>", GOOD | {"instruction": "<|im_start|>"}, "the instruction contains the special token"),
        (
            CHAT,
            "<|im_end|>",
            GOOD | {"history": [{"role": "system", "content": "Be brief.<|im_end|>"}]},
            "the system message contains the special token '<|im_end|>'",
        ),
        (
            CHAT,
            "<|endoftext|>",
            GOOD,
            "ends an answer with '<|im_end|>', but the tokenizer's end token is '<|endoftext|>'",
        ),
        (CHAT, None, GOOD, "the tokenizer has no end-of-answer token"),
        (CHAT.replace("<|im_end|>", ""), "<|im_end|>", GOOD, "the chat template writes no end-of-answer token"),
        (
            CHAT.replace("{{ m['content'] }}", THINKS),
            "<|im_end|>",
            GOOD | {"output": "<think>3</think>No."},
            "rewrites the answer",
        ),
        (
            CHAT.replace("{% for", "{{ raise_exception('no') }}{% for"),
            "<|im_end|>",
            GOOD,
            "chat template fails on it: TemplateError: no",
        ),
        ("{% if %}", "<|im_end|>", GOOD, "chat template fails on it: TemplateSyntaxError"),
        (CHAT[:-11] + "<think>{% endif %}", "<|im_end|>", GOOD, "writes '<think>' where an answer begins, but 'In Al"),
    ],
)
def test_a_template_that_spoils_the_pair_is_named(tokenizer, template, end, pair, what):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template, tokenizer.eos_token = template, end
    with pytest.raises(PairsError) as error:
        encode(Pair(**pair), tokenizer)
    assert what in str(error.value)
    assert len(str(error.value).splitlines()) == 1
