"""The table of a run: one row per round, with density, test metric, early-stop step and the controls."""

from __future__ import annotations

from dataclasses import dataclass

from hf_lottery.layout import TICKET
from hf_lottery.results import formatting
from hf_lottery.results.diverged import summary
from hf_lottery.results.forgetting import FORGETTING, explained
from hf_lottery.results.results import Results
from hf_lottery.results.statistics import estimate


@dataclass(frozen=True)
class Cell:
    """A cell of a table: a value, and a detail (a range, an interval) that is shown smaller or in brackets."""

    value: str
    detail: str = ""

    def __str__(self) -> str:
        return formatting.in_brackets(self.value, self.detail)


def rows(results: Results, early_stop_metric: bool = True) -> tuple[list[str], list[list[Cell]]]:
    """(headings, one row per round): the one table that the terminal, the page and the card show.

    Values are means over replicates with min–max; a replicate's samples are averaged first. If any network diverged, a
    value that is not of all replicates says of how many it is. Where there were other learning rates than the recipe's
    own, the test metric says which one it was taken at. Forgetting is the ticket's, where it was measured.

    Args:
        results: the finished networks.
        early_stop_metric: add the test metric at the early-stop step.
    """
    metric, key, controls = results.metric, f"test_{results.metric}", results.controls()
    headings = ["round", "density", f"test {metric}", "early-stop step"]
    has_forgetting = results.has(FORGETTING)
    headings += [f"test {metric} there"] * early_stop_metric + [FORGETTING] * has_forgetting + controls

    count, some_diverged = len(results.replicates()), bool(results.diverged())

    def of_metric(key: str, round: int, control: str = TICKET) -> Cell:
        found, started = estimate(results.values(key, control, round).values()), results.select(control, round)
        n = f"n = {found.n} of {count}" if some_diverged and started and found.n < count else ""
        rate = results.learning_rate(control, round)
        at = "" if rate is None else f"lr {rate}"
        detail = ", ".join(filter(None, (formatting.value_range(found, metric), n, at)))
        return Cell(formatting.value(found.mean, metric), detail)

    def of_forgetting(round: int) -> Cell:
        found = estimate(results.values(FORGETTING, TICKET, round).values())
        n = f"n = {found.n} of {count}" if results.select(TICKET, round) and found.n < count else ""
        detail = ", ".join(filter(None, (formatting.nats_range(found), n)))
        return Cell(formatting.nats(found.mean), detail)

    def of_steps(round: int) -> Cell:
        found = estimate(results.values("early_stop_step", TICKET, round).values())
        return Cell(formatting.steps(found.mean), formatting.steps_range(found))

    body = [
        [
            Cell(str(round), "dense" if round == 0 else ""),
            Cell(formatting.percent(results.density(TICKET, round))),
            of_metric(key, round),
            of_steps(round),
            *([of_metric(f"early_stop_{key}", round)] if early_stop_metric else []),
            *([of_forgetting(round)] if has_forgetting else []),
            *(of_metric(key, round, control) for control in controls),
        ]
        for round in sorted({line["round"] for line in results.lines})
    ]
    return headings, body


def caption(results: Results) -> str:
    """What the numbers of the table are, in one line; and what diverged."""
    count = len(results.replicates())
    if count == 1:
        numbers = "1 replicate. Density is counted from the mask; a control's samples are averaged."
    else:
        numbers = (
            f"Mean over {count} replicates (min–max). Density is counted from the mask; "
            "a control's samples are averaged within a replicate first."
        )
    return " ".join(
        filter(None, (numbers, _learning_rates(results), explained(results.lines), summary(results.lines)))
    )


def _learning_rates(results: Results) -> str:
    """What "lr" in the table is; empty where every network has the recipe's own learning rate."""
    found = {group: choice for group, choice in results.choices.items() if results.learning_rate(*group) is not None}
    if not found:
        return ""
    names, one = dict.fromkeys(control for control, _ in found), next(iter(found.values()))
    several = any(len(choice.tried) > 1 for choice in found.values())
    best = f", of those tried the one with the best mean {one.measure} at the end of training" if several else ""
    rest = "" if TICKET in names else f" All but {' and '.join(names)} have the recipe's own, {one.own}."
    return f"lr: learning rate{best}.{rest}"
