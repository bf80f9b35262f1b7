"""Training an adapter with `transformers.Trainer`, and leaving a run folder behind."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from .bases import Base
from .checkpoints import BestHere, Clock, StopOnInterrupt, checkpoint_to_resume
from .collate import AnswersAtTheEnd
from .errors import LoralabError
from .evaluation import measure_after, measure_before
from .fourbit import quantization_settings
from .hardware import Precision, precision_for, weights_cast_once
from .leaks import find_leaks
from .measure import (
    LanguageModel,
    adapter_bytes,
    loss_of,
    parameter_counts,
    peak_memory,
    reset_peak_memory,
)
from .memory import METHODS, estimate, verdict
from .pairs import IGNORED, Pair, digest, encode_all
from .reading import as_pairs
from .record import AdapterSettings, RunRecord

SHORT = 256  # tokens
# Two checkpoints: the best one, and the last one to resume from. With one, Trainer would delete the last.
KEEP_BEST: dict[str, Any] = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
}


def train(
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Iterable[Pair | Mapping[str, Any]],
    folder: str | Path,
    base: Base,
    *,
    eval_pairs: Iterable[Pair | Mapping[str, Any]] = (),
    eval_answers: int = 100,
    epochs: float | None = None,
    batch_size: int = 4,
    learning_rate: float | None = None,
    seed: int = 0,
    encoded: Sequence[dict[str, list[int]]] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    quiet: bool = False,
    keep_best: bool = False,
    **arguments: Any,
) -> RunRecord:
    """Train `model` in place on the answers of `pairs` and write the run folder.

    Pairs may also be rows in any format that `load_pairs` knows: dicts, or a `datasets.Dataset`.
    The folder gets `adapter_model.safetensors` and `adapter_config.json` (if the model is a PEFT model)
    and `run.json`, whose record is returned. `learning_rate` and `epochs` default to the base's own; `eval_pairs`, if
    given, are measured before and after: their perplexity, and the answers generated to the first `eval_answers` of
    them (0: none); a warning names those that are also in `pairs`. `encoded` replaces the usual encoding of `pairs` by
    your own; `callbacks` are called by the `Trainer`; `arguments` are further settings of
    `transformers.TrainingArguments`, which come before the course's own and before those of the call. The record tells
    what really ran; its batch is that of an optimiser step. On several GPUs one is used.

    With `keep_best` the loss on `eval_pairs` is measured after each epoch, and the model is left, and saved, as it was
    after the epoch with the lowest one; the record has the losses and that epoch. Checkpoints are written for it.

    With `resume_from_checkpoint` (True: the last one in `folder`, or the path of one) an interrupted training continues,
    given the same model and settings. Checkpoints are written if you set `save_strategy` or pass `StopOnInterrupt`.
    Raises `LoralabError` if there is nothing to train on or to choose an epoch by, no checkpoint to resume from, an
    adapter of another kind, one that would be trained in part only or saved in part only, or weights in fp16 to train.
    """
    if isinstance(model, PeftModel):
        _check_adapter(model)
        _check_saved(model, base)
    hardware = precision_for(model)
    halves = any(p.dtype == torch.float16 for p in model.parameters() if p.requires_grad)
    if halves and (hardware.autocast | arguments)["fp16"]:
        raise LoralabError(
            "weights in fp16 cannot be trained on this GPU, whose gradient scaler refuses them: load the base in fp32, with "
            "load_model(base, replace(precision(), dtype=torch.float32))"
        )
    folder, pairs, eval_pairs = Path(folder), as_pairs(pairs), as_pairs(eval_pairs)
    learning_rate = base.learning_rate if learning_rate is None else learning_rate
    epochs = base.epochs if epochs is None else epochs
    examples = list(encoded) if encoded is not None else encode_all(pairs, tokenizer, base.max_length)
    if not examples:
        raise LoralabError("no pairs to train on: give at least one")
    if keep_best and not eval_pairs:
        raise LoralabError("keep_best chooses an epoch by its loss on eval_pairs: give at least one")
    longest = max(len(example["input_ids"]) for example in examples)
    at_once = arguments.get("per_device_train_batch_size", batch_size)
    arguments = checkpointing_for(model, base, at_once, longest) | (KEEP_BEST if keep_best else {}) | arguments
    checkpoint = checkpoint_to_resume(
        arguments.pop("resume_from_checkpoint", None), arguments.get("output_dir", folder)
    )
    measured: dict[str, Any] = {
        "train_digest": digest(pairs if encoded is None else examples),
        "eval_digest": digest(eval_pairs) if eval_pairs else None,
        "eval_pairs": len(eval_pairs),
        "leaks": _leaks(pairs, eval_pairs),
    }
    evaluation = tokenizer, eval_pairs, eval_answers, base.max_length
    measured |= measure_before(model, *evaluation)
    trainer = _Trainer(
        model=model,
        args=training_arguments(folder, epochs, batch_size, learning_rate, seed, hardware, **arguments),
        tokenizer=tokenizer,
        examples=examples,
        evaluation=encode_all(eval_pairs, tokenizer, base.max_length) if keep_best else None,
        callbacks=[*callbacks, BestHere(), *([] if quiet else [_Bar()])],
    )
    trainer.remove_callback(PrinterCallback)
    measured |= _run(trainer, longest, checkpoint)
    if any(isinstance(callback, StopOnInterrupt) and callback.interrupted for callback in callbacks):
        raise KeyboardInterrupt
    measured |= measure_after(model, *evaluation)
    record = _record(trainer, name=folder.resolve().name, base=base.name, **measured)
    if isinstance(model, PeftModel):
        record = record.model_copy(update=_saved_adapter(model, folder, base))
    record.save(folder)
    return record


def _leaks(pairs: Sequence[Pair], eval_pairs: Sequence[Pair]) -> int | None:
    """Return the number of evaluation pairs that are in the training pairs, and warn if there are any or nearly any."""
    if not pairs or not eval_pairs:
        return None
    leaks = find_leaks(pairs, eval_pairs)
    if leaks.exact or leaks.near:
        warnings.warn(str(leaks), stacklevel=3)
    return leaks.exact


def _check_adapter(model: PeftModel) -> None:
    names, kinds = list(model.peft_config), {type(config) for config in model.peft_config.values()}
    if names != ["default"] or kinds != {LoraConfig}:
        kind = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise LoralabError(
            f"train takes a model with one LoRA adapter, which get_peft_model names 'default'; this one has {names} ({kind})"
        )
    if sum(isinstance(module, LoraLayer) for module in model.modules()) > len(_adapted(model)):
        raise LoralabError(
            "this base had LoRA layers already when it was given to get_peft_model, and they would be trained, too: "
            "load a fresh one"
        )


def _check_saved(model: PeftModel, base: Base) -> None:
    """Raise `LoralabError` if the adapter is not trained, or if something is trained that it does not save."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise LoralabError(
            "the adapter is frozen, so there is nothing to train: load it with "
            "PeftModel.from_pretrained(..., is_trainable=True)"
        )
    tensors = cast(dict[str, torch.Tensor], get_peft_model_state_dict(model, save_embedding_layers=False))
    saved = {tensor.data_ptr() for tensor in tensors.values()}
    lost = [name for name, parameter in trained.items() if parameter.data_ptr() not in saved]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise LoralabError(
            f"{lost[0].removeprefix('base_model.model.')}{more} would be trained, but not saved with the adapter: freeze "
            "them, or name their layers in LoraConfig(modules_to_save=...)"
        )
    _check_vocabulary(model, base)


