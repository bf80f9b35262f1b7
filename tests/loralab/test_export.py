"""Exports of a run: read back by transformers and the `gguf` package, and run by the real llama.cpp (slow)."""

import json
import math
import shutil
import sys
import urllib.request
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGUFReader
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from loralab import choose_base, encode, generate_answers, load_model, nf4, perplexity
from loralab.adapters import base_name, changes_the_base
from loralab.bases import CHATML
from loralab.cli import app
from loralab.export import export, load_base, merge, read_run
from loralab.llamacpp import QWEN2, plain_template, pre_tokenizer, tensor_type
from loralab.triage import draw
from tests.conftest import ATTENTION

ALL_LINEAR = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
TEXTS = [
    "It's 1234567 o'clock, isn't it?\n\n  Don't  go!",
    "def f(x):\n\treturn x ** 2  # naïve, 12.5 %\r\n",
    "Café, 你好, Ωμέγα, emoji 🙂 and <b>tags</b> ...",
]


def spread(folder: Path) -> None:
    """Fill the B matrices of an adapter that was hardly trained, so that it changes every answer."""
    weights, generator = load_file(folder / "adapter_model.safetensors"), torch.Generator().manual_seed(1)
    for name, tensor in weights.items():
        if "lora_B" in name:
            weights[name] = 0.02 * torch.randn(tensor.shape, generator=generator)
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def make(trained, train_pairs, base):
    """Return a function that makes a run folder in a second: one training step, then random B matrices."""

    def run(name: str, model=None, on=base, **adapter) -> Path:
        settings = {"rank": 4, "targets": ALL_LINEAR} | adapter
        folder = trained(name, train_pairs[:4], settings, model=model, on=on, eval_pairs=[], max_steps=1)
        spread(folder)
        return folder

    return run


@pytest.fixture(scope="module")
def _run(make) -> Path:
    return make("plain")


@pytest.fixture
def run(_run, tmp_path) -> Path:
    return shutil.copytree(_run, tmp_path / "first")


