"""Publishing and downloading, by the real huggingface_hub client against a Hub on 127.0.0.1."""

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

from hf_lottery.cli.ticket import push, show
from hf_lottery.config import LotteryConfig
from hf_lottery.mask import Mask
from hf_lottery.ticket.hub_error import HubError
from hf_lottery.ticket.info import ticket_info
from hf_lottery.ticket.rewind_point import RewindPoint
from hf_lottery.ticket.ticket import Ticket, TicketError
from tests.hub_server import HubServer
from tests.ticket.conftest import TOKEN
from tests.ticket_cases import tiny_ticket


def test_a_push_is_one_commit_of_listed_files(hub):
    url = tiny_ticket().push_to_hub("you/ticket", token=TOKEN, commit_message="Found it")
    assert url.endswith(hub.repositories["you/ticket"].branches["main"])
    assert [r for r in hub.requests if "/commit/" in r] == ["POST /api/models/you/ticket/commit/main"]
    assert set(hub.tree("you/ticket")) == {
        ".gitattributes",
        "README.md",
        "mask.safetensors",
        "rewind.safetensors",
        "ticket.json",
    }
    assert Ticket.from_pretrained("you/ticket").mask == tiny_ticket().mask


def test_nothing_but_the_ticket_leaves_an_output_folder(hub, tmp_path):
    tiny_ticket().save_pretrained(tmp_path / "out" / "ticket")
    for name in ("training_args.bin", "optimizer.pt", "notes.txt"):
        (tmp_path / "out" / "ticket" / name).write_bytes(b"mine")
    push(str(tmp_path / "out"), "you/ticket", token=TOKEN)
    assert not {"training_args.bin", "optimizer.pt", "notes.txt"} & set(hub.tree("you/ticket"))


def test_a_damaged_folder_is_not_published(hub, tmp_path):
    tiny_ticket().save_pretrained(tmp_path)
    (tmp_path / "mask.safetensors").write_bytes(b"")
    with pytest.raises(TicketError, match="mask"):
        push(str(tmp_path), "you/ticket", token=TOKEN)
    assert "you/ticket" not in hub.repositories


def test_a_private_ticket_needs_its_owners_token(hub, tmp_path):
    tiny_ticket().push_to_hub("you/secret", private=True, token=TOKEN)
    assert hub.repositories["you/secret"].private
    for token in (False, "hf_other"):
        with pytest.raises(HubError, match="there is no you/secret, or you may not see it"):
            Ticket.from_pretrained("you/secret", token=token)
    assert Ticket.from_pretrained("you/secret", token=TOKEN).mask == tiny_ticket().mask


def test_pushing_needs_a_token_of_the_owner(hub):
    for token in (False, "hf_other"):
        with pytest.raises(HubError, match="was not published"):
            tiny_ticket().push_to_hub("you/ticket", token=token)
    assert not hub.repositories


def test_revisions(hub):
    tiny_ticket(density=0.5).push_to_hub("you/ticket", token=TOKEN)
    first = hub.repositories["you/ticket"].branches["main"]
    tiny_ticket(density=0.3).push_to_hub("you/ticket", token=TOKEN)
    tiny_ticket(density=0.1).push_to_hub("you/ticket", token=TOKEN, revision="sparser")
    for revision, density in [(first, 0.5), ("main", 0.3), (None, 0.3), ("sparser", 0.1)]:
        assert Ticket.from_pretrained("you/ticket", revision=revision).mask == tiny_ticket(density=density).mask


def test_what_was_downloaded_once_is_not_downloaded_again(hub):
    tiny_ticket().push_to_hub("you/ticket", token=TOKEN)
    Ticket.from_pretrained("you/ticket")
    hub.requests.clear()
    Ticket.from_pretrained("you/ticket")
    assert not [request for request in hub.requests if request.startswith("GET /you/ticket/resolve")]