def _check_vocabulary(model: PeftModel, base: Base) -> None:
    """Raise `LoralabError` if the embeddings were resized and the adapter does not save them."""
    config = _config(model)
    if config.modules_to_save or getattr(config, "trainable_token_indices", None):
        return  # peft saves what they name
    rows = model.get_input_embeddings().weight.shape[0]
    try:
        there = AutoConfig.from_pretrained(base.source).get_text_config().vocab_size
    except (OSError, ValueError, AttributeError):  # the model came from somewhere else
        return
    if rows != there:
        raise LoralabError(
            f"the vocabulary was resized to {rows} rows ({base.name} has {there}), and the adapter would not save them: "
            'give LoraConfig(modules_to_save=["embed_tokens", "lm_head"]), or do not resize'
        )


def _run(trainer: _Trainer, longest: int, checkpoint: str | None = None) -> dict[str, float]:
    """Train, and tell what it cost: seconds (those before `checkpoint` included), and the peak memory in bytes."""
    reset_peak_memory()
    clock = Clock(checkpoint)
    trainer.add_callback(clock)
    try:
        with attention_for(trainer.trained, longest), weights_cast_once(trainer.trained, frozen_only=True):
            trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, StopOnInterrupt):
                callback.restore()
        _release(trainer)
    return {"seconds": clock.seconds, "peak_memory": peak_memory()}


def _release(trainer: _Trainer) -> None:
    """Take away the autocast that accelerate put around the model: what measures it chooses for itself."""
    trainer.accelerator.unwrap_model(trainer.trained, keep_fp32_wrapper=False)
    # Else another training of the same model would have no autocast.
    trainer.trained.__dict__.pop("_is_accelerate_prepared", None)


