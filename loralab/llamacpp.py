"""Write models and LoRA adapters as GGUF, the file format of llama.cpp."""

from __future__ import annotations

import ctypes
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .errors import LoralabError

Quantization = Literal["q8_0", "q4_k_m"]
Quantizer = Callable[[np.ndarray, Type], np.ndarray]

ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}
FILE_TYPES = {
    None: gguf.LlamaFileType.MOSTLY_F16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "q4_k_m": gguf.LlamaFileType.MOSTLY_Q4_K_M,
}
# llama.cpp splits a text into words by rules of its own, one set per name. These are the patterns of three of them.
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {QWEN2: "qwen2", QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|", 1): "llama-bpe"}
# Types for rows that are no multiple of a K-quant's 256 values, as llama-quantize chooses them.
FALLBACKS = {Type.Q4_K: Type.Q5_0, Type.Q6_K: Type.Q8_0}


class LoraPair(NamedTuple):
    """A layer's A [rank, in] and B [out, rank], and the factor of B·A."""

    a: torch.Tensor
    b: torch.Tensor
    factor: float

    @property
    def alpha(self) -> float:
        """The alpha that makes alpha/rank this factor."""
        return self.factor * len(self.a)


def check_architecture(config: PretrainedConfig) -> None:
    """Raise `LoralabError` with one line if a model with this `config` cannot be written."""
    if config.model_type not in ARCHITECTURES:
        raise LoralabError(
            f"{config.model_type} models cannot be written as GGUF here ({', '.join(ARCHITECTURES)} can): "
            "export --to merged and use llama.cpp's convert_hf_to_gguf.py"
        )
    kind = (config.rope_parameters or {}).get("rope_type", "default")
    if kind != "default" or getattr(config, "use_sliding_window", False):
        what = f"{kind} rope scaling" if kind != "default" else "sliding-window attention"
        raise LoralabError(
            f"{what} cannot be written here: export --to merged and use llama.cpp's convert_hf_to_gguf.py"
        )


def write_model(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    name: str,
    quantize: Quantization | None = None,
) -> None:
    """Write `model` and its tokenizer to the GGUF file `path`: matrices in f16 or quantised, vectors in f32.

    `folder` holds the tokenizer's files as `save_pretrained` writes them. Raises `LoralabError` with one line if
    llama.cpp would not read the result as transformers does.
    """
    config = model.config
    check_architecture(config)
    quantizer = _quantizer(quantize)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[config.model_type]])
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[quantize])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(writer, config)
    _add_tokenizer(writer, tokenizer, folder, config.vocab_size)
    for tensor_name, array in _tensors(model):
        kind = tensor_type(tensor_name, array.shape, config, quantize)
        writer.add_tensor(tensor_name, quantizer(array, kind), raw_dtype=kind)
    _write(writer)


def write_adapter(path: Path, config: PretrainedConfig, layers: dict[str, LoraPair], name: str) -> None:
    """Write a LoRA adapter to the GGUF file `path`, in f32; `layers` has the layers by their names in transformers."""
    check_architecture(config)
    # llama.cpp multiplies B·A by alpha/rank, with one alpha for all layers: B takes up what differs
    alpha = next(iter(layers.values())).alpha
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[config.model_type]])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(name)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for layer, pair in layers.items():
        weight = f"{layer}.weight"
        b = _rows_in_order(weight, _array(pair.b), config) * np.float32(pair.alpha / alpha)
        writer.add_tensor(f"{_gguf_name(weight, config)}.lora_a", _array(pair.a))
        writer.add_tensor(f"{_gguf_name(weight, config)}.lora_b", b)
    _write(writer)


def tensor_type(name: str, shape: tuple[int, ...], config: PretrainedConfig, quantize: Quantization | None) -> Type:
    """Return the type in which llama.cpp's own tools would store the tensor `name` (its name in GGUF)."""
    if len(shape) == 1:
        return Type.F32
    wanted = {None: Type.F16, "q8_0": Type.Q8_0}.get(quantize) or _k_type(name, config)
    while shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0]:
        wanted = FALLBACKS.get(wanted, Type.F16)
    return wanted


def _k_type(name: str, config: PretrainedConfig) -> Type:
    """Return the type of a matrix in a q4_k_m file: 6 bits for the output and for half of attn_v and ffn_down."""
    output = "token_embd.weight" if config.tie_word_embeddings else "output.weight"
    if name == output:
        return Type.Q6_K
    layer = re.fullmatch(r"blk\.(\d+)\.(attn_v|ffn_down)\.weight", name)
    if not layer:
        return Type.Q4_K
    number, layers = int(layer[1]), config.num_hidden_layers
    eighth = layers // 8
    more = number < eighth or number >= 7 * layers // 8 or (number - eighth) % 3 == 2
    return Type.Q6_K if more else Type.Q4_K


def _quantizer(quantize: Quantization | None) -> Quantizer:
    """Return the function that stores a matrix in a type; the `gguf` package has no K-quants, llama.cpp has them."""
    if quantize != "q4_k_m":
        return gguf.quants.quantize
    chunk = ggml_quantize_chunk()

    def quantizer(array: np.ndarray, kind: Type) -> np.ndarray:
        if kind in (Type.F32, Type.F16):
            return gguf.quants.quantize(array, kind)
        rows = np.ascontiguousarray(array, dtype=np.float32)
        stored = np.empty(gguf.quant_shape_to_byte_shape(rows.shape, kind), dtype=np.uint8)
        chunk(kind, rows.ctypes.data, stored.ctypes.data, 0, *rows.shape, None)
        return stored

    return quantizer


