"""The results of all benchmarks on one page, `docs/benchmarks.md`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from benchmarks.measured import RESULTS
from loralab.fit import Settings
from loralab.hardware import WIDE
from loralab.plots import COLOURS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
FIGURES = ROOT / "docs" / "benchmarks"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines] + [""]


def figure(name: str, alternative: str) -> list[str]:
    """Save the current figure; return the line of Markdown that shows it."""
    FIGURES.mkdir(parents=True, exist_ok=True)
    plt.savefig(FIGURES / f"{name}.png", dpi=130, facecolor="white")
    plt.close()
    return [f"![{alternative}](benchmarks/{name}.png)", ""]


def power(exponent: float) -> str:
    """Format an exponent with two digits and no sign at 0."""
    return f"{round(exponent, 2) + 0:.2f}"


def origin(result: dict[str, Any], program: str) -> list[str]:
    """Return the line under a section: by which program, on what, when."""
    packages = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    return [f"*`python -m benchmarks.{program}`: {result['hardware']}; {packages}; {result['measured'][:10]}.*", ""]


def faster(training: dict[str, Any]) -> list[str]:
    """Return what each setting on the way from the source's recipe to loralab's saves, as a table."""
    recipes, steps = training["recipes"], training["each_step_is_faster_by"]
    start = recipes["source"]["tokens_per_second"]
    rows = [
        (of["note"], f"×{steps[name]:.2f}" if name in steps else "", f"×{of['tokens_per_second'] / start:.1f}")
        for name, of in recipes.items()
        if name in steps or name == "source"
    ]
    return table(("setting, each on top of those above", "faster by", "in all"), rows)


def compared(training: dict[str, Any]) -> str:
    """Say in a sentence how `loralab.train` compares with the source's recipe and with TRL."""
    recipes = training["recipes"]
    ours = recipes["loralab"]
    others = " and ".join(
        f"{recipes[name]['loralab_is_faster_by']:.1f} times as fast as {what} (held-out perplexity {recipes[name]['ppl']:.2f})"
        for name, what in {"source": "the source's recipe", "TRL": "TRL's `SFTTrainer` with its defaults"}.items()
        if name in recipes
    )
    return f"`loralab.train` is {others}, at perplexity {ours['ppl']:.2f}: {_of_rounds(training)}, on a CPU."


def _of_rounds(training: dict[str, Any]) -> str:
    rounds = len(training["rounds"])
    return "one round" if rounds == 1 else f"medians over {rounds} rounds"


def _fp32(training: dict[str, Any]) -> list[str]:
    """Return why recipes in bf16 may be faster than loralab, where it does not take them."""
    if "bf16 matmuls" in training["each_step_is_faster_by"]:
        return []
    return [
        f"Models narrower than {WIDE} hidden units are trained in fp32 on every CPU, so that the embedded base gives the "
        "same numbers on all of them. On a CPU that multiplies faster in bf16, that costs speed.",
        "",
    ]


def of_training(result: dict[str, Any]) -> list[str]:
    """Return tokens per second of every recipe, with the range over the rounds, and their perplexities."""
    epochs = f"{result['epochs']} epoch" + "s" * (result["epochs"] > 1)
    base = result.get("base", "embedded")  # results of the first edition name neither base nor share
    name = "training" if base == "embedded" else f"training-{base}"
    recipes = dict(sorted(result["recipes"].items(), key=lambda item: item[1]["tokens_per_second"]))
    labels, of = list(recipes), list(recipes.values())
    axes = plt.subplots(figsize=(8, 4.6), layout="constrained")[1]
    speeds = [one["tokens_per_second"] for one in of]
    reach = [
        [one["tokens_per_second"] - one["lowest"] for one in of],
        [one["highest"] - one["tokens_per_second"] for one in of],
    ]
    colours = [COLOURS[1] if label == "loralab" else COLOURS[0] for label in labels]
    axes.barh(labels, speeds, xerr=reach, color=colours, ecolor="#444444", capsize=3)
    axes.set(xlabel="useful tokens per second (padding not counted)", title=f"Training {base}, r = 16 on q, k, v, o")
    axes.grid(axis="x", alpha=0.3)
    rows = [
        (
            f"**{label}**" if label == "loralab" else label,
            one["note"],
            f"{one['tokens_per_second']:,.0f}",
            f"{one['lowest']:,.0f} to {one['highest']:,.0f}",
            f"{one['loralab_is_faster_by']:.2f}",
            f"{one['matmul_share']:.0%}" if "matmul_share" in one else "",
            f"{one['ppl']:.2f}",
        )
        for label, one in reversed(recipes.items())
    ]
    return [
        f"## Training {base}",
        "",
        f"The same adapter on the same {result['pairs']} pairs, {epochs}, 16 pairs per step, the recipes "
        f"alternating ({_of_rounds(result)}), each run in a process of its own. loralab trains with nothing "
        "but settings of transformers, a data collator and, where it multiplies in bf16, frozen weights that are cast before "
        "the first step. *Matmul share*: useful arithmetic (4 FLOPs per parameter and token) against the rate of the model's own matmuls, measured by the same process.",
        "",
        *figure(name, f"Tokens per second of each recipe on {base}"),
        *table(("recipe", "what it is", "tokens/s", "range", "loralab is faster by", "matmul share", "held-out PPL"), rows),
        *_fp32(result),
        "What made it faster:",
        "",
        *faster(result),
        compared(result),
        "",
        *origin(result, "training" if base == "embedded" else f"training --base {base}"),
    ]  # fmt: skip


