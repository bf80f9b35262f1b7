"""The stored results that chapters 1 and 7 draw are those of the program beside them."""

from benchmarks.learn_and_forget import MEASURED, MEASURED_AFTER, REPLAYED, Run, planned
from loralab import data_path, read_pairs, stored_results

STORED = stored_results("learn_and_forget")


def runs(kind):
    return {Run(kind, row["rank"], row["rate"], row["seed"], row["replay"]) for row in STORED[kind]}


def test_every_planned_run_is_stored_and_nothing_else():
    assert runs("capacity") | runs("frontier") == set(planned())
    assert {row["epoch"] for row in STORED["frontier"]} == {0, *MEASURED_AFTER}


def test_what_is_replayed_is_not_what_measures_forgetting():
    assert {pair.instruction for pair in MEASURED}.isdisjoint(pair.instruction for pair in REPLAYED)
    assert len(MEASURED) + len(REPLAYED) == len(read_pairs(data_path("pairs/general.jsonl")))


def test_no_adapter_stores_more_than_there_is():
    assert all(0 <= row["bits"] <= STORED["codes"] * STORED["code_bits"] for row in STORED["capacity"])