def ggml_quantize_chunk() -> Callable[..., int]:
    """Return llama.cpp's function that quantises rows. Raises `LoralabError` with one line if it is unavailable."""
    remedy = "or export without --quantize and run llama.cpp's llama-quantize on the file"
    try:
        from xllamacpp import xllamacpp
    except ImportError:
        raise LoralabError(f"q4_k_m needs llama.cpp: pip install xllamacpp, {remedy}") from None
    try:
        function = ctypes.CDLL(xllamacpp.__file__).ggml_quantize_chunk
    except (OSError, AttributeError):
        raise LoralabError(
            f"this build of xllamacpp does not export ggml_quantize_chunk: install another, {remedy}"
        ) from None
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
    function.restype = ctypes.c_size_t
    return function


def _add_shape(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, folder: Path, size: int) -> None:
    """Add the vocabulary, its merges, the special tokens and the chat template."""
    tokens, types = _vocabulary(tokenizer, size)
    writer.add_tokenizer_model("gpt2")  # llama.cpp's name for byte-level BPE
    writer.add_tokenizer_pre(pre_tokenizer(folder))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    special = gguf.SpecialVocab(folder, load_merges=True, n_vocab=size)
    end = tokenizer.eos_token_id
    special.special_token_ids |= {"eos": end, "eot": end, "pad": tokenizer.pad_token_id}
    special.special_token_ids.setdefault("bos", tokenizer.pad_token_id)  # else llama.cpp takes token 11
    ids = tokenizer("a")["input_ids"]
    special.add_special_token = {"bos": ids[0] == tokenizer.bos_token_id, "eos": ids[-1] == end}
    special.chat_template = plain_template(tokenizer.get_chat_template())
    special.add_to_gguf(writer, quiet=True)


def _vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> tuple[list[str], list[gguf.TokenType]]:
    """Return the `size` tokens in the order of their ids, and their types; rows without a token are unused."""
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    if max(by_id) >= size:
        raise LoralabError(f"the tokenizer has token {max(by_id)}, but the model has only {size} embeddings")
    added = tokenizer.added_tokens_decoder
    kinds = dict.fromkeys(by_id, gguf.TokenType.NORMAL)
    kinds |= {i: gguf.TokenType.CONTROL if one.special else gguf.TokenType.USER_DEFINED for i, one in added.items()}
    tokens = [by_id.get(i, f"[PAD{i}]") for i in range(size)]
    return tokens, [kinds.get(i, gguf.TokenType.UNUSED) for i in range(size)]


def pre_tokenizer(folder: Path) -> str:
    """Return llama.cpp's name for how the tokenizer in `folder` splits a text. Raises `LoralabError` if it has none."""
    try:
        saved = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    except FileNotFoundError:
        raise LoralabError("the tokenizer has no tokenizer.json: GGUF export needs a fast tokenizer") from None
    if saved["model"]["type"] == "BPE" and not saved["model"].get("byte_fallback"):
        name = _pre_name(saved.get("pre_tokenizer") or {})
        if name:
            return name
    raise LoralabError(
        "llama.cpp's name for this tokenizer is not known here: export --to merged and use convert_hf_to_gguf.py"
    )


def _pre_name(settings: dict[str, Any]) -> str | None:
    steps = settings.get("pretokenizers", [settings])
    if steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    first, own_pattern = steps[0], steps[-1].get("use_regex", True)
    match [step["type"] for step in steps]:
        case ["ByteLevel"] if own_pattern:
            return "gpt-2"
        case ["Digits", "ByteLevel"] if own_pattern and first["individual_digits"]:
            return "smollm"
        case ["Split", "ByteLevel"] if not own_pattern and first["behavior"] == "Isolated" and not first["invert"]:
            return PATTERNS.get(first["pattern"].get("Regex"))
    return None


def plain_template(template: str) -> str:
    """Return a chat template without `generation` blocks, which only training knows; its text stays the same."""
    opened = re.sub(r"({%-?\s*)generation(\s*-?%})", r"\1if true\2", template)
    return re.sub(r"({%-?\s*)endgeneration(\s*-?%})", r"\1endif\2", opened)


def _tensors(model: PreTrainedModel) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each tensor's name in GGUF and its values in fp32; a table shared with the embeddings is left out."""
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        yield _gguf_name(name, model.config), _rows_in_order(name, _array(tensor), model.config)


def _gguf_name(name: str, config: PretrainedConfig) -> str:
    names = gguf.get_tensor_name_map(ARCHITECTURES[config.model_type], config.num_hidden_layers)
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise LoralabError(f"GGUF has no name for the tensor {name} of a {config.model_type} model")
    return found


def _rows_in_order(name: str, array: np.ndarray, config: PretrainedConfig) -> np.ndarray:
    """Return the rows in llama.cpp's order: in llama models it pairs neighbours of a head, transformers pairs halves."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = next((number for layer, number in heads.items() if f".{layer}." in name), None)
    if config.model_type != "llama" or count is None:
        return array
    halves = array.reshape(count, 2, len(array) // count // 2, *array.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())


def _write(writer: gguf.GGUFWriter) -> None:
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
