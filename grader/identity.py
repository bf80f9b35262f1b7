"""Which base this is: how a notebook asks for it, and which weights it has. Two bases may have the same name."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from huggingface_hub import hf_hub_download, try_to_load_from_cache

from loralab import PROFILES, Base
from loralab.bases import profile_source
from loralab.errors import one_line


def asked_for(base: Base) -> str:
    """What BASE must be in a notebook for it to take `base`: a profile's name, a hub id or a folder."""
    known = base.name in PROFILES and profile_source(base.name) == base.source
    return base.name if known else base.source


@cache
def weights_of(base: Base) -> str:
    """The SHA-256 of the weights in the base's folder; of a model of the hub, the commit that is used here.

    Raises `ValueError`, in one line, if it cannot be had.
    """
    folder = Path(base.source)
    if not folder.is_dir():
        return _commit(base.source)
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin")):
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def _commit(source: str) -> str:
    """The hub's cache keeps the files of a commit in a folder of its name."""
    config = try_to_load_from_cache(source, "config.json")
    try:
        return Path(config if isinstance(config, str) else hf_hub_download(source, "config.json")).parent.name
    except Exception as error:  # offline, no such model, no permission
        raise ValueError(f"the base {source} cannot be had: {one_line(error)}") from None
