"""Export a finished run: merged into one model, as GGUF for llama.cpp, or as a GGUF adapter."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, get_args

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from .adapters import base_name, changes_the_base, read_adapter
from .bases import Base, config_of, find_base, load_model, load_tokenizer
from .errors import LoralabError, first_line
from .files import whole_file, whole_folder
from .fourbit import recorded_quantization
from .hardware import Precision
from .llamacpp import (
    LoraPair,
    Quantization,
    check_architecture,
    ggml_quantize_chunk,
    pre_tokenizer,
    write_adapter,
    write_model,
)
from .record import RunRecord
from .shapes import without_weights

Target = Literal["merged", "gguf", "gguf-adapter", "gguf-base"]
MAGIC = b"GGUF"


@dataclass(frozen=True)
class Run:
    """A finished run that trained an adapter."""

    folder: Path
    record: RunRecord
    settings: LoraConfig
    weights: dict[str, torch.Tensor]

    @property
    def base_name(self) -> str:
        """The name under which the base can be found."""
        return base_name(self.settings, self.record.base)


def export(
    run: str | Path,
    to: Target,
    *,
    quantize: Quantization | None = None,
    out: str | Path | None = None,
    base: str | None = None,
) -> Path:
    """Export the run folder `run` and return the path that was written.

    `to` is "merged" (a folder for transformers), "gguf" (the merged model as one file), "gguf-adapter" (the adapter
    alone) or "gguf-base" (the model that such an adapter belongs on). `quantize` stores the matrices of a GGUF model
    in 8 or about 4.8 bits per weight instead of 16. `out` defaults to a name beside `run`, `base` to the run's own
    base. Raises `LoralabError` with one line if this is impossible; an earlier export at `out` is replaced only by a
    complete new one.
    """
    folder = Path(run)
    if folder.name in ("", ".."):  # the folder has no name of its own
        folder = folder.resolve()
    _check_request(to, quantize)
    known = read_run(folder)
    out = Path(out) if out else folder.with_name(_default_name(folder.name, to, quantize))
    _check_out(out, to)
    chosen = find_base(base or known.base_name)
    with _quiet():
        _check_base(chosen, known, to)
        if to == "merged":
            _export_merged(known, chosen, out)
        elif to == "gguf-adapter":
            _export_adapter(known, chosen, out)
        else:
            _export_gguf(known, chosen, out, quantize, with_adapter=to == "gguf")
    return out


def read_run(folder: str | Path) -> Run:
    """Read a run folder. Raises `LoralabError` with one line if it is not that of a finished run with a LoRA adapter."""
    folder = Path(folder)
    record, adapter = RunRecord.load(folder), read_adapter(folder)
    return Run(folder, record, adapter.settings, adapter.weights)


def merge(run: Run, base: Base) -> PreTrainedModel:
    """Load the base in fp32 on the CPU and merge the run's adapter into it."""
    merged: PreTrainedModel = PeftModel.from_pretrained(load_base(run.record, base), str(run.folder)).merge_and_unload()
    return merged


def load_base(record: RunRecord, base: Base) -> PreTrainedModel:
    """Load the weights that the run's adapter was trained on, in fp32 on the CPU.

    A run on a quantised base gets the same weights, dequantised: its adapter has learned to correct their rounding
    errors.
    """
    hardware = _on_cpu(getattr(torch, record.dtype))  # training dequantised to this format
    quantization = recorded_quantization(record, hardware)
    if quantization is None:
        return load_model(base, _on_cpu(torch.float32))
    dequantised: PreTrainedModel = load_model(base, hardware, quantization).dequantize().float()
    return dequantised