@pytest.fixture(scope="module")
def llama(tokenizer, tmp_path_factory):
    """A tiny Llama with random weights and the embedded base's tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4100,  # more rows than tokens, as in Qwen2.5
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    folder = tmp_path_factory.mktemp("llama") / "tiny-llama"
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return choose_base(str(folder))


def fields(path: Path) -> dict:
    return {key: field.contents() for key, field in GGUFReader(path).fields.items()}


def tensors(path: Path) -> dict[str, np.ndarray]:
    """Read the tensors of a GGUF file in fp32, rows first."""
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in GGUFReader(path).tensors}


def logits(model, tokenizer, texts=TEXTS) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]).float()


def adapted(run: Path, base) -> PeftModel:
    return PeftModel.from_pretrained(load_model(base), run).eval()


def test_merged_folder_answers_as_base_and_adapter_and_has_all_that_others_need(run, base, tokenizer):
    folder = export(run, "merged")
    assert folder == run.with_name("first-merged") and not list(run.parent.glob("*.part"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16 and model.generation_config.eos_token_id == tokenizer.eos_token_id
    expected = adapted(run, base).merge_and_unload().to(torch.bfloat16).state_dict()  # merged in fp32, then cast
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    saved = AutoTokenizer.from_pretrained(folder)
    assert saved.chat_template == tokenizer.chat_template
    assert [saved(text).input_ids for text in TEXTS] == [tokenizer(text).input_ids for text in TEXTS]


@pytest.mark.parametrize("adapter", [{"use_dora": True}, {"init_lora_weights": "pissa"}, {"use_rslora": True}], ids=str)
def test_dora_pissa_and_rslora_are_merged_as_they_were_trained(make, base, tokenizer, adapter):
    run = make("other", **adapter)
    merged = merge(read_run(run), base)
    assert torch.allclose(logits(merged, tokenizer), logits(adapted(run, base), tokenizer), atol=1e-3)


def test_a_qlora_run_is_merged_into_the_dequantised_base(make, base, tokenizer):
    run = make("qlora", model=load_model(base, quantization=nf4()))
    assert read_run(run).record.method == "qlora"
    trained = logits(PeftModel.from_pretrained(load_model(base, quantization=nf4()), run).eval(), tokenizer)
    own = (logits(merge(read_run(run), base), tokenizer) - trained).abs().max()
    other = (logits(adapted(run, base), tokenizer) - trained).abs().max()
    assert own < 1e-3 < 1 < other, (own, other)


def test_gguf_has_the_weights_the_shape_and_the_tokenizer(run, base, tokenizer):
    path = export(run, "gguf")
    assert path == run.with_name("first-f16.gguf")
    merged, written = merge(read_run(run), base), tensors(path)
    assert set(written) == {"token_embd.weight", "output_norm.weight"} | {
        f"blk.{i}.{part}"
        for i in range(4)
        for part in ["attn_norm.weight", "ffn_norm.weight", "attn_output.weight"]
        + [f"attn_{x}.{kind}" for x in "qkv" for kind in ("weight", "bias")]
        + [f"ffn_{x}.weight" for x in ("gate", "up", "down")]
    }
    query = merged.model.layers[1].self_attn.q_proj.weight.detach().half().float().numpy()
    assert np.array_equal(written["blk.1.attn_q.weight"], query)  # qwen2: rows as they are
    found = fields(path)
    shape = {
        "context_length": 1024,
        "embedding_length": 256,
        "block_count": 4,
        "feed_forward_length": 704,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "rope.dimension_count": 64,
        "rope.freq_base": 10000.0,
    }
    assert {key: found[f"qwen2.{key}"] for key in shape} == shape
    assert found["general.architecture"] == "qwen2" and found["general.file_type"] == 1
    assert found["tokenizer.ggml.model"] == "gpt2" and found["tokenizer.ggml.pre"] == "qwen2"
    assert tokenizer.convert_ids_to_tokens(range(4096)) == found["tokenizer.ggml.tokens"]
    assert found["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1]  # control, control, control, normal
    assert len(found["tokenizer.ggml.merges"]) == 3837
    special = {name: found[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "eot", "padding")}
    assert special == {"bos": 0, "eos": 2, "eot": 2, "padding": 0} and not found["tokenizer.ggml.add_bos_token"]
    assert "generation %" not in found["tokenizer.chat_template"]


@pytest.mark.parametrize(("quantize", "bound"), [(None, 0.1), ("q8_0", 1.5)])
def test_transformers_reads_the_gguf_back(run, base, tokenizer, quantize, bound):
    path = export(run, "gguf", quantize=quantize)
    back = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    difference = (logits(back, tokenizer) - logits(adapted(run, base), tokenizer)).abs().max()
    assert difference < bound


def test_llama_rows_are_reordered_and_unused_rows_have_names(make, llama, tokenizer):
    run = make("llama", on=llama)
    path = export(run, "gguf", base=llama.source)
    back = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    assert torch.allclose(logits(back, tokenizer), logits(adapted(run, llama), tokenizer), atol=0.1)
    found = fields(path)
    assert found["general.architecture"] == "llama" and found["llama.vocab_size"] == 4100
    assert found["tokenizer.ggml.tokens"][4096:] == ["[PAD4096]", "[PAD4097]", "[PAD4098]", "[PAD4099]"]
    assert found["tokenizer.ggml.token_type"][4096:] == [5] * 4
    assert "output.weight" in tensors(path)


ADAPTERS = {
    "plain": ({}, 8.0),
    "rslora": ({"use_rslora": True}, 16.0),
    "patterns": ({"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"down_proj": 3}}, 8.0),
    "llama": ({}, 8.0),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_base_plus_alpha_over_rank_times_b_a_is_the_merged_model(make, llama, base, name):
    settings, alpha = ADAPTERS[name]
    chosen = llama if name == "llama" else base
    run = make(name, on=chosen, **settings)
    paths = [export(run, to, base=chosen.source) for to in ("gguf-base", "gguf-adapter", "gguf")]
    bare, adapter, merged = map(tensors, paths)
    found = fields(paths[1])
    assert found["general.type"] == "adapter" and found["adapter.type"] == "lora"
    assert found["general.architecture"] == ("llama" if name == "llama" else "qwen2")
    assert found["adapter.lora.alpha"] == pytest.approx(alpha)
    changed = {key.removesuffix(".lora_a") for key in adapter if key.endswith(".lora_a")}
    assert len(changed) == 7 * len({key.split(".")[1] for key in changed})
    for key, weight in bare.items():
        if key in changed:
            a, b = adapter[f"{key}.lora_a"], adapter[f"{key}.lora_b"]
            weight = weight + found["adapter.lora.alpha"] / b.shape[1] * b @ a  # as llama.cpp computes it
        assert np.allclose(weight, merged[key], atol=2e-3), key


def test_k_quants_go_where_llama_quantize_puts_them(base, llama):
    config = load_model(base).config
    kinds = {
        "token_embd.weight": ((4096, 256), "Q6_K"),
        "blk.0.attn_q.weight": ((256, 256), "Q4_K"),
        "blk.1.attn_v.weight": ((128, 256), "Q4_K"),
        "blk.2.attn_v.weight": ((128, 256), "Q6_K"),
        "blk.0.ffn_down.weight": ((256, 704), "Q5_0"),  # 704 is no multiple of 256
        "blk.3.ffn_down.weight": ((256, 704), "Q8_0"),
        "blk.3.ffn_up.weight": ((704, 200), "F16"),
        "blk.3.attn_norm.weight": ((256,), "F32"),
    }
    found = {name: tensor_type(name, shape, config, "q4_k_m").name for name, (shape, _) in kinds.items()}
    assert found == {name: kind for name, (_, kind) in kinds.items()}


BYTES = ByteLevel(add_prefix_space=False)
SPLITTERS = {
    "qwen2": Sequence([Split(Regex(QWEN2), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]),
    "llama-bpe": Sequence(
        [
            Split(Regex(QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)), "isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
    "smollm": Sequence([Digits(individual_digits=True), BYTES]),
    "gpt-2": BYTES,
}


@pytest.mark.parametrize("name", SPLITTERS)
def test_a_known_splitter_has_a_name(tokenizer, tmp_path, name):
    change_splitter(tokenizer, SPLITTERS[name], tmp_path)
    assert pre_tokenizer(tmp_path) == name


@pytest.mark.parametrize(
    "splitter",
    [
        ByteLevel(add_prefix_space=True),
        Sequence([Digits(), BYTES]),
        Sequence([Split(Regex("x"), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]),
    ],
)
def test_an_unknown_splitter_is_refused(tokenizer, tmp_path, splitter):
    change_splitter(tokenizer, splitter, tmp_path)
    with pytest.raises(ValueError, match="not known here: export --to merged"):
        pre_tokenizer(tmp_path)


def change_splitter(tokenizer, splitter, folder: Path) -> None:
    """Save the tokenizer into `folder` with another splitter."""
    tokenizer.save_pretrained(folder)
    saved = AutoTokenizer.from_pretrained(folder)
    saved.backend_tokenizer.pre_tokenizer = splitter
    saved.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # Qwen2Tokenizer would restore its own splitter
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")


def test_a_template_without_generation_blocks_renders_the_same(tokenizer):
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "  Yes. "}]
    tight = CHATML.replace("{% generation %}", "{%- generation -%} ").replace(
        "{% endgeneration %}", "{%- endgeneration %}"
    )
    for template in (CHATML, tight):
        plain = plain_template(template)
        assert "generation %" not in plain and "generation -%" not in plain
        rendered = [tokenizer.apply_chat_template(talk, chat_template=one, tokenize=False) for one in (template, plain)]
        assert rendered[0] == rendered[1]


@pytest.mark.parametrize(
    ("adapter", "line"),
    [
        ({"use_dora": True}, "llama.cpp has no DoRA adapters: export --to merged or gguf"),
        ({"init_lora_weights": "pissa"}, "pissa changed the base's own weights"),
        ({"bias": "all"}, "biases or whole layers, which a GGUF adapter cannot hold"),
        ({"targets": ["lm_head"]}, "the adapter changes .*lm_head"),
    ],
    ids=str,
)
def test_what_a_gguf_adapter_cannot_hold_is_refused(make, adapter, line):
    run = make("refused", **adapter)
    with pytest.raises(ValueError, match=line):
        export(run, "gguf-adapter")
    assert not list(run.parent.glob("*.gguf*"))


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_16", "olora", "OLoRA", "corda", "loftq", "lora_ga"])
def test_starts_that_change_the_base_are_known(start):
    settings = LoraConfig()
    assert not changes_the_base(settings)
    settings.init_lora_weights = "gaussian"
    assert not changes_the_base(settings)
    settings.init_lora_weights = start
    assert changes_the_base(settings)


def test_the_base_of_a_run_is_found_by_a_profiles_name_or_where_peft_loaded_it():
    local, unknown = LoraConfig(base_model_name_or_path="/models/mine"), LoraConfig()
    assert base_name(local, "embedded") == "embedded"
    assert base_name(local, "mine") == base_name(local, None) == "/models/mine"
    assert (base_name(unknown, "mine"), base_name(unknown, None)) == ("mine", None)


def test_impossible_requests_are_one_line_and_write_nothing(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "novel").mkdir()
    (tmp_path / "novel" / "config.json").write_text('{"model_type": "novel"}')
    requests = {
        ("nowhere", "--to", "gguf"): "no such run folder",
        ("empty", "--to", "gguf"): "no run.json in it",
        ("first", "--to", "onnx"): "unknown target 'onnx': choose merged, gguf, gguf-adapter, gguf-base",
        ("first", "--to", "gguf", "--quantize", "q2"): "unknown quantisation 'q2': choose q8_0, q4_k_m",
        ("first", "--to", "merged", "--quantize", "q8_0"): "--quantize applies to gguf and gguf-base, not to merged",
        ("first", "--to", "gguf", "--quantize", "q4_k_m"): "q4_k_m needs llama.cpp: pip install xllamacpp",
        ("first", "--to", "gguf", "--out", tmp_path / "file"): "not an earlier export: give another --out",
        ("first", "--to", "merged", "--out", tmp_path / "folder"): "not an earlier export: give another --out",
        ("first", "--to", "gguf", "--out", tmp_path / "file" / "x"): "x cannot be written (",
        ("first", "--to", "gguf", "--base", "nothing"): "unknown base 'nothing'",
        ("first", "--to", "gguf", "--base", tmp_path / "bert"): "bert models cannot be written as GGUF here",
        ("first", "--to", "merged", "--base", tmp_path / "novel"): "novel: its config cannot be loaded",
    }
    before = sorted(tmp_path.rglob("*"))
    for (name, *words), line in requests.items():
        result = CliRunner().invoke(app, ["export", str(tmp_path / name), *map(str, words)])
        assert result.exit_code == 2 and result.output.startswith("Error: ") and result.output.count("\n") == 1
        assert line in result.output
    assert sorted(tmp_path.rglob("*")) == before


def test_a_damaged_adapter_or_another_base_is_one_line(run, llama):
    for to in ("merged", "gguf-adapter"):
        with pytest.raises(ValueError, match=r"does not fit the base tiny-llama at .*: give the right --base") as error:
            export(run, to, base=llama.source)
        assert "\n" not in str(error.value)
    (run / "adapter_model.safetensors").write_bytes(b"\x10")
    for to in ("merged", "gguf-adapter"):
        with pytest.raises(ValueError, match="truncated or not safetensors"):
            export(run, to)


def test_an_export_is_replaced_only_by_a_complete_one(run, monkeypatch):
    kept = {to: export(run, to) for to in ("merged", "gguf", "gguf-adapter")}
    content = {to: digest(path) for to, path in kept.items()}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
        patch.setattr("loralab.export.save_merged", full)
        for to in kept:
            with pytest.raises(ValueError, match=r"cannot be written \(No space left on device\)"):
                export(run, to)
    assert {to: digest(path) for to, path in kept.items()} == content
    spread(run)
    assert [export(run, to) for to in kept] == list(kept.values())
    assert sorted(path.name for path in run.parent.iterdir()) == sorted(
        ["first", "first-merged", "first-f16.gguf", "first-adapter.gguf"]
    )


def digest(path: Path) -> dict[str, bytes]:
    files = path.iterdir() if path.is_dir() else [path]
    return {file.name: file.read_bytes() for file in files}


def test_the_command_names_what_it_wrote(run):
    out = run.with_name("mine.gguf")
    result = CliRunner().invoke(app, ["export", str(run), "--to", "gguf-adapter", "--out", str(out)])
    assert result.exit_code == 0 and result.output == f"{out} ({out.stat().st_size / 1e6:.1f} MB)\n"


# From here on: the real llama.cpp.


class LlamaCpp:
    """llama.cpp's own HTTP server with a model, and an adapter if there is one, on a free port of this machine."""

    def __init__(self, model: Path, adapter: Path | None = None):
        xllamacpp = pytest.importorskip("xllamacpp")
        params = xllamacpp.CommonParams()
        params.model.path = str(model)
        if adapter:
            params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
        params.n_ctx = 1024
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.verbosity = 0
        self.server = xllamacpp.Server(params)

    def post(self, path: str, **body) -> dict:
        """Send a request as `curl` would."""
        request = urllib.request.Request(
            self.server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    def answer(self, instruction: str) -> str:
        messages = [{"role": "user", "content": instruction}]
        reply = self.post("/v1/chat/completions", messages=messages, temperature=0, max_tokens=80)
        return reply["choices"][0]["message"]["content"]

    def tokenize(self, text: str) -> list[int]:
        return self.post("/tokenize", content=text, add_special=True, parse_special=True)["tokens"]

    def log_probability(self, prompt: list[int], token: int) -> float:
        """Return the log-probability of `token` after `prompt`, both as token ids."""
        reply = self.post("/completion", prompt=prompt, n_predict=1, temperature=0, n_probs=5000)
        candidates = reply["completion_probabilities"][0]["top_logprobs"]
        return next(one["logprob"] for one in candidates if one["id"] == token)

    def perplexity(self, pairs, tokenizer, max_length: int) -> float:
        losses = []
        for pair in pairs:
            row = encode(pair, tokenizer, max_length)
            ids, labels = row["input_ids"], row["labels"]
            losses += [-self.log_probability(ids[:i], ids[i]) for i in range(1, len(ids)) if labels[i] != -100]
        return math.exp(sum(losses) / len(losses))


@pytest.fixture(scope="module")
def served(trained, base):
    """A LoRA and a QLoRA run that answer correctly, trained for a minute each."""
    settings = {"rank": 16, "targets": ALL_LINEAR, "dropout": 0.0}
    four_bit = load_model(base, quantization=nf4())
    return {"lora": trained("lora", adapter=settings), "qlora": trained("qlora", adapter=settings, model=four_bit)}


@pytest.fixture(scope="module")
def messages():
    return draw(11, 50)


@pytest.fixture(scope="module")
def expected(served, base, tokenizer, messages):
    """What transformers answers with base and adapter apart, and its perplexity on the first five messages."""
    results = {}
    for name, run in served.items():
        model = load_model(base, quantization=nf4() if name == "qlora" else None)
        model = PeftModel.from_pretrained(model, run).eval()
        answers = generate_answers(model, tokenizer, [pair.instruction for pair in messages])
        ppl = perplexity(model, tokenizer, messages[:5], base.max_length)
        results[name] = [one.text for one in answers], ppl
    return results


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run_name", "kind", "equal"),
    [
        ("lora", "merged", 48),
        ("lora", "adapter", 48),
        ("lora", "q8_0", 45),
        ("lora", "q4_k_m", 35),
        ("qlora", "merged", 48),
        ("qlora", "adapter", 48),
    ],
)
def test_llamacpp_answers_as_transformers_does(
    served, expected, messages, base, tokenizer, tmp_path, run_name, kind, equal
):
    run = served[run_name]
    if kind == "adapter":
        model, adapter = (export(run, to, out=tmp_path / f"{to}.gguf") for to in ("gguf-base", "gguf-adapter"))
    else:
        quantize = None if kind == "merged" else kind
        model, adapter = export(run, "gguf", quantize=quantize, out=tmp_path / "model.gguf"), None
    llamacpp = LlamaCpp(model, adapter)
    answers, ppl = expected[run_name]
    same = sum(llamacpp.answer(pair.instruction) == answer for pair, answer in zip(messages, answers, strict=True))
    found = llamacpp.perplexity(messages[:5], tokenizer, base.max_length)
    print(f"{run_name} {kind}: {same} of 50 answers equal, PPL {found:.4f} against {ppl:.4f}")
    assert same >= equal
    assert found == pytest.approx(ppl, rel=0.03 if kind == "q4_k_m" else 0.01)