def of_dropout(result: dict[str, Any]) -> list[str]:
    """Return what LoRA's dropout costs, and what it brings."""
    mean, low, high = result["exact_without_minus_with"]
    rows = [
        (
            dropout,
            f"{statistics.fmean(run['exact'] for run in runs):.3f}",
            f"{statistics.geometric_mean(run['ppl'] for run in runs):.4f}",
        )
        for dropout, runs in result["runs"].items()
    ]
    seeds = len(next(iter(result["runs"].values())))
    return [
        "## Dropout",
        "",
        f"Exercise 1's training on the embedded base, {seeds} pairs of runs with the same seed, {result['messages']} fresh "
        f"messages each. Exact match without dropout minus with it: {mean:+.3f} (95 % interval {low:+.3f} to {high:+.3f}). "
        f"Without dropout a training run is {result['faster_without_by']:.2f} times as fast.",
        "",
        *table(("lora_dropout", "exact match", "PPL"), rows),
        *origin(result, "dropout"),
    ]  # fmt: skip


def of_waiting(result: dict[str, Any]) -> list[str]:
    """Return what spinning threads cost where two processes train side by side."""
    rows = [(policy, f"×{ratio:.1f}") for policy, ratio in result["two_against_alone"].items()]
    return [
        "## Two processes on the same cores",
        "",
        "Threads of OpenMP that wait for work *spin* by default; with `OMP_WAIT_POLICY=PASSIVE`, which `import loralab` sets, "
        f"they *sleep*. A training run alone then takes {result['sleep_against_spin_alone']:.2f} times as long; two that shared "
        "the processors fairly would take twice as long as one.",
        "",
        *table(("waiting threads", "two side by side, against one alone"), rows),
        *origin(result, "wait_policy"),
    ]  # fmt: skip


def of_cost(result: dict[str, Any]) -> list[str]:
    """Return time and memory against pairs, length and rank, with the fitted exponents."""
    grown = result["grown"]
    for axes, (what, of) in zip(
        plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")[1], grown.items(), strict=True
    ):
        low, high = zip(*of["range"], strict=True)
        axes.fill_between(of["sizes"], low, high, color=COLOURS[0], alpha=0.2)
        label = f"seconds ∝ {what}$^{{{power(of['time_exponent'])}}}$"
        axes.plot(of["sizes"], of["seconds"], "o-", color=COLOURS[0], label=label)
        label = f"MB ∝ {what}$^{{{power(of['memory_exponent'])}}}$"
        axes.plot(of["sizes"], [size / 1e6 for size in of["bytes"]], "s-", color=COLOURS[1], label=label)
        axes.set(xscale="log", yscale="log", xlabel=what)
        axes.set_xticks(of["sizes"], map(str, of["sizes"]))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    usual = ", ".join(
        f"{size} {what}" if what == "pairs" else f"{what} {size}" for what, size in result["usual"].items()
    )
    rows = [(what, power(of["time_exponent"]), power(of["memory_exponent"])) for what, of in grown.items()]
    return [
        "## Cost against size",
        "",
        f"One of the three grows, the others stay as usual ({usual}; batches of {result['batch']}). An exponent of 1 is in "
        "proportion, 0 is not at all. Memory is what torch had handed out at the peak. Above 256 tokens a CPU that trains in "
        "bf16 uses sdpa's attention instead of the written-out one.",
        "",
        *figure("cost", "Seconds and megabytes against pairs, length and rank"),
        *table(("what grows", "exponent of time", "exponent of memory"), rows),
        *origin(result, "cost"),
    ]  # fmt: skip


def of_start(result: dict[str, Any]) -> list[str]:
    """Return where the seconds from `make grade` to the first verdict go."""
    axes = plt.subplots(figsize=(8, 1.9), layout="constrained")[1]
    left = 0.0
    for (part, seconds), colour in zip(result["parts"].items(), plt.get_cmap("tab10").colors, strict=False):
        axes.barh(0, seconds, left=left, color=colour, label=f"{part}: {seconds:.1f} s")
        left += seconds
    axes.set(yticks=[], xlabel="seconds")
    axes.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8)
    imports, verdict = result["imports"], result["to_the_first_verdict"]
    rows = [
        (
            "`import loralab`, with garbage collection off",
            f"{imports['collecting']['median']:.1f} s to {imports['not_collecting']['median']:.1f} s",
            f"×{imports['collecting']['median'] / imports['not_collecting']['median']:.2f}",
        ),
        (
            "`make grade` of one exercise, the processes' imports beside the command's own",
            f"{verdict['one_after_another']['median']:.1f} s to {verdict['side_by_side']['median']:.1f} s",
            f"×{verdict['one_after_another']['median'] / verdict['side_by_side']['median']:.2f}",
        ),
    ]
    return [
        "## From `make grade` to the first verdict",
        "",
        "Exercise 1's solution, piece by piece. Every notebook has a kernel of its own, and pays for its imports.",
        "",
        *figure("start_up", "Seconds of each part of a grading"),
        *table(("what was done", "from, to", "faster by"), rows),
        *origin(result, "start_up"),
    ]  # fmt: skip


