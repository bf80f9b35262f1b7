"""Will it fit: exact counts for every family, the verdict, the changes, and one line for what is impossible."""

import json

import pytest
import torch
from matplotlib import pyplot as plt
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PhiConfig,
    Qwen3Config,
    T5Config,
)
from typer.testing import CliRunner

from loralab import fit as module
from loralab.cli import app
from loralab.errors import LoralabError
from loralab.fit import OVERHEAD, Fit, fit, known_models, picture
from loralab.gpus import GPUS, find_gpu, smallest_gpu
from loralab.shapes import ATTENTION, LINEAR, modules
from tests.conftest import CONFIGS

# The sizes of published models, and how many parameters these have.
PUBLISHED = {
    "Qwen3-0.6B": (
        Qwen3Config(
            vocab_size=151936,
            hidden_size=1024,
            intermediate_size=3072,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            tie_word_embeddings=True,
        ),
        596_049_920,
    ),
    "Llama-3.1-8B": (
        LlamaConfig(
            vocab_size=128256,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
        ),
        8_030_261_248,
    ),
    "Mistral-7B": (MistralConfig(), 7_241_732_096),
    "Gemma-2B": (
        GemmaConfig(
            vocab_size=256000,
            hidden_size=2048,
            intermediate_size=16384,
            num_hidden_layers=18,
            num_attention_heads=8,
            num_key_value_heads=1,
            head_dim=256,
        ),
        2_506_172_416,
    ),
    "Gemma-2-2B": (
        Gemma2Config(
            vocab_size=256000,
            hidden_size=2304,
            intermediate_size=9216,
            num_hidden_layers=26,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=256,
        ),
        2_614_341_888,
    ),
    "Gemma-3-1B": (
        Gemma3TextConfig(
            vocab_size=262144,
            hidden_size=1152,
            intermediate_size=6912,
            num_hidden_layers=26,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=256,
        ),
        999_885_952,
    ),
    "Phi-2": (
        PhiConfig(
            vocab_size=51200,
            hidden_size=2560,
            intermediate_size=10240,
            num_hidden_layers=32,
            num_attention_heads=32,
            partial_rotary_factor=0.4,
        ),
        2_779_683_840,
    ),
    "Phi-3-mini": (Phi3Config(), 3_821_079_552),
    "GPT-2": (GPT2Config(), 124_439_808),
}
HUB = {
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-2-7b-chat-hf": 6_738_415_616,
}
HEAVY = {"method": "qlora", "batch": 4, "checkpointing": False}


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    return lambda *words: CliRunner().invoke(app, ["fit", *map(str, words)])


