"""The parts of README.md that have measured numbers, from the lines in docs/results."""

from __future__ import annotations

import textwrap
from pathlib import Path

from write_results import command

from hf_lottery.layout import TICKET
from hf_lottery.report.page import markdown_table
from hf_lottery.results import formatting
from hf_lottery.results.headline import headline
from hf_lottery.results.results import Results, read_results
from hf_lottery.results.statistics import estimate, paired_difference
from hf_lottery.results.table import rows
from hf_lottery.results.verdict import verdict

WIDTH = 119
LENET = "mnist-lenet-300-100-10000-steps"
SHOWN_IN_QUICKSTART = (0, 3, 5, 7, 10)
SHOWN_ROUNDS = (0, 3, 5, 7, 8, 12, 15)


def quickstart(lines: Path) -> str:
    """How the quickstart ends, with some of its rounds."""
    results = read_results(lines / "quickstart")
    headings, body = rows(results, early_stop_metric=False)
    shown = [row for row in body if int(row[0].value) in SHOWN_IN_QUICKSTART]
    texts = [[name.replace("_", " ") for name in headings], *([str(cell) for cell in row] for row in shown)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(headings))]
    table = "\n".join("   ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in texts)
    left_out = ", ".join(row[0].value for row in body if row not in shown)
    count = results.lines[0].get("test_examples", 500)
    return "\n\n".join(
        [
            _wrapped(
                f"The quickstart ends with this (one replicate, {count} test images, so a point is {count // 100} "
                f"images; rounds {left_out} are left out here):"
            ),
            f"```text\n{table}\n\n{_wrapped(headline(verdict(results)))}\n```",
        ]
    )


def measured(lines: Path) -> str:
    """The results of larger runs."""
    parts = [
        *_lenet(lines / LENET),
        "## Beyond MNIST",
        "Shortened to what two CPU cores allow; commands, every round and intervals are in "
        "[docs/results.md](docs/results.md).",
        *_smollm2(lines / "smollm2-lora"),
        _updates(lines),
        _conv(lines / "cifar10-conv-2"),
        _minilm(lines / "imdb-minilm"),
        _transformer(lines / "imdb-transformer"),
        _criteria(lines / "criteria"),
    ]
    return "\n\n".join(part if part.startswith(("|", "```", "#", "![")) else _wrapped(part) for part in parts)


def _lenet(folder: Path) -> list[str]:
    results = read_results(folder)
    steps = _steps(results)
    controls = results.controls()
    headings = ["density", "ticket", *map(_words, controls), "early-stop step: ticket", *map(_words, controls)]
    body = []
    for round in (number for number in SHOWN_ROUNDS if number in results.rounds()):
        arms = [TICKET, *controls]
        accuracies = [_accuracy(results, arm, round) for arm in arms]
        stops = [formatting.steps(_mean(results, "early_stop_step", arm, round)) for arm in arms]
        body.append([_density(results, round), *accuracies, *stops])
    return [
        "## LeNet-300-100 on MNIST",
        f"The paper's experiment, shortened from 50,000 steps to {steps:,} for two CPU cores:",
        f"```bash\n{command(folder)}\n```",
        f"Means over {len(results.replicates())} replicates; test {results.metric} after all {steps:,} steps, and the "
        "early-stop step (of minimum validation loss):",
        markdown_table(headings, body),
        f"The verdict: *{headline(verdict(results))}* At the early-stop step: "
        f"*{headline(verdict(results, early_stop=True))}* All rounds, intervals and the paper's figures: "
        "[docs/results.md](docs/results.md).",
        f"![test accuracy against density](docs/results/{folder.name}-accuracy.png)",
    ]


def _smollm2(folder: Path) -> list[str]:
    results = read_results(folder)
    controls = results.controls()
    body = [
        [
            _density(results, r),
            *(formatting.value(_test(results, arm, r), results.metric) for arm in (TICKET, *controls)),
        ]
        for r in results.rounds()
    ]
    steps = _steps(results)
    return [
        f"**SmolLM2-135M, LoRA on instructions** (r=16 on q_proj and v_proj, {steps} steps, "
        f"{len(results.replicates())} replicates; perplexity of held-out answers, lower is better):",
        markdown_table(["adapter kept", "ticket", *map(_words, controls)], body),
        f"```bash\n{command(folder)}\n```",
        "A ticket of half the ranks (`lottery.pattern=rank`) becomes a PEFT adapter of half the size, which plain "
        "PEFT loads: `hf-lottery export OUT/replicate-0/round-01 --to rank-adapter`.",
    ]


def _updates(lines: Path) -> str:
    ticket, lora = read_results(lines / "smollm2-lota-10"), read_results(lines / "smollm2-lora-r184")
    steps = ticket.select(TICKET, 1)[0]["steps"]
    shown = {arm: f"{_test(ticket, *arm):.3f}" for arm in ((TICKET, 1), ("random_mask", 1), (TICKET, 0))}
    return (
        "A ticket may also be over the update to the base weights, which then stay at their pretrained value "
        f"(`smollm2/135m-lota`). After {steps} steps at untuned learning rates, one replicate: the "
        f"{_density(ticket, 1)} of the weights that moved most reach a perplexity of {shown[TICKET, 1]} (a random "
        f"mask: {shown['random_mask', 1]}; all of them: {shown[TICKET, 0]}), and a LoRA of as many weights "
        f"{_test(lora, TICKET, 0):.3f}."
    )


def _conv(folder: Path) -> str:
    results = read_results(folder)
    steps = _steps(results)
    rounds = [number for number in results.rounds() if number]
    reached = ", ".join(f"{_accuracy(results, TICKET, r)} at {_density(results, r)} density" for r in rounds)
    last = max(number for number in rounds if results.select("random_reinit", number))
    key = f"test_{results.metric}"
    gap = paired_difference(results.values(key, TICKET, last), results.values(key, "random_reinit", last))
    return (
        f"**Conv-2 on CIFAR-10** ({steps} steps instead of 20,000, {len(results.replicates())} replicates): "
        f"{_accuracy(results, TICKET, 0)} dense, {reached}, where the re-initialised network has "
        f"{_accuracy(results, 'random_reinit', last)}, a difference of "
        f"{formatting.with_interval(gap, results.metric)}. {_verdict(results)}"
    )


def _minilm(folder: Path) -> str:
    results = read_results(folder)
    steps, last = _steps(results), results.rounds()[-1]
    return (
        f"**MiniLM on IMDb** (pretrained; {steps} steps, {len(results.replicates())} replicates, "
        f"{_density(results, last)} of the encoder's linear weights kept): {_accuracy(results, TICKET, 0)} dense, "
        f"{_accuracy(results, TICKET, last)} the ticket, {_accuracy(results, 'random_mask', last)} a random mask, "
        f"{_accuracy(results, 'random_reinit', last)} the ticket's mask over random weights. {_verdict(results)}"
    )


def _transformer(folder: Path) -> str:
    results = read_results(folder)
    last = max(number for number in results.rounds() if results.select("random_mask", number))
    return (
        f"**The small Transformer on IMDb** (embeddings not pruned, {len(results.replicates())} replicates): "
        f"{_accuracy(results, TICKET, 0)} dense; at {_density(results, last)} {_accuracy(results, TICKET, last)} the "
        f"ticket, {_accuracy(results, 'random_mask', last)} a random mask and "
        f"{_accuracy(results, 'random_reinit', last)} random weights. {_verdict(results)}"
    )


def _criteria(folder: Path) -> str:
    results = read_results(folder)
    last = results.rounds()[-1]
    names = [name for name in results.controls() if name != "one_shot"]
    before = sorted(names, key=lambda name: _test(results, name, last))
    return (
        f"**Criteria before training** (LeNet-300-100 at {formatting.percent(results.density('random', last))} "
        f"density, {len(results.replicates())} replicates): "
        f"{', '.join(f'{name} {_accuracy(results, name, last)}' for name in before)}; magnitude after training "
        f"{_accuracy(results, 'one_shot', last)} in one pruning, {_accuracy(results, TICKET, last)} in {last} rounds."
    )


def _steps(results: Results) -> int:
    (steps,) = {line["steps"] for line in results.lines}
    return steps


def _verdict(results: Results) -> str:
    return f"The verdict: *{headline(verdict(results))}*"


def _mean(results: Results, key: str, control: str, round: int) -> float:
    return estimate(results.values(key, control, round).values()).mean


def _test(results: Results, control: str, round: int) -> float:
    return _mean(results, f"test_{results.metric}", control, round)


def _accuracy(results: Results, control: str, round: int) -> str:
    found = _test(results, control, round)
    return formatting.NOTHING if found != found else formatting.value(found, results.metric)


def _density(results: Results, round: int) -> str:
    return formatting.percent(results.density(TICKET, round)) + (" (dense)" if round == 0 else "")


def _words(control: str) -> str:
    return {"random_reinit": "random re-initialisation"}.get(control, control.replace("_", " "))


def _wrapped(paragraph: str) -> str:
    return "\n".join(textwrap.wrap(paragraph, WIDTH, break_long_words=False, break_on_hyphens=False))


PARTS = {"quickstart": quickstart, "measured": measured}