def of_grading(result: dict[str, Any]) -> list[str]:
    """Return the class: against nbgrader, over workers, and its memory."""
    rows = [
        (name, f"{seconds:.0f} s", f"×{result['times_as_fast'][name]:.2f}")
        for name, seconds in result["seconds"].items()
    ]
    workers = [(name, f"{seconds:.0f} s") for name, seconds in result.get("seconds_by_workers", {}).items()]
    quarters = ", ".join(f"{size / 1e9:.2f}" for size in result["memory"]["peak_bytes_by_quarter"])
    return [
        "## Grading a class",
        "",
        f"The same {result['hand_ins']} submissions of exercise 1, one grader after the other. `nbgrader autograde` runs "
        "one notebook after the other, unprotected; the re-executing grader runs two at a time, each in a sandbox of its "
        "own, and also measures each adapter on 300 held-out pairs.",
        "",
        *table(("grader", "time", "as fast as nbgrader"), rows),
        *(["The artifacts alone, by workers:", "", *table(("workers", "time"), workers)] if workers else []),
        f"Over {result['memory']['hand_ins']} submissions the peak memory of all its processes, quarter by quarter: {quarters} GB.",
        "",
        *origin(result, "grading"),
    ]  # fmt: skip


def of_memory(result: dict[str, Any]) -> list[str]:
    """Return the estimate of `loralab fit` beside what trainings on a CPU took."""
    rows = [
        (
            case["model"],
            f"{case['method']}, r = {case['rank']} on {case['targets']}, {case['batch']} × {case['length']}"
            + ("" if case["checkpointing"] else ", no checkpointing"),
            f"{case['estimate'] / 1e9:.2f}",
            f"{case['allocated'] / 1e9:.2f}",
            f"{case['allocated_percent']:+.1f} %",
        )
        for case in result["cases"]
    ]
    return [
        "## Will it fit: the estimate against trainings",
        "",
        "Random weights of true shapes, trained for a few steps on a CPU in bf16 as on a GPU; *allocated* is what torch's "
        "allocator had handed out at the peak.",
        "",
        *table(("base", "training", "estimate, GB", "allocated, GB", "estimate is off by"), rows),
        *origin(result, "memory_cpu"),
    ]  # fmt: skip


def of_gpu(result: dict[str, Any]) -> list[str]:
    """Return the estimate of `loralab fit` beside what trainings on a GPU took that may have no more than a T4 has."""
    rows = [
        (
            case["model"],
            str(Settings(**case["settings"])),
            f"{case['estimate'] / 1e9:.2f}",
            f"{case['allocated'] / 1e9:.2f}" if "allocated" in case else "",
            {True: "yes", False: "no", None: "failed"}[case["fitted"]],
            f"{case['deviation_percent']:+.1f} %" if case["fitted"] else "",
            f"{case['tokens_per_second']:.0f}" if case["fitted"] else "",
        )
        for case in result["cases"]
    ]
    head = ("base", "training", "estimate, GB", "allocated, GB", "fitted", "estimate is off by", "tokens/s")
    return [
        "## On a GPU",
        "",
        f"True shapes with random weights, held to {result['limit'] / 2**30:.2f} GiB, in fp16 as on a T4.",
        "",
        *table(head, rows),
        *origin(result, "memory_gpu"),
    ]


SECTIONS = {
    "training": of_training,
    "training-smollm2-135m": of_training,
    "dropout": of_dropout,
    "wait_policy": of_waiting,
    "cost": of_cost,
    "start_up": of_start,
    "grading": of_grading,
    "memory_cpu": of_memory,
    "memory_gpu": of_gpu,
}


def main() -> None:
    lines = [
        "# Benchmarks",
        "",
        "Every figure here comes from a program in `benchmarks/`; `make bench` runs them and writes this page. These "
        "machines are noisy: compare figures of one section with one another, and ratios rather than seconds.",
        "",
    ]
    for name, section in SECTIONS.items():
        if (RESULTS / f"{name}.json").exists():
            lines += section(json.loads((RESULTS / f"{name}.json").read_text("utf-8")))
    if not (RESULTS / "memory_gpu.json").exists():
        lines += ["## On a GPU", "", "Not yet measured. `python -m benchmarks.memory_gpu` is ready to run on one.", ""]
    PAGE.write_text("\n".join(lines).rstrip() + "\n", "utf-8")
    print(f"{PAGE.relative_to(ROOT)} is written")


if __name__ == "__main__":
    main()
