"""Reading an untrusted adapter, and the exact shapes it is compared with."""

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from grader.errors import Refused
from grader.evaluation import adapter_settings
from grader.evaluation.adapter import read_adapter
from grader.evaluation.adapter_settings import read_settings
from grader.evaluation.delta_w import likeness
from loralab import choose_base
from loralab.shapes import LINEAR, adapter_shape
from tests.conftest import ATTENTION

WEIGHTS = "adapter_model.safetensors"


def edit_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, change):
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def in_four_bits(folder):
    """A file that its own library can describe, but not read."""
    header = json.dumps({"odd": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + b"\0")


BASE = choose_base("embedded").source
EVERY = [
    name.removeprefix("base_model.model.").partition(".lora_A")[0]
    for name in adapter_shape(BASE, 1, tuple(ATTENTION)).tensors
    if "lora_A" in name
]


def first(weights):
    return sorted(weights)[0]


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (lambda f: (f / WEIGHTS).unlink(), "no adapter was saved; call model.save_pretrained"),
        (lambda f: (f / WEIGHTS).rename(f / "adapter_model.bin"), "adapter_model.bin is a pickle, which can run code"),
        (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:5000]), "truncated or not safetensors"),
        (lambda f: (f / WEIGHTS).write_bytes(b""), "truncated or not safetensors"),
        (lambda f: (f / "adapter_config.json").unlink(), "no adapter_config.json"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "adapter_config.json is not valid JSON"),
        (lambda f: (f / "adapter_config.json").write_text("[" * 50_000), "adapter_config.json is not valid JSON"),
        (lambda f: (f / "adapter_config.json").write_text("[]"), "holds no JSON object"),
        (lambda f: (f / "adapter_config.json").write_text(" " * 70_000), "no adapter's config is that large"),
        (lambda f: edit_config(f, r="16"), "adapter_config.json: r: Input should be a valid integer"),
        (lambda f: edit_config(f, r=10**9), "adapter_config.json: r: "),
        (lambda f: edit_config(f, target_modules=".*"), "is not the adapter that .* gate_proj.* is missing"),
        (lambda f: edit_config(f, target_modules="(q"), "not a regular expression that can be read"),
        (lambda f: edit_config(f, target_modules="(?:.|.)+[!?]"), "not a regular expression that can be read"),
        (
            lambda f: edit_config(f, target_modules=EVERY[:-1]),
            "layers.[0-9]+.* is left out, others of its kind are not",
        ),
        (lambda f: edit_config(f, layers_to_transform=[0]), "is left out, others of its kind are not"),
        (lambda f: edit_config(f, exclude_modules=["v_proj"]), "v_proj.* is not part of it"),
        (lambda f: edit_config(f, init_lora_weights="pissa"), "init_lora_weights is 'pissa'; .* plain LoRA without it"),
        (lambda f: edit_config(f, base_model_name_or_path="Qwen/Qwen2.5-0.5B"), "'Qwen/Qwen2.5-0.5B', but 'embedded'"),
        (lambda f: edit_config(f, base_model_name_or_path="someone/base"), "'someone/base', but 'embedded'"),
        (lambda f: edit_config(f, base_model_name_or_path="../../../outside"), "outside', but 'embedded'"),
        (lambda f: edit_config(f, alpha_pattern={"v_proj": 64}), "gives the layers 32 to 64"),
        (lambda f: edit_config(f, target_modules=["lm_head"]), "only q_proj, k_proj"),
        (lambda f: edit_config(f, target_modules=["x" * 5_000] * 7), r"adapter_config.json: target_modules.{1,80}$"),
        (lambda f: edit_config(f, modules_to_save=["lm_head"]), "modules_to_save is .* plain LoRA without it"),
        (lambda f: edit_config(f, use_dora=True), "use_dora is 'True'; this exercise asks for plain LoRA"),
        (lambda f: edit_config(f, peft_type="IA3"), "peft_type is 'IA3'"),
        (lambda f: edit_config(f, rank_pattern={"q_proj": 64}), "rank_pattern is"),
        (lambda f: edit_config(f, r=8), r"has shape \(16, 256\), but rank 8 on .* makes it \(8, 256\)"),
        (lambda f: edit_config(f, target_modules=["q_proj"]), "is not part of it"),
        (lambda f: edit_weights(f, lambda w: w.pop(first(w))), "lora_A.weight is missing"),
        (lambda f: edit_weights(f, lambda w: w.update(extra=torch.zeros(1))), "extra is not part of it"),
        (
            lambda f: edit_weights(f, lambda w: w.update({"x" * 5_000: torch.zeros(1)})),
            "x{120} ... .* is not part of it",
        ),
        (lambda f: edit_weights(f, lambda w: w.update({"x\ny": torch.zeros(1)})), "x y is not part of it"),
        (lambda f: edit_weights(f, lambda w: w[first(w)].fill_(float("nan"))), "holds NaN or infinity"),
        (lambda f: edit_weights(f, lambda w: [w[n][:, 12:].zero_() for n in w if "lora_B" in n]), "of a lower rank"),
        (
            lambda f: edit_weights(f, lambda w: [w[n][:, 1:].copy_(w[n][:, :1]) for n in w if "lora_B" in n]),
            "of a lower rank",
        ),
        (in_four_bits, "cannot be read|tensors of type F4"),
        (lambda f: edit_weights(f, lambda w: w.update({k: v.double() for k, v in w.items()})), "tensors of type F64"),
    ],
)
def test_a_spoilt_adapter_is_refused_with_its_cause(honest, base, spoil, cause):
    spoil(honest)
    with pytest.raises(Refused, match=cause) as error:
        read_adapter(honest, base)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "said",
    [
        {"target_modules": r".*self_attn\.(q|k|v|o)_proj"},
        {"target_modules": [f"self_attn.{name}" for name in ATTENTION]},
        {"target_modules": EVERY},
        {"target_modules": "all-linear", "exclude_modules": ["gate_proj", "up_proj", "down_proj"]},
        {"layers_to_transform": list(range(99))},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": False},
        {"use_rslora": True, "lora_alpha": 8},
        {"rank_pattern": {"gate_proj": 4}, "alpha_pattern": {"mlp.down_proj": 7}},
        {"r": 8, "rank_pattern": {".*": 16}, "lora_alpha": 1, "alpha_pattern": {"self_attn.[qkvo]_proj": 32}},
        {"base_model_name_or_path": BASE},
        {"base_model_name_or_path": "/content/drive/MyDrive/lora-course/data/base"},
        {"base_model_name_or_path": "C:\\Users\\kim\\data\\base"},
        {"base_model_name_or_path": "data/base"},
        {"base_model_name_or_path": "../base"},
        {"base_model_name_or_path": "/models/embedded"},
    ],
)
def test_a_config_that_says_the_same_in_another_way_gives_the_same_adapter(honest, base, said):
    usual = read_adapter(honest, base)
    edit_config(honest, **said)
    adapter = read_adapter(honest, base)
    assert adapter.settings == usual.settings
    assert all(torch.equal(adapter.change[name][1], b) for name, (_, b) in usual.change.items())