def save_merged(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a folder with weights, tokenizer, chat template, and settings that end an answer at the right token."""
    _set_end(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _check_request(to: str, quantize: str | None) -> None:
    if to not in get_args(Target):
        raise LoralabError(f"unknown target {to!r}: choose {', '.join(get_args(Target))}")
    if quantize is None:
        return
    if quantize not in get_args(Quantization):
        raise LoralabError(f"unknown quantisation {quantize!r}: choose {', '.join(get_args(Quantization))}")
    if to not in ("gguf", "gguf-base"):
        raise LoralabError(f"--quantize applies to gguf and gguf-base, not to {to}")
    if quantize == "q4_k_m":
        ggml_quantize_chunk()


def _default_name(run: str, to: Target, quantize: Quantization | None) -> str:
    kind = quantize or "f16"
    names: dict[Target, str] = {
        "merged": f"{run}-merged",
        "gguf": f"{run}-{kind}.gguf",
        "gguf-base": f"{run}-base-{kind}.gguf",
        "gguf-adapter": f"{run}-adapter.gguf",
    }
    return names[to]


def _check_out(out: Path, to: Target) -> None:
    """Refuse to replace anything but an earlier export."""
    if not out.exists():
        return
    if to == "merged":
        ours = (out / "config.json").is_file() and (out / "tokenizer.json").is_file()
    else:
        ours = out.is_file() and _starts_with(out, MAGIC)
    if not ours:
        raise LoralabError(f"{out} exists and is not an earlier export: give another --out")


def _starts_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def _check_base(base: Base, run: Run, to: Target) -> None:
    """Raise `LoralabError` if the export is impossible, before any weights of the base are loaded."""
    config = config_of(base)
    if to != "merged":
        check_architecture(config)
    if to == "gguf-adapter":
        _check_adapter(run.settings)
    tables = [name for name in run.weights if "lm_head" in name or "embed_tokens" in name]
    if tables and (config.tie_word_embeddings or to == "gguf-adapter"):
        raise LoralabError(
            f"the adapter changes {tables[0]}: this works only merged, on a base whose output has its own weights"
        )
    expected = get_peft_model_state_dict(without_weights(config, run.settings), save_embedding_layers=False)
    found = run.weights
    wrong = [name for name in expected.keys() | found.keys() if _shape(expected, name) != _shape(found, name)]
    if wrong:
        raise LoralabError(f"the adapter does not fit the base {base.name} at {min(wrong)}: give the right --base")


def _shape(tensors: dict[str, torch.Tensor], name: str) -> torch.Size | None:
    return tensors[name].shape if name in tensors else None


def _check_adapter(settings: LoraConfig) -> None:
    """Raise `LoralabError` if the adapter is more than pairs of matrices beside the unchanged base."""
    if settings.use_dora:
        raise LoralabError("llama.cpp has no DoRA adapters: export --to merged or gguf")
    if changes_the_base(settings):
        raise LoralabError(
            f"{settings.init_lora_weights} changed the base's own weights, so the adapter needs them: export --to merged or gguf"
        )
    if settings.bias != "none" or settings.lora_bias or settings.modules_to_save or settings.trainable_token_indices:
        raise LoralabError(
            "the run also trained biases or whole layers, which a GGUF adapter cannot hold: export --to gguf"
        )


def _export_merged(run: Run, base: Base, out: Path) -> None:
    tokenizer = load_tokenizer(base)
    model = merge(run, base).to(_short_dtype(base))  # type: ignore[arg-type]  # its decorator hides `self`
    with _writing(out), whole_folder(out) as folder:
        save_merged(model, tokenizer, folder)


def _export_gguf(run: Run, base: Base, out: Path, quantize: Quantization | None, with_adapter: bool) -> None:
    tokenizer = load_tokenizer(base)
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        pre_tokenizer(Path(folder))  # fails before the weights are loaded
        model = merge(run, base) if with_adapter else load_base(run.record, base)
        name = run.folder.name if with_adapter else base.name
        with _writing(out), whole_file(out) as path:
            write_model(path, model, tokenizer, Path(folder), name, quantize)


def _export_adapter(run: Run, base: Base, out: Path) -> None:
    config = config_of(base)
    layers = _layers(without_weights(config, run.settings), run.weights)
    with _writing(out), whole_file(out) as path:
        write_adapter(path, config, layers, run.folder.name)


def _layers(model: PeftModel, weights: dict[str, torch.Tensor]) -> dict[str, LoraPair]:
    """Return the matrices and the factor of each layer with an adapter, by the layer's name in the base."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    return {
        name.removeprefix("base_model.model."): LoraPair(
            weights[f"{name}.lora_A.weight"], weights[f"{name}.lora_B.weight"], module.scaling["default"]
        )
        for name, module in layers.items()
    }


def _set_end(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make generation stop at the tokenizer's end-of-answer token; some bases name another one."""
    end, known = tokenizer.eos_token_id, model.generation_config.eos_token_id
    if end not in (known if isinstance(known, list) else [known]):
        model.generation_config.eos_token_id = end
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.config.eos_token_id, model.config.pad_token_id = end, tokenizer.pad_token_id


def _short_dtype(base: Base) -> torch.dtype:
    """Return the base's own 16-bit format; bf16 if it has none."""
    dtype = config_of(base).dtype
    return dtype if dtype in (torch.bfloat16, torch.float16) else torch.bfloat16


def _on_cpu(dtype: torch.dtype) -> Precision:
    return Precision("cpu", dtype, dtype, "export runs on the CPU")


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Turn an error of writing into one line."""
    try:
        yield
    except OSError as error:
        raise LoralabError(
            f"{out} cannot be written ({error.strerror or first_line(error)}): give another --out"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence progress bars and the warnings about dequantising, which is intended here."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
