"""The model card of a ticket: what was found, how to load it, its results and controls, how to find it again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from hf_lottery.layout import RECIPE_FILE, TICKET
from hf_lottery.pruning.coverage import Coverage
from hf_lottery.results import formatting
from hf_lottery.results.headline import headline
from hf_lottery.results.metric import Metric
from hf_lottery.results.results import Results
from hf_lottery.results.statistics import estimate
from hf_lottery.results.table import caption, rows
from hf_lottery.results.verdict import Finding, Verdict, verdict
from hf_lottery.task_records import TASKS, UNKNOWN
from hf_lottery.ticket.card_code import loading, model_type
from hf_lottery.ticket.card_merge import merge_card

TAGS = ["lottery-ticket", "lottery-ticket-hypothesis", "pruning", "sparse", "hf_lottery"]


def ticket_card(
    info: Mapping[str, Any],
    counts: Mapping[str, tuple[int, int]],
    *,
    rewind_step: int,
    fingerprint: str,
    files: Sequence[str] = (),
    repo_id: str | None = None,
    existing: str | None = None,
) -> str:
    """README.md of a ticket: metadata, and a part between two marks. The user's text outside of the marks is kept.

    Args:
        info: the ticket's `info`.
        counts: parameter name -> (kept, all), counted from the mask.
        rewind_step: k.
        fingerprint: of the mask; with it, the ticket's round is found in the results.
        files: names of the files in the ticket's folder; the card shows the plots, and how to load a trained network.
        repo_id: where the ticket is published; None: the card says `you/name`.
        existing: the text of the README.md that is there.

    Raises:
        TicketError: as in `merge_card`.
    """
    repo_id = repo_id or "you/name"
    results = Results([dict(line) for line in info.get("results", [])])
    round = _round(results, fingerprint)
    data = _metadata(info, results, round, repo_id).to_dict()
    body = "\n\n".join(
        [
            *_found(info, counts, rewind_step, results),
            *_replicate(results, fingerprint),
            *_learning_rate(results, round),
            *loading(info, repo_id, files),
            *_evidence(results, round, files),
            *_layers(info, counts),
            *_again(info),
        ]
    )
    return merge_card(existing, data, body)


def _round(results: Results, fingerprint: str) -> int | None:
    """The round whose mask the ticket has; None if no line of the results has that mask."""
    own = (line for line in results.lines if line["control"] == TICKET and line.get("fingerprint") == fingerprint)
    return next((line["round"] for line in own), None)


def _replicate(results: Results, fingerprint: str) -> list[str]:
    """If some network diverged: of which replicate the ticket is."""
    own = next((n for n in results.lines if n["control"] == TICKET and n.get("fingerprint") == fingerprint), None)
    return [f"The ticket is that of replicate {own['replicate']}."] if own and results.diverged() else []


def _learning_rate(results: Results, round: int | None) -> list[str]:
    """If the ticket's results are not at the recipe's own learning rate: at which."""
    choice = results.choices.get((TICKET, round))
    if choice is None or choice.rate == choice.own:
        return []
    return [
        f"Its results are of networks trained at learning rate {choice.rate}, the best of those tried by mean "
        f"{choice.measure}. The search that found its mask had the recipe's own, {choice.own}."
    ]


def _metadata(info: Mapping[str, Any], results: Results, round: int | None, repo_id: str) -> ModelCardData:
    fields: dict[str, Any] = {"library_name": "hf_lottery", "tags": TAGS}
    fields |= {key: info[key] for key in ("license", "base_model", "datasets") if info.get(key)}
    if round is not None:
        fields["metrics"] = [results.metric.name]
        found = _eval_results(info, results, round)
        fields |= {"model_name": repo_id.split("/")[-1], "eval_results": found} if found else {}
    return ModelCardData(**fields)


def _eval_results(info: Mapping[str, Any], results: Results, round: int) -> list[EvalResult]:
    found = estimate(results.values(f"test_{results.metric}", TICKET, round).values())
    if not found.n:
        return []
    dataset = (info.get("datasets") or ["unknown"])[0]
    name = f"test {results.metric} at {formatting.percent(results.density(TICKET, round))} density"
    return [
        EvalResult(
            task_type=TASKS.get(info.get("task"), UNKNOWN).pipeline_tag,
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split="test",
            metric_type=results.metric.name,
            metric_value=found.mean,
            metric_name=f"{name}, mean over {found.n} replicate{'s' if found.n != 1 else ''}",
        )
    ]


def _found(
    info: Mapping[str, Any], counts: Mapping[str, tuple[int, int]], rewind_step: int, results: Results
) -> list[str]:
    kept, total = sum(k for k, _ in counts.values()), sum(n for _, n in counts.values())
    density = formatting.percent(kept / total) if total else "0%"
    pruned = "is zero" if info.get("pruned_becomes", "zero") == "zero" else "stays at its rewind value"
    parts = [
        f"# A lottery ticket of {_network(info)}: {density} of its weights",
        f"{kept:,} of {total:,} prunable weights are kept, at their values of step {rewind_step}; a pruned weight "
        f"{pruned}.{_how(info)}",
    ]
    parts += _coverage(info)
    if len(results.rounds()) > 1:
        parts.append(f"**{headline(verdict(results))}**")
    return parts


def _coverage(info: Mapping[str, Any]) -> list[str]:
    """What the mask is over, and that it starts from a sparse model."""
    text = ""
    if info.get("coverage"):
        covered = str(Coverage.from_dict(info["coverage"]))
        text = f"{covered[0].upper()}{covered[1:]}."
    if info.get("start_from", "dense") == "zeros":
        text += " The search started from a sparse model: its zeros are pruned from round 0 on."
    return [text.strip()] if text else []


def _network(info: Mapping[str, Any]) -> str:
    """The base model or the type of network, such as "a `lenet` network"."""
    if info.get("base_model"):
        return f"[{info['base_model']}](https://huggingface.co/{info['base_model']})"
    return f"a `{model_type(info)}` network" if model_type(info) else "a network"


def _how(info: Mapping[str, Any]) -> str:
    """A sentence on how the ticket was found, with a space before it."""
    how = [f"{key} `{info[key]}`" for key in ("criterion", "scope", "pattern") if key in info]
    how += [f"{key} `fresh`" for key in ("rewind_optimizer", "data_order") if info.get(key) == "fresh"]
    how += [f"{info['num_rounds']} rounds"] if "num_rounds" in info else []
    return f" Found with {', '.join(how)}." if how else ""


def _evidence(results: Results, round: int | None, files: Sequence[str]) -> list[str]:
    plots = [f"![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in files if name.endswith(".png")]
    if not results.lines:
        return plots
    parts = ["## Evidence", caption(results), _table(*rows(results))]
    parts += _against_controls(verdict(results), round)
    return parts + plots


def _against_controls(found: Verdict, round: int | None) -> list[str]:
    """The ticket compared with the dense network and with its controls; empty for a ticket that is the dense one."""
    here = next((one for one in found.rounds if one.round == round), None)
    if here is None:
        return []
    body = [["dense", _finding(here.matching, found.metric), f"matching: {here.matching.answer}"]]
    for control, finding in here.better.items():
        body.append([control, _finding(finding, found.metric), f"better: {finding.answer}"])
    margin = formatting.difference(found.tolerance, found.metric, signed=False)
    return [
        f"The ticket at {formatting.percent(here.density)} density against dense and its controls: the mean "
        f"difference of test {found.metric} over paired replicates, + in the ticket's favour, with its 95% Student-t "
        "interval. "
        f"Matching: within {margin} of dense.",
        _table(["against", f"difference of test {found.metric}", "finding"], body),
    ]


def _finding(finding: Finding, metric: Metric) -> str:
    if not finding.difference.n:
        return formatting.NOTHING
    return f"{formatting.with_interval(finding.difference, metric)}, n = {finding.difference.n}"


def _layers(info: Mapping[str, Any], counts: Mapping[str, tuple[int, int]]) -> list[str]:
    of_model = list((info.get("densities") or [{}])[0])  # in the model's order, which a stored mask does not have
    places = {name: place for place, name in enumerate(of_model)}
    body = [
        [f"`{name}`", f"{kept:,}", f"{n:,}", formatting.percent(kept / n if n else 0)]
        for name, (kept, n) in sorted(counts.items(), key=lambda item: (places.get(item[0], len(places)), item[0]))
    ]
    table = _table(["tensor", "kept", "of", "density"], body)
    return ["## Density per layer", f"<details><summary>{len(body)} tensors</summary>\n\n{table}\n\n</details>"]


def _again(info: Mapping[str, Any]) -> list[str]:
    parts = ["## Find it again"]
    facts = []
    if info.get("base_model"):
        facts.append(f"base model `{info['base_model']}` at revision `{info.get('base_revision')}`")
    if info.get("seeds"):
        facts.append(f"seeds {', '.join(map(str, info['seeds']))}")
    if info.get("versions"):
        facts.append(", ".join(f"{name} {version}" for name, version in info["versions"].items()))
    if facts:
        parts.append("; ".join(facts) + ".")
    recipe = info.get("recipe")
    if recipe:
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", recipe)), default=0))
        parts.append(f"`hf-lottery run {RECIPE_FILE}`, where {RECIPE_FILE} is:")
        parts.append(f"{fence}yaml\n{recipe.rstrip()}\n{fence}")
    return parts if len(parts) > 1 else []


def _table(headings: list[str], body: list[list[str]]) -> str:
    lines = [headings, [":---", *["---:"] * (len(headings) - 1)], *body]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |" for row in lines)
