"""The functions that the tasks define, called with inputs that nobody has seen."""

import json
import shutil

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from grader.errors import NotebookFailed
from grader.evaluation import call_functions
from grader.evaluation.functions import CALLS, DRAWN, NOT_CALLED, SCRIPT, compare, draw_calls
from grader.exercises import EXERCISES
from grader.sandbox.execute import MAX_ANSWERS, Afterwards, execute_in_sandbox, read_answers
from grader.sandbox.limits import Limits
from tests.submissions.honest import HONEST

EX1 = EXERCISES["ex1_first_adapter"]


@pytest.fixture
def calls(base):
    return lambda exercise, seed=1, digest="a digest": draw_calls(exercise, base, seed, digest)


def defined(exercise, **tasks) -> dict:
    """What the notebook's tasks define, with the sources of some of them replaced."""
    scope = {"SEED": 0}
    for cell in nbformat.read(exercise.solution, as_version=4).cells:
        about = cell.metadata.get("nbgrader", {})
        if cell.cell_type == "code" and (about.get("solution") or cell.id == "imports"):
            exec(tasks.get(about.get("grade_id"), cell.source), scope)
    return scope


def answers(calls, functions) -> bytes:
    return json.dumps(call_functions.call_all([call.text for call in calls], functions)).encode()


def test_the_answers_of_all_calls_fit_into_what_is_read(calls):
    assert all(len(calls(exercise)) * call_functions.MAX_LENGTH < MAX_ANSWERS for exercise in EXERCISES.values())


def right(outcomes) -> dict[str, bool]:
    return {outcome.name: outcome.right for outcome in outcomes}


@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=lambda one: one.id)
def test_the_solution_is_right_and_constants_are_wrong(calls, exercise):
    asked = calls(exercise)
    assert [call.name for call in asked] == [name for name in exercise.functions for _ in range(CALLS)]
    functions = defined(exercise)
    assert right(compare(exercise, asked, answers(asked, functions))) == dict.fromkeys(exercise.functions, True)
    # What they return for the first of other inputs, whatever they are called with.
    others = calls(exercise, digest="another digest")
    first = {call.name: call_functions.call_all([call.text], functions)[0]["value"] for call in reversed(others)}
    constant = {name: lambda *_, value=value: value for name, value in first.items()}
    assert right(compare(exercise, asked, answers(asked, constant))) == dict.fromkeys(exercise.functions, False)


def test_every_function_is_defined_by_a_task_and_has_its_inputs():
    for exercise in EXERCISES.values():
        tasks = "\n".join(cell.source for cell in exercise.released().cells if "nbgrader" in cell.metadata)
        assert all(f"def {name}(" in tasks or f"class {name}(" in tasks for name in exercise.functions)
    assert {name for exercise in EXERCISES.values() for name in exercise.functions} == set(DRAWN)


def test_every_submission_and_every_class_is_asked_other_things(calls):
    texts = [tuple(call.text for call in calls(EX1, *which)) for which in ((1, "a"), (1, "b"), (2, "a"), (1, "a"))]
    assert texts[0] == texts[3]
    assert len(set(texts)) == 3


WRONG = {
    "empty": ("raise NotImplementedError", "raised NotImplementedError"),
    "nothing": ("return None", "returned None, not"),
    "a constant": ("return 300.0", "returned 300.0, not"),
    "a mean of perplexities": ("return sum(math.exp(a / b) for a, b in losses) / len(losses)", "returned"),
    "not a number": ("return float('nan')", "returned nan, not"),
    "a number that fits no float": ("return 10**400", "returned 1000"),
    "something else": ("return {1, 2}", "raised TypeError: returned a set"),
    "a long text": ("return 'x' * 90_000", "89,880 more characters"),
    "an endless text": ("return 'x' * 10**6", "raised ValueError: returned 1,000,013 characters"),
    "a number too long to be written": ("return 10**5000", "raised ValueError: Exceeds the limit"),
    "the end of the process": ("raise SystemExit(3)", "raised SystemExit: 3"),
    "a loop without an end": ("while True: pass", "raised TimeoutError: did not end within 2 seconds"),
    "an error without a text": (
        "raise type('Mute', (Exception,), {'__module__': 'builtins', '__str__': lambda self: 1 / 0})",
        "raised Mute: <exception str() failed>",
    ),
}