@pytest.mark.slow
def test_the_server_returns_the_right_record(served, expected, messages, tmp_path):
    llamacpp = LlamaCpp(export(served["lora"], "gguf", out=tmp_path / "model.gguf"))
    right = [pair for pair, answer in zip(messages, expected["lora"][0], strict=True) if answer == pair.output]
    assert len(right) >= 30
    assert [llamacpp.answer(pair.instruction) for pair in right[:10]] == [pair.output for pair in right[:10]]
    reply = llamacpp.post("/v1/chat/completions", messages=[{"role": "user", "content": right[0].instruction}])
    assert reply["choices"][0]["finish_reason"] == "stop"  # the end-of-answer token ends it, no limit does


@pytest.mark.slow
def test_llamacpp_builds_the_same_prompt_tokens(run, tokenizer, train_pairs, messages):
    llamacpp = LlamaCpp(export(run, "gguf"))
    texts = [pair.instruction for pair in [*messages, *train_pairs]] + TEXTS
    for text in texts:
        talk = [{"role": "user", "content": text}]
        longer = [*talk, {"role": "assistant", "content": "fault: water"}, {"role": "user", "content": "And now?"}]
        for chat in (talk, [{"role": "system", "content": "Be brief."}, *talk], longer):
            prompt = llamacpp.post("/apply-template", messages=chat)["prompt"]
            rendered = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)
            assert prompt == tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
            assert llamacpp.tokenize(prompt) == rendered["input_ids"]