def _record(trainer: _Trainer, **known: Any) -> RunRecord:
    """Return the record of the run as the trainer knows it: a call's arguments may have been overridden."""
    model, args, examples = trainer.trained, trainer.args, trainer.examples
    trainable, parameters = parameter_counts(model)
    epochs = _epochs(trainer)
    return RunRecord(
        method=_method(model),
        trainable=trainable,
        parameters=parameters,
        train_pairs=len(examples),
        ends=_ends(examples, trainer.tokenizer.eos_token_id),
        tokens=round(epochs * sum(len(example["input_ids"]) for example in examples)),
        epochs=epochs,
        batch_size=(trainer.state.train_batch_size or 0) * args.gradient_accumulation_steps,
        learning_rate=args.learning_rate,
        seed=args.seed,
        held_out=trainer.held_out,
        kept_epoch=trainer.kept_epoch,
        losses=[entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        dtype=str(model.dtype).removeprefix("torch."),
        quantization=quantization_settings(model),
        **known,
    )


def _epochs(trainer: Trainer) -> float:
    """Return the epochs as given, or as done if a number of steps or a callback ended the training."""
    args, state = trainer.args, trainer.state
    to_the_end = args.max_steps <= 0 and state.global_step == state.max_steps
    return args.num_train_epochs if to_the_end else state.epoch  # 0.5 of 25 steps are 13, which are 0.52


def _ends(examples: Sequence[dict[str, list[int]]], end: int) -> int:
    """Return how many examples have the token `end` as their last label."""
    learned = ([label for label in example["labels"] if label != IGNORED] for example in examples)
    return sum(labels[-1:] == [end] for labels in learned)


def _method(model: LanguageModel) -> str:
    if not isinstance(model, PeftModel):
        return "full"
    if getattr(model, "is_loaded_in_4bit", False):
        return "qlora"
    return method_of(_config(model))


def _config(model: PeftModel) -> LoraConfig:
    return cast(LoraConfig, model.peft_config["default"])


def method_of(config: LoraConfig) -> str:
    """Return the name of the method that an adapter's configuration means on a base in full precision."""
    if config.use_dora:
        return "dora"
    if str(config.init_lora_weights).startswith("pissa"):
        return "pissa"
    return "rslora" if config.use_rslora else "lora"


def training_arguments(
    folder: Path, epochs: float, batch_size: int, learning_rate: float, seed: int, hardware: Precision, **arguments: Any
) -> TrainingArguments:
    """Cosine decay after 5 % of warm-up, AdamW without weight decay, a loss at every step, no checkpoints."""
    usual: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": batch_size,
        "num_train_epochs": epochs,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,  # a share, rounded up to whole steps
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # else a loss that is no number is logged as 0
        "save_strategy": "no",
        "report_to": "none",
        "seed": seed,
        "disable_tqdm": True,  # `train` has a bar of its own
        "use_cpu": hardware.device == "cpu",
        "dataloader_pin_memory": hardware.device == "cuda",
        **hardware.autocast,
    }
    settings = TrainingArguments(**usual | arguments)
    if settings.n_gpu > 1:
        settings._n_gpu = 1  # else a batch would be silently multiplied by the number of GPUs
    return settings


def checkpointing_for(
    model: LanguageModel, base: Base, batch_size: int, longest: int, room: float | None = None
) -> dict[str, Any]:
    """Return the settings that recompute activations in the backward pass if, by the estimate, they would not fit.

    `room` is the GPU's memory in bytes (default: this one's). Recomputing costs a second forward pass, so it is left
    where it is not needed, and on a CPU. AdamW stays as it is: in 8 bits it would save 6 bytes per trainable parameter,
    which are few.
    """
    if room is None:
        if precision_for(model).device == "cpu":
            return {}
        room = torch.cuda.mem_get_info()[1]
    saving = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    asked: dict[str, Any] = {"batch": batch_size, "length": longest, "checkpointing": False}
    if isinstance(model, PeftModel):
        adapter = _config(model)
        asked |= {"rank": adapter.r, "targets": tuple(_targets(model)), "dropout": adapter.lora_dropout}
    method = _method(model)
    try:
        total = estimate(base.source, method if method in METHODS else "lora", **asked).total
    except (ValueError, OSError):  # this base cannot be estimated: better slow than out of memory
        return saving
    return {} if verdict(total, room) == "fits" else saving