@pytest.mark.parametrize("where", ["preupload", "objects/batch", "PUT /lfs/", "/commit/"])
def test_a_push_that_breaks_off_leaves_the_old_ticket(hub, where):
    tiny_ticket(density=0.5).push_to_hub("you/ticket", token=TOKEN)
    old = dict(hub.tree("you/ticket"))
    hub.fail = where
    with pytest.raises(HubError, match="published in you/ticket"):
        tiny_ticket(density=0.1, pruned_value="init").push_to_hub("you/ticket", token=TOKEN)
    hub.fail = None
    assert hub.tree("you/ticket") == old
    assert Ticket.from_pretrained("you/ticket").mask == tiny_ticket(density=0.5).mask
    tiny_ticket(density=0.1).push_to_hub("you/ticket", token=TOKEN)
    assert Ticket.from_pretrained("you/ticket").mask == tiny_ticket(density=0.1).mask


def test_files_of_the_ticket_before_go_and_the_users_stay(hub, tmp_path):
    plot = tmp_path / "accuracy.png"
    plot.write_bytes(b"\x89PNG")
    tiny_ticket().push_to_hub("you/ticket", token=TOKEN, plots=[plot])
    tree = hub.tree("you/ticket")
    assert b"![accuracy](accuracy.png)" in tree["README.md"]
    repository = hub.repositories["you/ticket"]
    theirs = tree["README.md"].replace(b"---\n\n", b"---\nMy own words.\n\n", 1)
    repository.commit("main", {**tree, "README.md": theirs, "config.json": b"{}", "notes.md": b"mine"})
    tiny_ticket(density=0.1).push_to_hub("you/ticket", token=TOKEN)
    tree = hub.tree("you/ticket")
    assert "accuracy.png" not in tree and {"config.json", "notes.md"} <= set(tree)
    card = tree["README.md"].decode()
    assert "My own words." in card and "accuracy.png" not in card
    assert card.count("# A lottery ticket of") == 1
    assert 'Ticket.from_pretrained("you/ticket")' in card


def test_a_repository_that_is_no_ticket(hub):
    huggingface_hub.HfApi(token=TOKEN).create_repo("you/model")
    with pytest.raises(TicketError, match=r"no ticket\.json in you/model"):
        Ticket.from_pretrained("you/model")


# --- θ_k that is a Hub model's own ---


def bert(seed: int) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, num_labels=3
    )
    return BertForSequenceClassification(config)


@pytest.fixture
def base(hub, tmp_path):
    """Two revisions of a base model without its classifier, as pretrained models are; returns their commits."""
    api, commits = huggingface_hub.HfApi(token=TOKEN), []
    api.create_repo("you/bert")
    for seed in (0, 1):
        bert(seed).bert.save_pretrained(tmp_path / "bert")
        api.upload_folder(repo_id="you/bert", folder_path=tmp_path / "bert")
        commits.append(hub.repositories["you/bert"].branches["main"])
    return commits


def load(revision: str, seed: int = 5) -> BertForSequenceClassification:
    torch.manual_seed(seed)  # of the head, which the base model has not
    return BertForSequenceClassification.from_pretrained("you/bert", revision=revision, num_labels=3)


def test_the_base_models_own_weights_are_not_stored(hub, base, tmp_path):
    model = load(base[0])
    names = [n for n, p in model.named_parameters() if p.dim() == 2 and "embeddings" not in n]
    mask = Mask({n: torch.rand(model.get_parameter(n).shape) < 0.4 for n in names})
    rewind = RewindPoint.capture(model)
    ticket = Ticket(mask, rewind, ticket_info(model, mask, rewind, LotteryConfig()))
    assert (ticket.info["base_model"], ticket.info["base_revision"]) == ("you/bert", base[0])
    assert ticket.info["task"] == "text_classification"
    ticket.push_to_hub("you/ticket", token=TOKEN)

    found = Ticket.from_pretrained("you/ticket")
    assert set(found.rewind.tensors) == {"classifier.weight", "classifier.bias"}
    fresh = load(base[0])
    with torch.no_grad():
        fresh.classifier.weight.zero_()  # newly made: another random start for everybody
    found.apply_to(fresh)
    for name, parameter in fresh.named_parameters():
        expected = rewind.tensors[name] * mask[name] if name in mask else rewind.tensors[name]
        assert torch.equal(parameter, expected), name
    found.apply_to(fresh)  # θ_k ⊙ m is as good as θ_k

    wrong = load(base[1])
    first = next(n for n, p in wrong.named_parameters() if not torch.equal(p, rewind.tensors[n]))
    with pytest.raises(TicketError, match=f"'{first}' is the first tensor that differs"):
        found.apply_to(wrong)
    card = hub.tree("you/ticket")["README.md"].decode()
    assert f'from_pretrained("you/bert", revision="{base[0]}", dtype="float32", num_labels=3)' in card
    assert "base_model: you/bert" in card


