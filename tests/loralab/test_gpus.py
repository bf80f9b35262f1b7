"""GPUs by the names that people type."""

import pytest

from loralab.errors import LoralabError
from loralab.gpus import GPUS, find_gpu


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("A100-80GB", "a100-80"),
        ("a100:80gb", "a100-80"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA H100 80GB HBM3", "h100-80"),
        ("H100", "h100-80"),
        ("rtx 4090", "rtx4090"),
        ("4090", "rtx4090"),
        ("RTX 4090 24GB", "rtx4090"),
        ("NVIDIA GeForce RTX 3090", "rtx3090"),
        ("rtx3060", "rtx3060-12"),
        ("Tesla T4", "t4"),
        ("t4 16GB", "t4"),
        ("NVIDIA A10G", "a10"),
        ("NVIDIA RTX A6000", "a6000"),
        ("Tesla V100-SXM2-32GB", "v100-32"),
    ],
)
def test_a_gpu_is_known_by_the_names_of_shops_and_drivers(typed, name):
    found = find_gpu(typed)
    assert (found.name, found.count, found.note) == (name, 1, "")


@pytest.mark.parametrize(
    ("typed", "gib"),
    [("24 GiB", 24), ("24", 24), (22.5, 22.5), ("24GB", 24e9 / 2**30), ("24 g", 24e9 / 2**30), ("15360MiB", 15)],
)
def test_a_gpu_is_known_by_its_memory(typed, gib):
    assert find_gpu(typed).gib == pytest.approx(gib)


@pytest.mark.parametrize(
    ("typed", "count", "name"),
    [
        ("2x t4", 2, "t4"),
        ("t4 x2", 2, "t4"),
        ("2 T4", 2, "t4"),
        ("8xA100-80GB", 8, "a100-80"),
        ("4*24gb", 4, "your GPU"),
        ("2 × rtx 4090", 2, "rtx4090"),
    ],
)
def test_several_gpus_are_counted(typed, count, name):
    found = find_gpu(typed)
    assert (found.count, found.name) == (count, name)


def test_a_name_of_two_sizes_is_the_smaller_and_says_so():
    assert (find_gpu("a100").name, find_gpu("a100").note) == (
        "a100-40",
        "a100 is a100-40 or a100-80: the smaller is assumed",
    )


@pytest.mark.parametrize(
    "typed",
    ["", "x", "2x", "t4 x", "rtx 4080", "a100 60gb", "24 tb", "0x t4", "9999 x t4", "-1", "inf", "1e400", "t4,l4"],
)
def test_what_is_no_gpu_is_one_line(typed):
    with pytest.raises(LoralabError) as caught:
        find_gpu(typed)
    assert "\n" not in str(caught.value)
    assert "give" in str(caught.value)


def test_the_line_about_an_unknown_name_has_the_similar_ones():
    with pytest.raises(LoralabError, match=r"unknown GPU 'h10' \(similar: .*h100-80.*\): give one of rtx3060-12, "):
        find_gpu("h10")
    assert len({gpu.name for gpu in GPUS}) == len(GPUS)
