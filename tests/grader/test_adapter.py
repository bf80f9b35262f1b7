"""Reading an untrusted adapter, and the exact shapes it is compared with."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from grader.errors import Refused
from grader.evaluation.adapter import read_adapter
from grader.evaluation.delta_w import likeness
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
        (lambda f: edit_config(f, target_modules=".*"), "adapter_config.json: target_modules"),
        (lambda f: edit_config(f, target_modules=["lm_head"]), "only q_proj, k_proj"),
        (lambda f: edit_config(f, target_modules=["x" * 5_000] * 7), "x{40} ... .{1,600}only q_proj"),
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


def test_no_folder_at_all_is_refused(tmp_path, base):
    with pytest.raises(Refused, match="no run folder 'nothing': it was not handed in"):
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
    with pytest.raises(Refused, match=r"lora_B.weight has an entry of .*, and no training of the course comes near"):
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