@pytest.mark.parametrize(("body", "why"), WRONG.values(), ids=WRONG)
def test_a_wrong_function_is_named_with_what_it_returned_and_the_others_are_right(calls, body, why, monkeypatch):
    monkeypatch.setattr(call_functions, "SECONDS", 2)
    asked, functions = calls(EX1), defined(EX1)
    scope = {"math": functions["math"]}
    exec(f"def perplexity(losses):\n    {body}", scope)
    found = compare(EX1, asked, answers(asked, functions | {"perplexity": scope["perplexity"]}))
    assert right(found) == dict.fromkeys(EX1.functions, True) | {"perplexity": False}
    assert why in found[2].why
    assert len(found[2].why) < 600 and "\n" not in found[2].why


LAYERS = {
    "no scale": ("forward(self, x)", "self.linear(x) + x @ self.A.T @ self.B.T", "returned {'forward': "),
    "scale of r alone": ("forward(self, x)", "self.linear(x) + x @ self.A.T @ self.B.T / len(self.A)", "{'forward': "),
    "merge without the change": ("merge(self)", "copy.deepcopy(self.linear)", "returned {'merged': "),
    "merge to the layer itself": ("merge(self)", "self", "returned {'type of merged': 'Changed'}, not"),
    "merge to nothing": ("merge(self)", "None", "raised AttributeError: 'NoneType' object"),
}


@pytest.mark.parametrize(("method", "returns", "why"), LAYERS.values(), ids=LAYERS)
def test_of_a_wrong_layer_the_part_that_differs_is_named(calls, method, returns, why):
    asked, functions = calls(EX1), defined(EX1)
    exec(f"class Changed(LoRALinear):\n    def {method}:\n        return {returns}", functions)
    found = compare(EX1, asked, answers(asked, functions | {"LoRALinear": functions["Changed"]}))
    assert right(found) == dict.fromkeys(EX1.functions, True) | {"LoRALinear": False}
    assert why in found[3].why


OTHERS = {  # what right and typical wrong functions of other exercises return, and whether it is right
    "next_rate": {
        "def next_rate(losses, factor):\n"
        "    tried = sorted((math.inf if math.isnan(l) else l, r) for r, l in losses.items())\n"
        "    best, rates = tried[0][1], sorted(losses)\n"
        "    return best * factor if best == rates[-1] else best / factor if best == rates[0] else None": True,
        "def next_rate(losses, factor):\n    return max(losses) * factor": False,
        "def next_rate(losses, factor):\n    return None": False,
    },
    "paired_difference": {
        "def paired_difference(one, other):\n"
        "    mean, found = np.mean(one) - np.mean(other), stats.ttest_rel(one, other).confidence_interval()\n"
        "    return [mean, found.low, found.high]": True,
        "def paired_difference(one, other):\n"
        "    d = np.subtract(one, other)\n"
        "    reach = 1.96 * d.std(ddof=1) / len(d) ** 0.5\n"
        "    return d.mean(), d.mean() - reach, d.mean() + reach": False,
    },
    "smallest_enough": {
        "def smallest_enough(losses):\n    return min(losses, key=lambda rank: np.mean(losses[rank]))": False,
        "def smallest_enough(losses):\n"
        "    best = min(np.mean(of_seeds) for of_seeds in losses.values())\n"
        "    return min(rank for rank in losses if np.mean(losses[rank]) <= 1.05 * best)": False,
    },
    "cost_of_rank": {
        "def cost_of_rank(config, targets):\n"
        "    from loralab.check.ex3 import peft_count\n"
        "    return peft_count(config, targets)": True,
        "def cost_of_rank(config, targets):\n"
        "    h, m = config.hidden_size, config.intermediate_size\n"
        "    return config.num_hidden_layers * sum(h + (h if t in ATTENTION else m) for t in targets)": False,
    },
    "rank_for": {
        "def rank_for(config, targets, budget):\n    return max(1, budget // cost_of_rank(config, targets))": False,
        "def rank_for(config, targets, budget):\n"
        "    sizes = {r: abs(r * cost_of_rank(config, targets) - budget) for r in range(1, 9000)}\n"
        "    return min(sizes, key=sizes.get)": True,
    },
    "carried": {
        "def carried(losses, statements):\n"
        "    return [bool(np.mean(losses[a]) < np.mean(losses[b])) for a, b in statements]": False,
        "def carried(losses, statements):\n"
        "    intervals = [paired_interval(losses[b], losses[a]) for a, b in statements]\n"
        "    return np.array([low > 0 for _, low, _ in intervals])": True,
    },
}
CASES = [(name, source, is_right) for name, sources in OTHERS.items() for source, is_right in sources.items()]