@contextmanager
def attention_for(model: LanguageModel, longest: int) -> Iterator[None]:
    """Within it, texts of up to `longest` tokens take the attention that is fastest for them on this machine.

    On a CPU that trains in bf16, the fused kernel of sdpa has a slow backward pass: over short texts, attention written
    out ("eager") is faster (`benchmarks/training.py` measures it). Over long ones it would take much memory.
    """
    base = cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)
    hardware = precision_for(base)
    slow = (hardware.device, hardware.compute, base.config._attn_implementation) == ("cpu", torch.bfloat16, "sdpa")
    if not slow or longest > SHORT:
        yield
        return
    base.set_attn_implementation("eager")
    try:
        yield
    finally:
        base.set_attn_implementation("sdpa")


class _Trainer(Trainer):
    """`Trainer` on encoded pairs; its evaluation is the loss per answer token, whatever the batch size.

    It keeps what it was given as what it is: `Trainer` itself declares nearly every kind of model and data.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Sequence[dict[str, list[int]]],
        evaluation: Sequence[dict[str, list[int]]] | None,
        **settings: Any,
    ) -> None:
        self.trained, self.tokenizer, self.examples, self.evaluation = model, tokenizer, examples, evaluation
        super().__init__(
            model=model,
            processing_class=tokenizer,
            train_dataset=cast(Dataset[Any], examples),
            eval_dataset=cast(Dataset[Any] | None, evaluation),
            data_collator=cast(Any, AnswersAtTheEnd(tokenizer)),
            **settings,
        )

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        metrics = {"eval_loss": loss_of(self.trained, self.tokenizer, self.evaluation or []).loss}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @property
    def held_out(self) -> list[tuple[float, float]] | None:
        """The epochs after which the held-out loss was measured, and the losses."""
        found = [(entry["epoch"], entry["eval_loss"]) for entry in self.state.log_history if "eval_loss" in entry]
        return found or None

    @property
    def kept_epoch(self) -> float | None:
        """The epoch of the checkpoint that was loaded at the end."""
        step = self.state.best_global_step if self.state.best_model_checkpoint else None
        entries = (entry for entry in self.state.log_history if "eval_loss" in entry and entry["step"] == step)
        return next((entry["epoch"] for entry in entries), None)


class _Bar(ProgressCallback):
    """Trainer's progress bar with the loss beside it, instead of a printed line for every step."""

    def on_log(self, *_: Any, logs: dict[str, Any] | None = None, **__: Any) -> None:
        if self.training_bar is not None and "loss" in (logs or {}):
            self.training_bar.set_postfix(loss=f"{logs['loss']:.2f}")


def _saved_adapter(model: PeftModel, folder: Path, base: Base) -> dict[str, Any]:
    config, targets, layers = _config(model), _targets(model), _partly_adapted(model)
    if config.target_modules and not layers:
        config.target_modules = targets  # a pattern, or full names, say the same at greater length
    if Path(base.source).is_dir():
        config.base_model_name_or_path = base.name  # local paths are not portable
    model.save_pretrained(str(folder), save_embedding_layers=False)  # else peft looks the base up on the hub
    (folder / "README.md").unlink(missing_ok=True)  # peft's card is an empty form
    return {
        "rank": config.r,
        "alpha": config.lora_alpha,
        "dropout": config.lora_dropout,
        "targets": targets,
        "adapter": adapter_settings(config, layers),
        "adapter_bytes": adapter_bytes(folder),
    }


def _targets(model: PeftModel) -> list[str]:
    """Return the names of the layers that have an adapter; its config may have them as a pattern."""
    return sorted({name.rpartition(".")[2] for name in _adapted(model)})


def _adapted(model: PeftModel) -> list[str]:
    """Return the full names of the layers that have an adapter."""
    return cast(list[str], model.base_model.targeted_module_names)


def _partly_adapted(model: PeftModel) -> list[str] | None:
    """Return the full names of the adapted layers if other layers of the same names have no adapter."""
    targets, adapted = set(_targets(model)), set(_adapted(model))
    modules = model.get_base_model().named_modules()
    alike = {name for name, _ in modules if name.rpartition(".")[2] in targets}
    return sorted(adapted) if alike - adapted else None


def adapter_settings(config: LoraConfig, layers: list[str] | None = None) -> AdapterSettings:
    """Return the settings of a LoRA adapter that the record has apart from rank, alpha, dropout and targets."""
    return AdapterSettings(
        bias=config.bias,
        rank_pattern=dict(config.rank_pattern or {}),
        alpha_pattern=dict(config.alpha_pattern or {}),
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        init=config.init_lora_weights,
        modules_to_save=sorted(config.modules_to_save or []),
        layers=layers,
    )
