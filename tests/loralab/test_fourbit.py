import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BitsAndBytesConfig

from loralab import choose_base, keep_unpacked, load_model, nf4, parameter_counts, perplexity, read_pairs, train
from loralab.data import data_path
from loralab.pairs import encode
from tests.conftest import ATTENTION


@pytest.fixture
def adapted(base):
    model = load_model(base, quantization=nf4())
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=ATTENTION, init_lora_weights=False))
    return model.train()


def gradients(model, tokenizer):
    pair = read_pairs(data_path("pairs/train.jsonl"))[0]
    batch = {name: torch.tensor([row]) for name, row in encode(pair, tokenizer).items()}
    model.zero_grad()
    model(**batch).loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def test_gradients_are_the_same_before_and_after_a_forward_in_eval_mode(adapted, tokenizer):
    before = gradients(adapted, tokenizer)
    perplexity(adapted, tokenizer, read_pairs(data_path("pairs/eval.jsonl"))[:2])
    after = gradients(adapted, tokenizer)
    assert before.norm() > 0
    assert torch.equal(before, after)


def test_without_the_workaround_the_repacked_weights_break_training(adapted, tokenizer):
    """The bug is still there; when this test fails, `keep_unpacked` can go."""
    from bitsandbytes.functional import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("this CPU has no AVX512-BF16, so bitsandbytes repacks nothing")
    before = gradients(adapted, tokenizer)
    for module in adapted.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = True
    adapted.eval()
    with torch.no_grad():
        adapted(input_ids=torch.tensor([[5, 6, 7]]))
    adapted.train()
    keep_unpacked(adapted)  # too late: packed weights stay packed
    try:
        after = gradients(adapted, tokenizer)
    except RuntimeError:
        return
    assert (after - before).norm() > 0.05 * before.norm()


@pytest.mark.parametrize("quantization", [None, nf4()], ids=["as it is", "in 4 bits"])
def test_a_base_that_was_saved_quantised_is_loaded_as_it_was_saved(quantization, base, tokenizer, tmp_path):
    quantised = load_model(base, quantization=BitsAndBytesConfig(load_in_4bit=True))
    quantised.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    again = load_model(choose_base(str(tmp_path / "base")), quantization=quantization)
    tokens = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(again(input_ids=tokens).logits, quantised(input_ids=tokens).logits)


def test_four_bits_hold_the_blocks_and_nothing_else(base):
    model = load_model(base, quantization=nf4())
    assert parameter_counts(model)[1] == 4_002_048
    assert model.get_input_embeddings().weight.dtype == torch.float32
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8


def test_a_run_on_four_bits_is_recorded_as_qlora(adapted, tokenizer, base, tmp_path):
    pairs = read_pairs(data_path("pairs/train.jsonl"))[:4]
    record = train(adapted, tokenizer, pairs, tmp_path / "q", base, epochs=1, quiet=True, warmup_steps=0)
    assert record.method == "qlora"
