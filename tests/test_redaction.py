"""Tokens and passwords do not get into what is printed or stored."""

from __future__ import annotations

import copy
import pickle
import sys
import time
from dataclasses import fields

import pytest
from peft import LoraConfig
from transformers import TrainingArguments

from hf_lottery.cli import main
from hf_lottery.config import LotteryConfig
from hf_lottery.recipe.errors import RecipeError
from hf_lottery.recipe.recipe import differences, load_recipe
from hf_lottery.redaction import UnsavedToken, is_secret_key, redacted, redacted_word, without_secrets
from tests.tiny import make_trainer

TOKEN = "hf_abcDEFghiJKLmnoPQRstuVWXyz012345"


@pytest.mark.parametrize(
    "text",
    [
        f"it is {TOKEN}.",
        "hub_token: S3CRET",
        "training.hub_tokn=S3CRET",
        "{'hub_token': 'S3CRET', 'seed': 1}",
        "training.hub_token is 'S3 CRET S3CRET'; it must be a number",
        "run_name=WANDB_API_KEY=S3CRET",
        "https://me:S3CRET@host/data.csv",
        "https://host/data.csv?access_token=S3CRET&page=2",
        "Authorization: Bearer S3CRET",
        "apiKey=S3CRET client-secret=S3CRET passwrd: S3CRET",
        "data.path=s3://key:S3CRET@bucket",
        "ghp_S3CRETS3CRETS3CRETS3CRET",
    ],
)
def test_what_is_secret_in_a_text(text):
    cleaned = redacted(text)
    assert "S3CRET" not in cleaned and TOKEN not in cleaned and "<redacted>" in cleaned
    assert redacted(cleaned) == cleaned


@pytest.mark.parametrize(
    "text",
    [
        "training.max_steps=10",
        "hf_lottery 0.1.0, hf_runs/lenet, outputs/hf_lenet300, HF_TOKEN",
        "eos_token: </s>, pad_token_id: 0, max_new_tokens=5, tokenizer=x, include_num_input_tokens_seen=all",
        "the token is missing; there is no password",
        "https://host/a@b and you@host",
        "training.hub_token is not a setting of the section hub",
    ],
)
def test_what_is_not(text):
    assert redacted(text) == text


def test_of_the_settings_of_a_recipe_one_is_a_token():
    names = [field.name for cls in (TrainingArguments, LoraConfig, LotteryConfig) for field in fields(cls)]
    assert {name for name in names if is_secret_key(name)} - {"push_to_hub_token"} == {"hub_token"}


def test_entries_of_secret_keys_are_left_out_at_any_depth():
    values = {
        "training": {"hub_token": "x", "hub": [{"password": 1234, "seed": 1}]},
        "config": {"eos_token": "</s>", "capacity_token_fraction": 2.0, "trainable_token_indices": {"e": [1]}},
        "api_key": ["x"],
        "token": None,
    }
    assert without_secrets(values) == {
        "training": {"hub": [{"seed": 1}]},
        "config": values["config"],
        "token": None,
    }


def test_all_of_an_overrides_value_is_left_out():
    assert redacted_word("hub.token=one two three") == "hub.token=<redacted>"


@pytest.mark.parametrize("text", ["a=", "hf_", "token=", "token='", "eyJ-", "://", "a" * 9, "token: {"])
def test_a_long_text_is_answered_at_once(text):
    started = time.process_time()
    redacted(text * 100_000)
    assert time.process_time() - started < 20  # seconds; a quadratic search takes hours


def test_a_token_is_used_and_copied_but_not_pickled():
    token = UnsavedToken(TOKEN)
    assert f"Bearer {copy.deepcopy(token)}" == f"Bearer {TOKEN}"
    assert pickle.loads(pickle.dumps({"hub_token": token})) == {"hub_token": None}


@pytest.mark.parametrize("lottery", [None, LotteryConfig(num_rounds=1)])
def test_a_checkpoint_does_not_hold_the_token(tmp_path, lottery):
    trainer = make_trainer(
        tmp_path, lottery_config=lottery, hub_token=TOKEN, max_steps=2, save_strategy="steps", save_steps=1
    )
    trainer.train()
    assert trainer.args.hub_token == TOKEN
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "training_args.bin" for path in written)
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]


# --- recipes


def test_a_recipe_keeps_its_token_to_itself():
    words = [f"training.hub_token={TOKEN}", "training.seed=3", "training.run_name=https://me:S3CRET@host"]
    recipe = load_recipe("quickstart", words)
    assert recipe.training_arguments(use_cpu=True).hub_token == TOKEN
    written = recipe.to_yaml() + recipe.command() + " ".join(recipe.words())
    assert TOKEN not in written and "S3CRET" not in written
    assert "training.seed=3" in recipe.command() and "hub_token" not in recipe.command()
    assert not differences(recipe, load_recipe("quickstart", words[1:2]))


@pytest.mark.parametrize(
    "word",
    [
        f"training.hub_tokn={TOKEN}",
        "training.hub_tokn=S3CRET S3CRET",
        "hub.token=S3CRET and more S3CRET",
        "training.hub_token=[S3CRET]",
        "training={hub_tokn: S3CRET}",
        "training.hub_token.x=S3CRET",
        f"training.learning_rate={TOKEN}",
        f"data.{TOKEN}=1",
        TOKEN,
        "model.config.password=S3CRET",
        "data.path=https://me:S3CRET@host/x.csv",
    ],
)
@pytest.mark.parametrize("command", ["check", "run"])
def test_no_message_repeats_it(tmp_path, monkeypatch, capsys, word, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["hf-lottery", command, "quickstart", word])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = "".join(capsys.readouterr())
    assert stopped.value.code == 2
    assert "S3CRET" not in said and TOKEN not in said and "<redacted>" in said


def test_the_exception_does_not_either():
    with pytest.raises(RecipeError) as raised:
        load_recipe("quickstart", ["training.hub_tokn=S3CRET S3CRET", f"training.seed={TOKEN}"])
    assert "S3CRET" not in str(raised.value) and TOKEN not in repr(raised.value.problems)