def test_thousands_of_quick_expressions_have_one_limit_of_seconds(honest, base, monkeypatch):
    monkeypatch.setattr(adapter_settings, "MAX_SECONDS", 0.1)
    edit_config(honest, rank_pattern=dict.fromkeys(map(str, range(5_000)), 16))
    with pytest.raises(Refused, match="not a regular expression that can be read"):
        read_adapter(honest, base)


CONFIG_ENTRIES = st.dictionaries(
    st.sampled_from(["r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform", "rank_pattern",
                     "alpha_pattern", "use_rslora", "init_lora_weights", "base_model_name_or_path", "auto_mapping", "bias"]),
    st.recursive(
        st.none() | st.booleans() | st.integers(-1, 2**70) | st.floats() | st.sampled_from(["q_proj", ".*", "(", EVERY[0]]) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["q_proj", "[a-z_]+", "*", "x"]), inner, max_size=2),
        max_leaves=4,
    ),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(changes=CONFIG_ENTRIES)
def test_any_config_is_read_or_refused_in_one_line(changes):
    sound = {"r": 16, "lora_alpha": 32, "target_modules": ATTENTION}
    with TemporaryDirectory() as folder:
        (Path(folder) / "adapter_config.json").write_text(json.dumps(sound | changes))
        try:
            found = read_settings(Path(folder), choose_base("embedded"))
        except Refused as problem:
            assert str(problem).isprintable() and len(str(problem)) < 1_000
        else:
            assert 1 <= found.r <= 1024 and math.isfinite(found.lora_alpha) and set(found.targets) <= set(LINEAR)


