"""`loralab chat`: the answers of a base and of its adapter, side by side."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .adapters import changes_the_base
from .answers import Answer, generate_answers
from .bases import find_base, load_model, load_tokenizer
from .errors import LoralabError, first_line, first_problem, one_line
from .export import read_run
from .fourbit import recorded_quantization
from .pairs import Pair, Turn


@dataclass(frozen=True)
class Chat:
    """A base and its adapter, ready to answer. `bare` is None if the base is the adapted model without its adapter."""

    adapted: PeftModel
    tokenizer: PreTrainedTokenizerBase
    bare: PreTrainedModel | None = None
    system: str | None = None
    max_tokens: int = 200

    def answer(self, text: str) -> tuple[Answer, Answer]:
        """Return the answers of the base and of the adapter; a question knows nothing of earlier ones.

        Raises `LoralabError`, in one line, if the chat template cannot take the question or the system prompt.
        """
        try:
            history = (Turn(role="system", content=self.system),) if self.system else ()
            question = Pair(instruction=text, output="-", history=history)  # the answer is not used
        except ValidationError as error:
            raise LoralabError(f"this cannot be asked: {first_problem(error)}") from None
        with self.adapted.disable_adapter() if self.bare is None else nullcontext():
            of_base = self._generated(self.bare or self.adapted, question)
        return of_base, self._generated(self.adapted, question)

    def _generated(self, model: PreTrainedModel | PeftModel, question: Pair) -> Answer:
        return generate_answers(model, self.tokenizer, [question], self.max_tokens)[0]


def open_chat(folder: str | Path, base: str | None = None, system: str | None = None, max_tokens: int = 200) -> Chat:
    """Load a finished run and its base. Raises `LoralabError` with one line if that is impossible."""
    run = read_run(folder)
    chosen = find_base(base or run.base_name)
    quantization = recorded_quantization(run.record)
    bare = None
    if run.settings.bias != "none" or changes_the_base(run.settings):
        bare = load_model(chosen, quantization=quantization)  # the adapter changes more than it can take back
    model = load_model(chosen, quantization=quantization)
    try:
        adapted = PeftModel.from_pretrained(model, str(folder))
    except Exception as error:  # tensors of another shape or name fail in many ways inside peft
        raise LoralabError(f"{folder}: the adapter does not fit {chosen.name} ({one_line(error)})") from None
    return Chat(adapted, load_tokenizer(chosen), bare, system, max_tokens)


def show(answers: tuple[Answer, Answer], console: Console) -> None:
    """Print the two answers in two columns."""
    table = Table(expand=True)
    for heading in ("base", "adapter"):
        table.add_column(heading, ratio=1, overflow="fold")
    table.add_row(*map(_cell, answers))
    console.print(table)


def _cell(answer: Answer) -> Text:
    text = Text(answer.text.strip() or "(empty)")
    return text if answer.ended else text.append("\n(cut off: raise --max-tokens)", "dim")


def talk(chat: Chat, console: Console, read: Callable[[str], str] = input) -> None:
    """Answer questions until the input ends (Ctrl-D) or Ctrl-C."""
    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401 (arrow keys)
    console.print("Each question is answered by itself. Ctrl-D ends.")
    while True:
        try:
            text = read("> ").strip()
            if text:
                show(chat.answer(text), console)
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        except LoralabError as error:
            console.print(f"Error: {first_line(error)}")