@pytest.mark.parametrize(
    ("name", "source", "is_right"), CASES, ids=[f"{case[0]}-{'right' if case[2] else 'wrong'}" for case in CASES]
)
def test_fresh_inputs_tell_right_functions_from_typical_wrong_ones(calls, name, source, is_right):
    exercise = next(one for one in EXERCISES.values() if name in one.functions)
    changed = defined(exercise)
    exec("import numpy as np\n" + source, changed)
    asked = [calls(exercise, seed) for seed in range(4)]
    found = [compare(exercise, one, answers(one, changed)) for one in asked]
    assert all(right(outcomes)[name] for outcomes in found) is is_right


@pytest.mark.parametrize(
    "content", [None, b"", b"[", b"[" * 10**5, b"\xff", b"5", b"[{}]", b'[{"value": 1}]', b"[5, 6]"]
)
def test_what_is_no_list_of_answers_earns_nothing(calls, content):
    found = compare(EX1, calls(EX1), content)
    assert right(found) == dict.fromkeys(EX1.functions, False)
    assert {outcome.why for outcome in found} == {NOT_CALLED}


def test_a_nested_answer_stops_nothing(calls):
    """Of every depth up to the one at which JSON is no longer read."""
    exercise = EXERCISES["ex5_low_rank_limits"]
    asked = calls(exercise)
    for depth in range(50, 1_000, 50):
        nested = b"[" * depth + b"]" * depth
        content = b"[" + b",".join([b'{"value": ' + nested + b"}"] * len(asked)) + b"]"
        assert right(compare(exercise, asked, content)) == dict.fromkeys(exercise.functions, False)


VARIANTS = [
    case for case in HONEST if case.kind == "code" and case.name.startswith(("loss", "layer", "whole-conversation"))
]


@pytest.mark.parametrize("case", VARIANTS, ids=lambda case: case.name)
def test_other_ways_to_write_a_right_solution_are_right(calls, case, tmp_path):
    from tests.submissions.case import Parts

    class Here(Parts):
        def run(self, folder, owner):
            return folder

    case.build(tmp_path, Here(tmp_path, tmp_path, tmp_path))
    sources = {cell.id: cell.source for cell in nbformat.read(tmp_path / f"{EX1.id}.ipynb", as_version=4).cells}
    functions = defined(EX1, **{name: sources[name] for name in ("task1", "task2", "task5")})
    asked = calls(EX1)
    found = compare(EX1, asked, answers(asked, functions))
    assert all(right(found).values()), found


