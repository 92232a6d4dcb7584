"""The model card of a ticket: what was found, how to load it, its controls, how to find it again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_lottery.layout import TICKET
from hf_lottery.results import formatting
from hf_lottery.results.headline import headline
from hf_lottery.results.metric import Metric
from hf_lottery.results.results import Results
from hf_lottery.results.statistics import estimate
from hf_lottery.results.table import caption, rows
from hf_lottery.results.verdict import Finding, Verdict, verdict
from hf_lottery.ticket.document import TicketError

BEGIN = "<!-- hf_lottery: from here to its end mark, this part is written anew by every save and push -->"
END = "<!-- hf_lottery: end -->"
TAGS = ["lottery-ticket", "lottery-ticket-hypothesis", "pruning", "sparse", "hf_lottery"]
# a ticket's task -> (the Auto class that builds its model, the Hub's name of the task)
AUTO_CLASS = {
    "image_classification": ("AutoModelForImageClassification", "image-classification"),
    "text_classification": ("AutoModelForSequenceClassification", "text-classification"),
    "causal_lm": ("AutoModelForCausalLM", "text-generation"),
    None: ("AutoModel", "other"),
}
_OUR_ARCHITECTURES = ("lenet", "conv-net", "cifar-resnet", "vgg", "small-transformer")


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
    """README.md of a ticket: metadata and a marked part that is ours; what a user wrote around it stays.

    Args:
        info: the ticket's `info`.
        counts: parameter name -> (kept, all), counted from the mask.
        rewind_step: k.
        fingerprint: of the mask; tells which round of the results the ticket is.
        files: names of the files in the ticket's folder; plots are shown, a model or an adapter is explained.
        repo_id: where the ticket is published; a placeholder without one.
        existing: the README that is there, whose own text and metadata are kept.

    Raises:
        TicketError: the metadata of `existing` is not YAML.
    """
    repo_id = repo_id or "you/name"
    results = Results([dict(line) for line in info.get("results", [])])
    round = _round(results, fingerprint)
    data = _metadata(info, results, round, repo_id).to_dict()
    body = "\n\n".join(
        [
            BEGIN,
            *_found(info, counts, rewind_step, results),
            *_loading(info, repo_id, files),
            *_evidence(results, round, files),
            *_layers(counts),
            *_again(info),
            END,
        ]
    )
    return _merge(existing, data, body)


def _merge(existing: str | None, data: dict[str, Any], body: str) -> str:
    try:
        existing = existing or ""
        if not re.match(r"\s*---\s*[\r\n]", existing):
            existing = "---\ntags: []\n---\n" + existing
        card = ModelCard(existing, ignore_metadata_errors=True)
        theirs = card.data.to_dict()
    except (ValueError, TypeError, yaml.YAMLError) as error:
        first = str(error).splitlines()[0]
        raise TicketError(
            f"README.md has metadata that cannot be read ({first}); put it right, or remove it"
        ) from None
    tags = theirs.get("tags") or []
    data["tags"] = list(dict.fromkeys([*([tags] if isinstance(tags, str) else tags), *data["tags"]]))
    if "license" in theirs:
        data["license"] = theirs["license"]
    begin = card.text.find(BEGIN)
    end = card.text.find(END, begin)
    if begin >= 0 and (end < 0 or 0 <= card.text.find(BEGIN, begin + 1) < end):
        raise TicketError(f"README.md has the line {BEGIN} without its {END}: put it back, or remove both")
    if begin >= 0:
        own = card.text[:begin] + body + card.text[end + len(END) :]
    else:
        before = card.text.rstrip()
        own = f"{before}\n\n{body}\n" if before else f"\n{body}\n"
    card.data = ModelCardData(**{**theirs, **data}, ignore_metadata_errors=True)
    card.text = own
    return str(card)


def _round(results: Results, fingerprint: str) -> int | None:
    """The round whose mask the ticket is; None where no result is of it."""
    own = (line for line in results.lines if line["control"] == TICKET and line.get("fingerprint") == fingerprint)
    return next((line["round"] for line in own), None)


def _metadata(info: Mapping[str, Any], results: Results, round: int | None, repo_id: str) -> ModelCardData:
    fields: dict[str, Any] = {"library_name": "hf_lottery", "tags": TAGS}
    for key, value in (
        ("license", info.get("license")),
        ("base_model", info.get("base_model")),
        ("datasets", info.get("datasets")),
    ):
        if value:
            fields[key] = value
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
            task_type=AUTO_CLASS[info.get("task")][1],
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
    base = f"[{info['base_model']}](https://huggingface.co/{info['base_model']})" if info.get("base_model") else None
    of = base or (f"a `{_model_type(info)}` network" if _model_type(info) else "a network")
    density = formatting.percent(kept / total) if total else "0%"
    pruned = "is zero" if info.get("pruned_becomes", "zero") == "zero" else "stays at its rewind value"
    how = [f"criterion `{info['criterion']}`"] if "criterion" in info else []
    how += [f"scope `{info['scope']}`"] if "scope" in info else []
    how += [f"pattern `{info['pattern']}`"] if "pattern" in info else []
    how += [f"{info['num_rounds']} rounds"] if "num_rounds" in info else []
    parts = [
        f"# A lottery ticket of {of}: {density} of its weights",
        f"{kept:,} of {total:,} prunable weights are kept, at their values of step {rewind_step}; a pruned weight "
        f"{pruned}." + (f" Found with {', '.join(how)}." if how else ""),
    ]
    if len(results.rounds()) > 1:
        parts.append(f"**{headline(verdict(results))}**")
    return parts


def _loading(info: Mapping[str, Any], repo_id: str, files: Sequence[str]) -> list[str]:
    auto = AUTO_CLASS[info.get("task")][0]
    # it relies on weights that are in no file of the ticket, and of no Hub model that is known
    homeless = not info.get("base_model") and any(
        entry["theta"] == "frozen" for entry in info.get("base_tensors", {}).values()
    )
    if info.get("base_model"):
        dtypes = {e["dtype"] for e in info.get("base_tensors", {}).values() if e["dtype"].startswith(("fl", "bf"))}
        options = f', revision="{info["base_revision"]}"' if info.get("base_revision") else ""
        options += f', dtype="{dtypes.pop()}"' if len(dtypes) == 1 else ""
        labels = (info.get("config") or {}).get("num_labels")
        options += f", num_labels={labels}" if labels is not None and "Classification" in auto else ""
        model = f'{auto}.from_pretrained("{info["base_model"]}"{options})'
        imports = auto
    elif homeless:
        model, imports = "base", None
    elif info.get("config"):
        model = f'{auto}.from_config(AutoConfig.for_model(**ticket.info["config"]))'
        imports = f"AutoConfig, {auto}"
    else:
        model, imports = "model", None
    if info.get("lora"):
        model = f'get_peft_model({model}, LoraConfig(**ticket.info["lora"]))'
    lines = [
        "from hf_lottery import LotteryTrainer, Ticket",
        *(["from peft import LoraConfig, get_peft_model"] if info.get("lora") else []),
        *([f"from transformers import {imports}"] if imports else []),
        "",
        f'ticket = Ticket.from_pretrained("{repo_id}")',
        f"model = ticket.apply_to({model})  # rewound weights, ready to train",
        "LotteryTrainer(model, args, train_dataset=train, ticket=ticket).train()  # stays sparse",
    ]
    parts = ["## Load it", "```python\n" + "\n".join(lines) + "\n```"]
    if homeless:
        parts.append(
            "`base` is the model that the ticket was found on, with its own weights; it was no model of the Hub."
        )
    if "adapter_config.json" in files:
        parts.append(
            f'The trained adapter is here too: `PeftModel.from_pretrained(base, "{repo_id}")`; no hf_lottery needed.'
        )
    elif "config.json" in files:
        needs = "hf_lottery imported" if _model_type(info) in _OUR_ARCHITECTURES else "no hf_lottery needed"
        parts.append(
            f'The trained sparse network is here too: `{auto}.from_pretrained("{repo_id}")`, {needs}; its pruned '
            "weights are exact zeros."
        )
    return parts


def _evidence(results: Results, round: int | None, files: Sequence[str]) -> list[str]:
    plots = [f"![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in files if name.endswith(".png")]
    if not results.lines:
        return [*plots]
    parts = ["## Evidence", caption(results), _table(*rows(results))]
    parts += _against_controls(verdict(results), round)
    return parts + plots


def _against_controls(found: Verdict, round: int | None) -> list[str]:
    """The ticket's own round against dense and the controls; nothing for the dense network itself."""
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


def _layers(counts: Mapping[str, tuple[int, int]]) -> list[str]:
    body = [
        [f"`{name}`", f"{kept:,}", f"{n:,}", formatting.percent(kept / n if n else 0)]
        for name, (kept, n) in counts.items()
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
        parts.append("`hf-lottery run recipe.yaml`, where recipe.yaml is:")
        parts.append(f"{fence}yaml\n{recipe.rstrip()}\n{fence}")
    return parts if len(parts) > 1 else []


def _table(headings: list[str], body: list[list[str]]) -> str:
    lines = [headings, [":---", *["---:"] * (len(headings) - 1)], *body]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |" for row in lines)


def _model_type(info: Mapping[str, Any]) -> str | None:
    return (info.get("config") or {}).get("model_type")