def test_no_folder_at_all_is_refused_and_those_that_are_there_are_named(tmp_path, base):
    with pytest.raises(Refused, match="no run folder 'nothing': it was not submitted"):
        read_adapter(tmp_path / "nothing", base)
    (tmp_path / "try-2").mkdir()
    with pytest.raises(Refused, match=r"no run folder 'nothing' \(found: try-2\): it was not submitted"):
        read_adapter(tmp_path / "nothing", base)


def test_a_half_precision_adapter_is_read(honest, base):
    edit_weights(honest, lambda w: w.update({k: v.half() for k, v in w.items()}))
    adapter = read_adapter(honest, base)
    assert adapter.dtype == torch.float16
    assert adapter.file_bytes == adapter_shape(base.source, 16, tuple(ATTENTION)).file_bytes(torch.float16)


def test_what_is_too_large_is_refused_before_its_weights_are_read(honest, base, monkeypatch):
    edit_weights(honest, lambda w: w.update(extra=torch.zeros(10)))
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: pytest.fail("a weight was read"))
    with pytest.raises(Refused, match="extra is not part of it"):
        read_adapter(honest, base)


def test_an_adapter_that_was_never_trained_can_still_be_judged(honest, base):
    edit_weights(honest, lambda w: [w[n].zero_() for n in w if "lora_B" in n])
    assert read_adapter(honest, base).largest_b == 0


def test_a_copy_is_known_whose_halves_were_scaled_against_each_other(honest, base):
    original = read_adapter(honest, base).change
    edit_weights(honest, lambda w: [w[n].mul_(1e4 if "lora_A" in n else 1e-4) for n in w])
    assert likeness(original, read_adapter(honest, base).change) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("entry", [2.0**40, 3e38])
def test_entries_that_no_training_leaves_are_refused(honest, base, entry):
    """In pairs of columns that cancel they do nothing, and every computation with them is off."""

    def cancel(w):
        for name in w:
            if "lora_B" in name:
                w[name][:, 0], w[name][:, 1] = entry, -entry

    edit_weights(honest, cancel)
    with pytest.raises(Refused, match=r"lora_B.weight has an entry of .*, far beyond any training run of this course"):
        read_adapter(honest, base)


def test_the_largest_entries_that_are_read_can_be_computed_with(honest, base):
    edit_config(honest, lora_alpha=65536)
    edit_weights(honest, lambda w: [w[n].copy_(2.0**16 * w[n].sign()) for n in w])
    change = read_adapter(honest, base).change
    assert likeness(change, change) == pytest.approx(1)


def test_an_honest_adapter_as_wide_as_the_base_is_read(trained, base):
    """Where the rank is the matrices' own, the weakest direction is far weaker than at any rank that is asked for."""
    wide = trained("wide", adapter={"rank": 256, "targets": list(LINEAR)}, epochs=1)
    assert read_adapter(wide, base).settings.r == 256