# Other ways to write exercises 4 and 5, right and wrong.
MERGE = "def merge_weight(linear, a, b, scaling):\n    import torch\n    from bitsandbytes.functional import dequantize_4bit\n"
DEQUANTISED = "dequantize_4bit(linear.weight, linear.weight.quant_state)"
WRITTEN = {
    "merge by its outputs": (
        f"{MERGE}    eye = torch.eye(linear.in_features)\n"
        f"    return ({DEQUANTISED}.float() @ eye.T + scaling * (eye @ a.T @ b.T).T)",
        True,
    ),
    "merge with addmm": (f"{MERGE}    return torch.addmm({DEQUANTISED}.float(), b, a, alpha=scaling)", True),
    "merge in bf16": (f"{MERGE}    return ({DEQUANTISED} + (scaling * b @ a).bfloat16()).float()", False),
    "merge without the scale": (f"{MERGE}    return {DEQUANTISED} + b @ a", False),
    "merge into 4 bits": (
        f"{MERGE}    from bitsandbytes.functional import quantize_4bit\n"
        f"    packed, state = quantize_4bit({DEQUANTISED} + scaling * b @ a, quant_type='nf4')\n"
        "    return dequantize_4bit(packed, state)",
        False,
    ),
    "bits as a sum": (
        "def bits_per_weight(block, double=None):\n"
        "    return 4 + (32 / block if double is None else 8 / block + 32 / block / double)",
        True,
    ),
    "bits without the second scale": (
        "def bits_per_weight(block, double=None):\n    return 4 + (32 if double is None else 8) / block",
        False,
    ),
    "bytes from a model without weights": (
        "def model_bytes(config, bits):\n"
        "    import torch\n"
        "    from transformers import AutoModelForCausalLM\n"
        "    with torch.device('meta'):\n"
        "        model = AutoModelForCausalLM.from_config(config)\n"
        "    layers = [m for n, m in model.named_modules() if 'layers' in n and isinstance(m, torch.nn.Linear)]\n"
        "    linear = sum(layer.weight.numel() for layer in layers)\n"
        "    tables = {id(m.weight): m.weight.numel() for m in (model.lm_head, model.model.embed_tokens)}\n"
        "    return linear * bits / 8 + 2 * sum(tables.values())",
        True,
    ),
    "bytes with the embedding in 4 bits": (
        "def model_bytes(config, bits):\n    return config.vocab_size * config.hidden_size * bits / 8",
        False,
    ),
    "diagnosis by what the runs can do": (
        "def diagnose(record):\n"
        "    first, last = record.losses[0], record.loss_ends[1]\n"
        "    held_out = math.log(record.ppl_after)\n"
        "    if record.scores_after.ended == 0 and held_out > 10 * last and held_out < 1.5:\n"
        "        return 'end not learned'\n"
        "    return 'sound'",
        False,
    ),
    "diagnosis of one fault": ("def diagnose(record):\n    return 'sound'", False),
}


@pytest.mark.parametrize(("source", "is_right"), WRITTEN.values(), ids=WRITTEN)
def test_ways_to_write_exercises_4_and_5(calls, source, is_right):
    name = source[4 : source.index("(")]
    (exercise,) = (one for one in EXERCISES.values() if name in one.functions)
    functions = defined(exercise)
    scope = dict(functions)
    exec(source, scope)
    asked = calls(exercise)
    found = right(compare(exercise, asked, answers(asked, functions | {name: scope[name]})))
    assert found == dict.fromkeys(exercise.functions, True) | {name: is_right}


needs_bwrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
TASKS = """
import math, torch
def bits_stored(nll):
    print("x" * 10**5)
    return max(0.0, 122 - nll / math.log(2))
def share_of_gain(before, after, full):
    return 0.5
"""


@pytest.fixture
def sandboxed(base, calls, tmp_path):
    """Runs cells in the sandbox, and says what came of the functions that they define and how they ended."""

    def run(exercise, *sources):
        asked = calls(exercise)
        cells = [new_code_cell('BASE, SEED, RUNS = "auto", 0, "runs"', metadata={"tags": ["parameters"]})]
        notebook = new_notebook(cells=cells + [new_code_cell(source) for source in sources])
        told = Afterwards(SCRIPT, json.dumps([call.text for call in asked]))
        failure = ""
        try:
            execute_in_sandbox(notebook, tmp_path / "out", "homework", base, 0, Limits(wall=120), told)
        except NotebookFailed as problem:
            failure = str(problem)
        assert "afterwards" not in (tmp_path / "out" / "homework.ipynb").read_text()
        return {one.name: one for one in compare(exercise, asked, read_answers(tmp_path / "out"))}, failure

    return run


@needs_bwrap
@pytest.mark.parametrize("last", ["0", "1 / 0"], ids=["finished", "stopped"])
def test_in_the_sandbox_they_are_called_after_the_last_cell_or_where_it_stopped(sandboxed, last):
    found, failure = sandboxed(EXERCISES["ex5_low_rank_limits"], TASKS, last)
    assert [name for name, is_right in right(found.values()).items() if is_right] == ["bits_stored"]
    assert "NameError: name 'energy_shares' is not defined" in found["energy_shares"].why
    assert found["share_of_gain"].why.startswith("returned 0.5, not 0.")
    assert ("ZeroDivisionError" in failure) is (last == "1 / 0")


@needs_bwrap
def test_a_kernel_that_ends_itself_when_it_is_asked_has_finished_and_earns_nothing(sandboxed):
    found, failure = sandboxed(EX1, "def encode_pair(*_):\n    import os\n    os._exit(0)")
    assert failure == ""
    assert {one.why for one in found.values()} == {NOT_CALLED}
