"""`loralab push`: upload a finished run to the Hub, so that others can load its adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.constants import REPOCARD_NAME
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # not in its __all__

from .bases import PROFILES
from .errors import LoralabError, first_line, one_line
from .export import read_run
from .record import ADAPTER_FILE, CONFIG_FILE, RECORD_FILE

FILES = (ADAPTER_FILE, CONFIG_FILE, RECORD_FILE, REPOCARD_NAME)
REASONS = {
    401: "the Hub does not accept your token: log in again with `hf auth login`, or set HF_TOKEN",
    403: "your token may not write there: take one with write access, or give another --to",
    404: "the Hub has no such owner, or hides it from your token: check --to",
}


@dataclass(frozen=True)
class Push:
    """A run that can be uploaded: its files with their sizes in bytes, and the repository (owner/name) for them."""

    folder: Path
    repo: str
    base: str
    sizes: dict[str, int]
    private: bool = False

    @property
    def url(self) -> str:
        return f"{constants.ENDPOINT}/{self.repo}"

    def __str__(self) -> str:
        """List the repository and the files, one per line."""
        lines = [self.url + " (private)" * self.private]
        lines += [f"  {name:<{max(map(len, FILES))}} {size:>12,} bytes" for name, size in self.sizes.items()]
        if self.base in PROFILES:
            lines.append(
                f"note: the base {self.base} is not on the Hub, so the adapter can be loaded with loralab only"
            )
        return "\n".join(lines)


def prepare_push(run: str | Path, to: str, private: bool = False) -> Push:
    """Check everything that can be checked without a network. Raises `LoralabError`, in one line, if it cannot be pushed."""
    if not _is_repo(to):
        raise LoralabError(f"--to {to!r} is not the name of a repository: give owner/name, such as kim/desk-adapter")
    known = read_run(run)
    folder = known.folder
    if not (folder / REPOCARD_NAME).is_file():
        raise LoralabError(f"{folder}: no model card ({REPOCARD_NAME}) in it: run `loralab gate {folder}` first")
    base = known.settings.base_model_name_or_path or ""
    if base not in PROFILES and (not _is_repo(base) or Path(base).is_dir()):
        raise LoralabError(
            f"{folder / CONFIG_FILE}: the base {base!r} is a local model, which others do not have: push it, too, and write "
            "its id (owner/name) into base_model_name_or_path"
        )
    return Push(folder, to, base, {name: (folder / name).stat().st_size for name in FILES}, private)


def _is_repo(name: str) -> bool:
    """Tell whether `name` can be that of a repository with its owner."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def upload(push: Push) -> None:
    """Create the repository if there is none, and upload the files in one commit.

    The Hub is that of $HF_ENDPOINT, the token that of `hf auth login` or $HF_TOKEN. Raises `LoralabError`, in one line, if
    this fails.
    """
    if get_token() is None:
        raise LoralabError("no token for the Hub: run `hf auth login`, or set HF_TOKEN to one with write access")
    api = HfApi()
    try:
        api.create_repo(push.repo, private=push.private, exist_ok=True)
        if push.private and not api.model_info(push.repo).private:
            raise LoralabError("it exists and is public: make it private on the Hub, or give another --to")
        api.upload_folder(
            repo_id=push.repo,
            folder_path=push.folder,
            allow_patterns=list(FILES),
            commit_message=f"Upload {push.folder.resolve().name} with loralab",
        )
    except Exception as error:  # the library has a kind of error for each step, and they change with its version
        raise LoralabError(f"{push.repo}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """Say what went wrong and what to do."""
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):  # from a thread that uploads
        error = error.__cause__
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it to push"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return REASONS.get(status, f"the Hub answers {status} ({first_line(error)}); try again later")
    if isinstance(error, ValueError):
        return " ".join(str(error).split())  # of the Hub, about the card, in several lines
    return f"the Hub at {constants.ENDPOINT} cannot be reached ({one_line(error)}): check the network and $HF_ENDPOINT"
