"""An untrained model is measured once, and only where its answers are certain to be the same."""

import pytest
import torch

from loralab import evaluation, load_model, nf4, train
from loralab.evaluation import fingerprint
from tests.conftest import with_adapter


def grown(model):
    """A first step of training: one element of one B leaves zero."""
    torch.nn.init.constant_(next(p for name, p in model.named_parameters() if "lora_B" in name), 1e-6)
    return model


@pytest.fixture(scope="module")
def of_base(base):
    return fingerprint(load_model(base))


@pytest.mark.parametrize("adapter", [{}, {"rank": 4}, {"targets": ["up_proj"]}, {"use_rslora": True}], ids=str)
def test_an_untrained_adapter_changes_nothing(adapter, base, of_base):
    assert fingerprint(with_adapter(load_model(base), **adapter)) == of_base


@pytest.mark.parametrize(
    "change",
    [
        lambda base: grown(with_adapter(load_model(base))),
        lambda base: with_adapter(load_model(base), init_lora_weights=False),
        lambda base: with_adapter(load_model(base), init_lora_weights="pissa"),
        lambda base: with_adapter(load_model(base), modules_to_save=["lm_head"]),
        lambda base: load_model(base, quantization=nf4()),
        lambda base: load_model(base).half(),
    ],
    ids=["trained", "random", "pissa", "a whole layer", "4 bits", "16 bits"],
)
def test_whatever_may_answer_otherwise_is_told_apart(change, base, of_base):
    assert fingerprint(change(base)) != of_base


def test_a_trained_adapter_counts_with_its_alpha(base):
    trained = [grown(with_adapter(load_model(base), alpha=alpha)) for alpha in (32, 32, 16)]
    assert len({fingerprint(model) for model in trained}) == 2
    on_embeddings = {"targets": ["embed_tokens"], "init_lora_weights": False}
    other = [with_adapter(load_model(base), alpha=alpha, **on_embeddings) for alpha in (32, 16)]
    assert fingerprint(other[0]) != fingerprint(other[1])


def test_a_changed_weight_or_setting_is_told_apart(base, of_base):
    model = load_model(base)
    model.config.rope_parameters["rope_theta"] = 5000.0
    assert fingerprint(model) != of_base
    model = load_model(base)
    model.model.norm.weight.data[0] += 0.01
    assert fingerprint(model) != of_base


def test_a_base_is_measured_once_for_the_same_pairs(base, tokenizer, train_pairs, eval_pairs, tmp_path, monkeypatch):
    measured = []
    whole = evaluation.held_out

    def counting(model, tokenizer, pairs, *rest):
        measured.append(len(pairs))
        return whole(model, tokenizer, pairs, *rest)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "held_out", counting)
    monkeypatch.setattr(evaluation, "_before", {})

    def run(rank, pairs):
        model = with_adapter(load_model(base), rank)
        asked = {"eval_pairs": pairs, "eval_answers": 2}
        return train(model, tokenizer, train_pairs[:4], tmp_path / "run", base, epochs=1, quiet=True, **asked)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(evaluation, "score_answers", interrupted)
        run(4, eval_pairs[:5])
    measured.clear()
    first, second = run(4, eval_pairs[:5]), run(8, eval_pairs[:5])
    assert measured == [5, 5, 5]  # before, after, after
    assert (first.ppl_before, first.scores_before) == (second.ppl_before, second.scores_before)
    other = run(4, eval_pairs[5:11])
    assert measured[3:] == [6, 6]
    assert other.ppl_before != first.ppl_before