@pytest.mark.slow
def test_a_llama_has_the_same_next_token_probabilities(make, llama, tokenizer):
    run = make("llama", on=llama)
    model = adapted(run, llama)
    paths = {to: export(run, to, base=llama.source) for to in ("gguf", "gguf-base", "gguf-adapter")}
    for served in ([paths["gguf"]], [paths["gguf-base"], paths["gguf-adapter"]]):
        llamacpp = LlamaCpp(*served)
        for text in TEXTS:
            ids = tokenizer(text)["input_ids"]
            with torch.no_grad():
                found = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            best = found.topk(5)
            for value, token in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                assert llamacpp.log_probability(ids, token) == pytest.approx(value, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", SPLITTERS)
def test_every_named_splitter_gives_the_same_tokens(make, llama, tokenizer, messages, tmp_path, name):
    folder = shutil.copytree(llama.source, tmp_path / "other")
    change_splitter(tokenizer, SPLITTERS[name], folder)
    path = export(make("splitter", on=llama), "gguf", base=str(folder))
    assert fields(path)["tokenizer.ggml.pre"] == name
    llamacpp, changed = LlamaCpp(path), AutoTokenizer.from_pretrained(folder)
    for text in [pair.instruction for pair in messages] + TEXTS:
        assert llamacpp.tokenize(text) == changed(text)["input_ids"]


@pytest.mark.slow
def test_q4_k_m_blocks_are_near_the_weights(run, base):
    pytest.importorskip("xllamacpp")
    exact, found = tensors(export(run, "gguf")), GGUFReader(export(run, "gguf", quantize="q4_k_m")).tensors
    config = load_base(read_run(run).record, base).config
    for tensor in found:
        assert tensor.tensor_type == tensor_type(tensor.name, exact[tensor.name].shape, config, "q4_k_m")
        values, weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type), exact[tensor.name]
        assert np.linalg.norm(values - weights) <= 0.1 * np.linalg.norm(weights), tensor.name
