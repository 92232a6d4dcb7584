"""The model card: readable by huggingface_hub, true to the results, and careful with what the user wrote."""

import ast

import pytest
from huggingface_hub import ModelCard

from hf_lottery.ticket.card import ticket_card
from hf_lottery.ticket.card_merge import BEGIN, END
from hf_lottery.ticket.ticket import TicketError
from tests.result_lines import lines

COUNTS = {"classifier.weight": (90, 300), "layers.0.weight": (10, 700)}
INFO = {
    "criterion": "magnitude",
    "scope": "layer",
    "num_rounds": 3,
    "task": "image_classification",
    "config": {"model_type": "lenet", "hidden_sizes": [3, 4]},
    "datasets": ["ylecun/mnist"],
    "license": "apache-2.0",
    "seeds": [1, 2],
    "versions": {"torch": "2.9"},
    "recipe": "model:\n  architecture: lenet\n# ``` in a comment\n",
}


def card(existing=None, **changes):
    info = {**INFO, "results": [{**line, "fingerprint": f"{line['round']:064x}"} for line in lines()], **changes}
    last = max(line["round"] for line in info["results"]) if info["results"] else 0
    return ticket_card(
        info, COUNTS, rewind_step=0, fingerprint=f"{last:064x}", repo_id="you/name", files=["a.png"], existing=existing
    )


def test_metadata_is_what_the_hub_reads():
    data = ModelCard(card()).data
    assert data.library_name == "hf_lottery"
    assert {"lottery-ticket", "pruning", "sparse"} <= set(data.tags)
    assert (data.license, data.datasets, data.metrics) == ("apache-2.0", ["ylecun/mnist"], ["accuracy"])
    (result,) = data.eval_results
    mine = [x for x in lines() if x["control"] == "ticket" and x["round"] == max(y["round"] for y in lines())]
    mean = sum(line["test_accuracy"] for line in mine) / len(mine)
    assert result.metric_value == pytest.approx(mean)
    assert (result.task_type, result.dataset_type, result.metric_type) == (
        *("image-classification", "ylecun/mnist", "accuracy"),
    )


def test_it_shows_density_table_controls_plots_and_recipe():
    text = card()
    assert "# A lottery ticket of a `lenet` network: 10% of its weights" in text.replace("10.0%", "10%")
    assert "100 of 1,000 prunable weights are kept" in text
    assert "| `layers.0.weight` | 10 | 700 | 1.43% |" in text
    for control in {line["control"] for line in lines()} - {"ticket"}:
        assert f"| {control} |" in text
    assert "95% Student-t interval" in text and "![a](a.png)" in text
    assert "````yaml\nmodel:" in text  # a longer fence than the one inside
    assert 'AutoModelForImageClassification.from_config(AutoConfig.for_model(**ticket.info["config"]))' in text


def test_the_three_lines_are_python():
    code = card().split("```python\n")[1].split("```")[0]
    ast.parse(code)
    assert "Ticket.from_pretrained" in code and "apply_to" in code


def test_a_users_own_text_and_metadata_stay():
    first = card()
    edited = (
        first.replace("license: apache-2.0", "license: mit\nlanguage: en")
        .replace("tags:\n", "tags:\n- mine\n")
        .replace(BEGIN, "# Mine\n\nBefore.\n\n" + BEGIN)
        .replace(END, END + "\n\nAfter.")
    )
    again = card(existing=edited, criterion="random")
    assert "# Mine\n\nBefore.\n\n" + BEGIN in again and END + "\n\nAfter." in again
    assert "criterion `random`" in again and "criterion `magnitude`" not in again
    data = ModelCard(again).data
    assert data.license == "mit" and data.language == "en" and "mine" in data.tags and "sparse" in data.tags
    assert card(existing=again, criterion="random") == again  # and it settles


def test_a_readme_without_our_part_or_metadata_gets_both():
    text = card(existing="# My network\n\nWords.\n")
    assert ModelCard(text).data.library_name == "hf_lottery"
    assert text.index("# My network\n\nWords.") < text.index(BEGIN)


def test_broken_metadata_is_our_error():
    with pytest.raises(TicketError, match=r"README\.md has metadata that cannot be read"):
        card(existing="---\na: [\n---\ntext")


@pytest.mark.parametrize("tags", ["[[a, b]]", "[{a: b}]", "7"])
def test_tags_that_are_no_list_of_words_are_our_error(tags):
    with pytest.raises(TicketError, match=r"README\.md has .+; correct it"):
        card(existing=f"---\ntags: {tags}\n---\ntext")


def test_without_results_nothing_is_claimed():
    data = ModelCard(card(results=[])).data
    assert data.eval_results is None and "## Evidence" not in card(results=[])


def test_the_base_model_is_linked_with_its_revision():
    text = card(base_model="google/bert", base_revision="a" * 40, task="text_classification", config={"num_labels": 2})
    assert ModelCard(text).data.base_model == "google/bert"
    assert f'from_pretrained("google/bert", revision="{"a" * 40}", num_labels=2)' in text
