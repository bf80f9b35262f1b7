"""The ledger of claims: every number that can be computed is, from the models' configs alone."""

import re
from collections import Counter
from typing import get_args

import pytest
import torch
from pydantic import ValidationError

from tools.claims import (
    CHECKS,
    CONFIGS,
    LEDGER,
    PAGE,
    ROOT,
    Chapter,
    Claim,
    Verdict,
    adapter_file_bytes,
    all_parameters,
    base_parameters,
    load,
    load_reruns,
    page,
    trainable_parameters,
)

CLAIMS, RERUNS = load(), load_reruns()
COMPUTED = [claim for claim in CLAIMS if claim.check]
BASES = {
    "smollm2-135m": 134_515_008,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "llama-3.2-1b": 1_235_814_400,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
}


def numbers(text):
    """The numbers written in a text: 8,676,008 and 0.436 and 1e-4 alike."""
    return {float(found.replace(",", "")) for found in re.findall(r"\d+(?:,\d{3})+|\d+(?:\.\d+)?(?:e-?\d+)?", text)}


def claim(**changes):
    """A claim in good order, but for `changes`; a change to None leaves the field out."""
    fields = {
        "id": "small-adapter",
        "section": 3,
        "claim": "The adapter is small.",
        "verdict": "holds",
        "truth": "It has 2,162,688 parameters.",
        "basis": "computed",
        "source": "peft's own count.",
        "chapter": "02_peft_sft",
        "check": "trainable_parameters",
        "args": {"model": "qwen2.5-0.5b", "rank": 16, "targets": "q,k,v,o"},
        "expected": 2_162_688,
    }
    return Claim.model_validate({name: value for name, value in (fields | changes).items() if value is not None})


@pytest.mark.parametrize("one", COMPUTED, ids=lambda one: one.id)
def test_what_can_be_computed_comes_out_as_written(one):
    assert one.agrees(), f"{one.check} gives {one.recomputed()}, the ledger says {one.expected}"


@pytest.mark.parametrize("one", COMPUTED, ids=lambda one: one.id)
def test_the_truth_names_every_number_that_is_checked(one):
    checked = {float(value) for value in one.expected_values if not isinstance(value, bool)}
    assert checked <= numbers(one.truth)


@pytest.mark.parametrize(("name", "parameters"), BASES.items())
def test_the_configs_are_the_published_models(name, parameters):
    assert base_parameters(name) == parameters
    assert all_parameters(name, 16, "all") == parameters + trainable_parameters(name, 16, "all")


def test_every_config_is_counted():
    assert {path.parent.name for path in CONFIGS.glob("*/config.json")} == BASES.keys()


def test_the_page_is_up_to_date():
    assert PAGE.read_text("utf-8") == page(CLAIMS, RERUNS), "run: python tools/claims.py"


def test_the_page_shows_every_claim_once_and_counts_the_verdicts():
    text = page(CLAIMS, RERUNS)
    rows = [line for line in text.splitlines() if "../chapters/" in line]
    assert len(rows) == len(CLAIMS) + len(RERUNS)
    columns = [row.replace("\\|", "").count("|") - 1 for row in rows]
    assert columns == [4] * len(CLAIMS) + [5] * len(RERUNS)
    for verdict, count in Counter(one.verdict for one in CLAIMS).items():
        assert f"| {verdict} | {count} |" in text


def test_the_ledger_covers_the_whole_source():
    assert {one.section for one in CLAIMS} == set(range(1, 10))
    assert {one.verdict for one in CLAIMS} == set(get_args(Verdict))
    assert {one.chapter for one in [*CLAIMS, *RERUNS]} == set(get_args(Chapter))
    assert [one.section for one in CLAIMS] == sorted(one.section for one in CLAIMS)


def test_every_chapter_that_is_named_exists():
    assert set(get_args(Chapter)) <= {path.stem for path in ROOT.glob("chapters/0*.ipynb")}


def test_every_check_is_used():
    assert {one.check for one in COMPUTED} == CHECKS.keys()


@pytest.mark.parametrize("one", CLAIMS, ids=lambda one: one.id)
def test_a_figure_from_a_paper_says_whether_it_was_confirmed(one):
    if re.search(r"arXiv|thinkingmachines", one.source):
        assert "confirmed" in (one.note or "")


def test_a_claim_in_good_order_agrees():
    assert claim().agrees()
    assert claim(check="trainable_percent", expected=0.4359).agrees()
    assert claim(check="trainable_percent", expected=0.44).agrees()


@pytest.mark.parametrize(
    ("check", "args", "expected"),
    [
        ("trainable_parameters", {"model": "qwen2.5-0.5b", "rank": 16, "targets": "q,k,v,o"}, 4_358_144),
        ("trainable_parameters", [{"model": "qwen2.5-0.5b", "rank": 16, "targets": "q,v"}], [2_162_688]),
        ("trainable_percent", {"model": "qwen2.5-0.5b", "rank": 16, "targets": "q,k,v,o"}, 0.87),
        ("trainable_percent", {"model": "qwen2.5-0.5b", "rank": 16, "targets": "q,k,v,o"}, 0.4358),
        ("nf4_cost", {}, [4.127, 4.0]),
        ("nf4_cost", {}, [4.127]),
        ("warmup_percent", {"pairs": 100, "epochs": 3, "warmup_steps": 20}, 10),
        ("accepts", {"name": "Trainer", "argument": "tokenizer"}, True),
        ("accepts", {"name": "Trainer", "argument": "tokenizer"}, 0),
    ],
)
def test_a_wrong_number_is_found(check, args, expected):
    assert not claim(check=check, args=args, expected=expected).agrees()


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"check": None, "args": None, "expected": None}, "a computed claim needs a check"),
        ({"expected": None}, "go together"),
        ({"args": None}, "go together"),
        ({"check": "guess"}, "no check is called 'guess'"),
        ({"args": [{}, {}], "expected": [1]}, "one expected value for each of the 2 calls"),
        ({"verdict": "mostly"}, "verdict"),
        ({"basis": "believed"}, "basis"),
        ({"chapter": "07_more"}, "chapter"),
        ({"section": 10}, "section"),
        ({"id": "Small_Adapter"}, "id"),
        ({"claim": "No full stop"}, "claim"),
        ({"truht": "A field that does not exist."}, "truht"),
    ],
)
def test_a_malformed_claim_is_refused(changes, cause):
    with pytest.raises(ValidationError, match=re.escape(cause)):
        claim(**changes)


def test_an_id_that_repeats_is_refused(tmp_path):
    first = LEDGER.read_text("utf-8").split("[[claim]]")[1]
    path = tmp_path / "claims.toml"
    path.write_text(f"[[claim]]{first}[[claim]]{first}", "utf-8")
    with pytest.raises(ValueError, match="more than one claim is called weight-change-is-low-rank"):
        load(path)


def test_only_a_claim_with_a_check_can_be_recomputed():
    with pytest.raises(ValueError, match="has no check"):
        claim(basis="cited", check=None, args=None, expected=None).recomputed()


def test_the_file_is_as_large_as_its_tensors_and_a_header():
    tensors = 4 * trainable_parameters("smollm2-135m", 4, "q,k,v,o")
    assert 0 < adapter_file_bytes("smollm2-135m", 4, "q,k,v,o") - tensors < 40_000
    half = adapter_file_bytes("smollm2-135m", 4, "q,k,v,o", str(torch.float16).removeprefix("torch."))
    assert half < tensors