def by_peft(config, rank):
    """peft's own (trainable, all) for every linear layer, and the same by r * (d_in + d_out)."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        model = get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM"))
    factors = [p for name, p in model.named_parameters() if "lora_" in name]
    assert {rank} == {min(p.shape) for p in factors}
    return model.get_nb_trainable_parameters(), sum(p.numel() for p in factors)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_agree_with_peft_in_every_family(name, tmp_path):
    config, parameters = PUBLISHED[name]
    config.save_pretrained(tmp_path)
    found = fit(str(tmp_path), "qlora", rank=8, length=64)
    counted, factors = by_peft(config, 8)
    assert (found.trainable, found.parameters) == counted == (factors, parameters + factors)
    assert found.memory.adapter == 4 * factors
    assert found.memory.activations > 0 and found.memory.logits >= 0


@pytest.mark.parametrize("name", HUB)
def test_the_courses_models_are_known_by_their_hub_ids_without_a_network(name):
    found = fit(name, "full", length=64)
    assert found.trainable == found.parameters == HUB[name]


def test_a_name_of_a_config_a_profile_and_a_folder_are_the_same_model():
    names = (str(CONFIGS / "smollm2-135m"), "smollm2-135m", "HuggingFaceTB/SmolLM2-135M")
    folder, named, on_the_hub = (fit(name).memory for name in names)
    assert folder == named == on_the_hub
    assert fit("embedded", length=128).parameters < 10_000_000
    assert {"embedded", "smollm2-135m", "qwen2.5-7b"} <= set(known_models())


# GB, traced independently with torch's memory tracker, for r = 16 on q, k, v, o.
@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"method": "lora", "batch": 1}, 1.97),
        ({"method": "lora", "batch": 4, "checkpointing": False}, 7.99),
        ({"method": "qlora", "batch": 1}, 1.45),
        ({"method": "qlora", "batch": 4}, 4.32),
        ({"method": "qlora", "batch": 4, "upcast": True}, 4.59),
        ({"method": "qlora", "batch": 4, "checkpointing": False, "upcast": True}, 7.74),
    ],
)
def test_the_total_agrees_with_an_independent_trace(settings, wanted):
    found = fit("qwen2.5-0.5b", rank=16, targets="qkvo", length=512, **settings)
    assert found.memory.total / 1e9 == pytest.approx(wanted, rel=0.04)


@pytest.mark.parametrize(
    ("words", "layers"),
    [
        ("qv", ("q_proj", "v_proj")),
        ("q,v", ("q_proj", "v_proj")),
        ("q,k,v,o", ATTENTION),
        ("q_proj, v_proj,q", ("q_proj", "v_proj")),
        ("qkvo,mlp", LINEAR),
        ("all", ("all-linear",)),
        ("c_attn,c_fc", ("c_attn", "c_fc")),
    ],
)
def test_targets_are_the_words_of_a_sweep_and_names_of_layers(words, layers):
    assert modules(words) == layers


def test_what_is_left_of_the_gpu_decides():
    gpu = find_gpu("t4")
    least, most = OVERHEAD
    assert gpu.bytes == int(14.75 * 2**30)
    assert gpu.holds(gpu.bytes - most) == "fits"
    assert gpu.holds(gpu.bytes - most + 1) == gpu.holds(gpu.bytes - least) == "tight"
    assert gpu.holds(gpu.bytes - least + 1) == "does not fit"


def test_gpus_are_in_order_and_say_how_they_are_known():
    assert list(GPUS) == sorted(GPUS, key=lambda gpu: gpu.gib)
    assert all(gpu.known.startswith(("reported", "assumed")) for gpu in GPUS)
    assert [find_gpu(gpu.name) for gpu in GPUS] == list(GPUS)
    assert smallest_gpu(10e9).name == "rtx3060-12"
    assert smallest_gpu(1e12) is None


def test_what_chapter_3_says_of_a_t4():
    assert fit("qwen2.5-7b", "qlora").verdict == "fits"
    assert fit("qwen2.5-7b", "lora").verdict == "does not fit"
    assert fit("llama-2-13b", "qlora", targets="qkvo").verdict == "fits"
    assert fit("qwen2.5-14b", "qlora", targets="qkvo").verdict == "fits"
    assert fit("qwen2.5-14b", "qlora", targets="qkvo", upcast=True).verdict == "tight"


def again(found: Fit, change) -> Fit:
    return fit(found.model, gpu=found.gpu.gib, **vars(change.settings))


def test_changes_make_it_fit_and_come_in_the_order_of_what_they_cost():
    found = fit("qwen2.5-0.5b", gpu=6, **HEAVY)
    words = [change.words for change in found.changes]
    assert words == ["gradient checkpointing", "batch 1 with 4 steps of accumulation", "texts of 128 tokens"]
    for change in found.changes:
        repeated = again(found, change)
        assert (repeated.verdict, repeated.memory.total) == ("fits", change.total)


def test_changes_are_combined_only_where_none_is_enough_and_no_part_is_idle():
    found = fit("qwen2.5-0.5b", batch=4, checkpointing=False, gpu=3.5)
    (change,) = found.changes
    assert change.words == "gradient checkpointing + batch 1 with 4 steps of accumulation"
    assert again(found, change).verdict == "fits"
    for undone in ({"checkpointing": False}, {"batch": 2}):
        assert fit(found.model, gpu=3.5, **vars(change.settings) | undone).verdict != "fits"


def test_the_upcast_is_the_first_to_go():
    found = fit("qwen2.5-7b", "qlora", length=128, rank=8, targets="qv", upcast=True, gpu=9)
    assert [change.words for change in found.changes] == ["no up-cast to 32 bits"]
    assert "smallest GPU for that is rtx3060-12" in module._advice(found)[-1]


def test_what_fits_needs_no_change_and_what_never_will_says_so():
    assert fit("smollm2-135m").changes == ()
    never = fit("llama-2-13b", "qlora", gpu=6)
    assert never.changes == ()
    assert never.leanest.total < never.memory.total
    assert "Nothing makes it fit" in module._advice(never)[0]


def test_a_model_that_names_its_layers_otherwise_is_not_told_to_take_qv(tmp_path):
    GPT2Config().save_pretrained(tmp_path)
    found = fit(str(tmp_path), "full", gpu=0.1)
    assert "targets" not in found.leanest.words
    assert "qlora instead of full" in found.leanest.words


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "nobody/nothing"}, "nobody/nothing: neither the hub nor its cache"),
        ({"model": "not a name/at all"}, "not a name/at all: neither the hub nor its cache"),
        ({"model": "qwen9"}, "unknown base 'qwen9': .* by name there are embedded, llama-2-13b"),
        (
            {"gpu": "rtx4080"},
            r"unknown GPU 'rtx4080' \(similar: rtx4090.*\): give one of rtx3060-12, t4, .*24GB.*2x t4",
        ),
        ({"gpu": "t4,l4"}, "--gpu t4,l4: give one kind of GPU; several of a kind are written as 2x t4"),
        ({"gpu": "0x t4"}, "0 GPUs are impossible: give 1 to 1,024"),
        ({"gpu": "-1"}, "a GPU with -1 GiB is impossible"),
        ({"gpu": "nan"}, "a GPU with nan GiB is impossible"),
        ({"method": "prefix"}, "unknown method 'prefix': give one of lora, qlora, full"),
        ({"rank": 0}, "rank is 0; it must be at least 1"),
        ({"batch": -2}, "batch is -2"),
        ({"length": 9000}, "reads 8192 tokens at most"),
        ({"targets": "c_attn"}, "no layer c_attn; it has down_proj, gate_proj"),
        ({"targets": " , "}, "give q, k, v, o, qv, qkvo, mlp, all, or names of layers"),
        ({"upcast": True}, "lora has none"),
    ],
)
def test_what_is_unknown_or_impossible_is_one_clear_line(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        fit(**{"model": "smollm2-135m"} | settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "holds no config.json"),
        ("{", "its config.json cannot be used"),
        ('{"model_type": "novel"}', "its config.json cannot be used"),
        (T5Config(), "'t5' is no causal language model"),
        (MixtralConfig(), "a mixture of experts"),
    ],
)
def test_a_folder_that_is_no_model_is_one_clear_line(config, message, tmp_path, run):
    if isinstance(config, str):
        (tmp_path / "config.json").write_text(config)
    elif config:
        config.save_pretrained(tmp_path)
    result = run(tmp_path)
    assert result.exit_code == 2
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_the_words_of_another_family_are_refused_with_the_layers_there_are(tmp_path):
    GPT2Config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no layer k_proj, o_proj, q_proj, v_proj; it has c_attn, c_fc, c_proj"):
        fit(str(tmp_path), targets="qkvo")


def test_the_command_prints_the_parts_and_the_verdict(run):
    words = "Qwen/Qwen2.5-7B-Instruct --method qlora --rank 16 --targets all --batch 1 --length 512 --gpu t4"
    result = run(*words.split())
    assert result.exit_code == 0, result.output
    for part in (
        "40,370,176 of 7,655,986,688",
        "weights",
        "5.55",
        "logits",
        "total",
        "14.75 GiB",
        "15.84",
        "fits on t4",
    ):
        assert part in result.output


def test_the_command_ends_with_1_where_it_does_not_fit_and_says_what_would(run):
    result = run("qwen2.5-0.5b", "--method", "qlora", "--batch", 4, "--no-checkpointing", "--gpu", 6)
    assert result.exit_code == 1
    assert "does not fit on your GPU" in result.output
    assert "  gradient checkpointing: " in result.output
    assert "As asked, the smallest GPU for that is rtx3060-12." in result.output


def test_the_command_ends_with_2_on_bad_input_without_a_traceback(run):
    result = run("smollm2-135m", "--gpu", "t5")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: unknown GPU 't5'") and result.stderr.count("\n") == 1


def test_several_gpus_are_said_to_divide_only_what_sharding_divides(run):
    found = fit("qwen2.5-7b", gpu="2x t4")
    half = (found.memory.total - found.memory.activations - found.memory.logits) / 2
    assert found.verdict == fit("qwen2.5-7b", gpu="t4").verdict == "does not fit"
    assert found.sharded.total == pytest.approx(half + found.memory.activations + found.memory.logits)
    output = run("qwen2.5-7b", "--gpu", "2x t4").output
    assert "2 GPUs, data parallel: each holds the whole model" in output
    assert f"at least {found.sharded.total / 1e9:.1f} GB per GPU, which would fit" in output
    assert "data parallel" not in run("qwen2.5-7b", "--gpu", "l4").output


def test_an_adapter_on_a_tied_output_layer_has_its_true_count():
    found = fit("smollm2-135m", targets="lm_head", length=64)
    assert found.trainable == 16 * (576 + 49152)
    assert found.memory.adapter == 4 * found.trainable
    with pytest.raises(LoralabError, match="embed_tokens is an embedding: only linear layers get an adapter"):
        fit("smollm2-135m", targets="embed_tokens")


def test_the_command_speaks_json(run):
    found = json.loads(run("smollm2-135m", "--json").stdout)
    assert found["memory"]["total"] == fit("smollm2-135m").memory.total
    assert (found["verdict"], found["changes"], found["gpu"]["name"]) == ("fits", [], "t4")
    assert str(CONFIGS) not in json.dumps(found)


def test_the_picture_has_every_part_and_the_line_of_the_gpu():
    found = fit("smollm2-135m")
    axes = picture(found).axes[0]
    labels = axes.get_legend_handles_labels()[1]
    assert set(vars(found.memory)) <= set(labels) and "t4: 15.8 GB" in labels
    assert "fits" in axes.get_title()
    assert plt.get_fignums() == []


def test_the_widget_redraws_and_shows_an_error_as_text(monkeypatch):
    drawn, shown, controls = [], [], []

    class Handle:
        def update(self, image):
            shown.append(image)

    def display(thing, display_id=False):
        (shown if display_id else controls).append(thing)
        return Handle()

    to_png = module._png
    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(module, "_png", lambda figure: drawn.append(figure) or to_png(figure))
    module.widget(model="HuggingFaceTB/SmolLM2-135M", batch=4)
    by_name = {control.description: control for control in controls[0].children}
    assert "4 × 512 tokens" in drawn[-1].axes[0].get_title()
    by_name["method"].value = "qlora"
    assert "qlora" in drawn[-1].axes[0].get_title()
    by_name["model"].value = "embedded"
    by_name["length"].value = 4096
    assert "tokens at most" in drawn[-1].texts[0].get_text()
    assert len(shown) == len(drawn) == 4  # pictures, in every front end: a figure may be shown as its name
    assert all(image._repr_mimebundle_()[0]["image/png"] for image in shown)
    words = [image._repr_mimebundle_()[1]["image/png"]["alt"] for image in shown]
    assert "qlora" in words[1] and "weights" in words[1] and "tokens at most" in words[3]


def test_parts_that_need_no_trace_are_worked_out_from_the_models_sizes():
    """SmolLM2-135M by hand: 30 blocks, 576 wide, 192 in k and v, 1536 in the feed-forward layers."""
    linear = 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)
    factors = 30 * 16 * (2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536))
    nf4 = linear / 2 + linear / 64 + 4 * linear / (64 * 256)  # values, their scales, the scales' own
    found = fit("smollm2-135m", "qlora", length=64).memory
    assert found.weights == nf4 + 2 * (134_515_008 - linear)
    assert (found.adapter, found.gradients, found.optimizer) == (4 * factors, 4 * factors, 8 * factors)