def test_a_lora_ticket_is_rebuilt_from_its_base_and_its_config(hub, base):
    torch.manual_seed(3)
    model = get_peft_model(load(base[0]), LoraConfig(r=2, target_modules=".*(query|value)", task_type="SEQ_CLS"))
    mask = Mask({n: torch.rand(p.shape) < 0.5 for n, p in model.named_parameters() if "lora_A" in n})
    rewind = RewindPoint.capture(model)
    info = ticket_info(model, mask, rewind, LotteryConfig())
    assert info["base_revision"] == base[0]
    Ticket(mask, rewind, info).push_to_hub("you/lora", token=TOKEN)

    found = Ticket.from_pretrained("you/lora")
    assert not any("word_embeddings" in name for name in found.rewind.tensors)
    stranger = get_peft_model(load(base[0], seed=4), LoraConfig(**found.info["lora"]))
    found.apply_to(stranger)
    for name, kept in mask.items():
        assert torch.equal(stranger.get_parameter(name), rewind.tensors[name] * kept)
    with pytest.raises(TicketError, match=r"word_embeddings\.weight' is the first tensor that differs"):
        found.apply_to(get_peft_model(load(base[1]), LoraConfig(**found.info["lora"])))
    card = hub.tree("you/lora")["README.md"].decode()
    assert 'get_peft_model(AutoModelForSequenceClassification.from_pretrained("you/bert"' in card


def test_a_later_rewind_point_is_stored(base):
    model = load(base[0])
    mask = Mask.ones({"classifier.weight": model.classifier.weight})
    rewind = RewindPoint.capture(model, step=2)
    info = ticket_info(model, mask, rewind, LotteryConfig())
    assert {entry["stored"] for entry in info["base_tensors"].values()} == {"derived"}
    assert info["base_model"] == "you/bert"


def test_show_prints_a_published_ticket(hub, capsys):
    tiny_ticket(seeds=[3]).push_to_hub("you/ticket", token=TOKEN)
    show("you/ticket")
    shown = capsys.readouterr().out
    kept, total = tiny_ticket().mask.counts()["low.weight"]
    assert f"low.weight {kept} {total}" in " ".join(shown.split())
    assert "It comes without results." in shown


FIND = """
import json, sys, torch
from hf_lottery import LotteryConfig
from hf_lottery.training.search import Search
from tests.tiny import make_trainer
finder = make_trainer(sys.argv[1], lottery_config=LotteryConfig(num_rounds=2, pruning_rate=0.4), logging_steps=2)
ticket = finder.find_ticket()
ticket.push_to_hub("you/found")
history = json.loads((Search(finder).round_folder(2).path / "trainer_state.json").read_text())["log_history"]
print(json.dumps([line["loss"] for line in history if "loss" in line]))
print(json.dumps(ticket.density()))
"""

TRAIN = """
import json, sys, torch
from hf_lottery import Ticket
from tests.tiny import Net, make_trainer
ticket = Ticket.from_pretrained("you/found")
stranger = make_trainer(sys.argv[1], model=ticket.apply_to(Net()), ticket=ticket, logging_steps=2)
stranger.train()
print(json.dumps([line["loss"] for line in stranger.state.log_history if "loss" in line]))
print(json.dumps(stranger.mask.density()))
for name, kept in ticket.mask.items():
    assert not stranger.model.get_parameter(name)[~kept].any()
"""


def run(script: str, hub: HubServer, folder: Path) -> list:
    folder.mkdir()
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(folder / "home"),  # an empty cache
        "HF_TOKEN": TOKEN,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, "-c", script, str(folder / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()[-2:]]  # before them a library may print


def test_a_stranger_gets_the_losses_that_the_finder_had(hub, tmp_path):
    found = run(FIND, hub, tmp_path / "finder")
    assert len(found) == 2 and len(found[0]) == 5
    assert run(TRAIN, hub, tmp_path / "stranger") == found
