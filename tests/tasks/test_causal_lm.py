"""The instruction-tuning task: answers are learned, prompts and padding are not, and every count is exact."""

from __future__ import annotations

import json
import logging
import math

import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_lottery.recipe.sections import ModelSection
from hf_lottery.tasks import causal_lm
from hf_lottery.tasks.instructions import IGNORED, PromptTemplate, tokenise
from hf_lottery.tasks.lm_metrics import answer_sums
from hf_lottery.tasks.token_batches import PaddingCollator, TokenDataset, pack
from hf_lottery.tasks.tokenizing import pad_token
from tests import tiny_lm

LONG = 400  # a byte a token: long enough for every prompt here


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def _load(tmp_path, chat=False, table=None, **data):
    folder = tiny_lm.save_model(tmp_path / "model", chat)
    table = table or tiny_lm.save_table(tmp_path / "table")
    section = ModelSection(name_or_path=str(folder))
    values = {
        "path": str(table),
        "validation_size": 8,
        "test_size": 6,
        "max_length": LONG,
        "max_new_tokens": 3,
        **data,
    }
    data = causal_lm.Data(**values)
    return section, causal_lm.load(data, section)


def _examples(chat=False, rows=(("add", "", "three"), ("subtract", "two", "1")), length=LONG):
    return tokenise(rows, PromptTemplate(tiny_lm.tokenizer(chat)), length)


@pytest.mark.parametrize("chat", [False, True])
def test_the_answer_and_its_end_are_learned_and_nothing_else(chat):
    tokenizer = tiny_lm.tokenizer(chat)
    (first, second), _ = _examples(chat)
    learned = [tokenizer.decode([t for t in e["labels"] if t != IGNORED]) for e in (first, second)]
    ending = "<|end|>" if chat else "<eos>"
    assert learned == [f"three{ending}", f"1{ending}"]
    for example in (first, second):
        places = [i for i, label in enumerate(example["labels"]) if label != IGNORED]
        assert places == list(range(places[0], len(example["input_ids"])))
        assert [example["input_ids"][i] for i in places] == [example["labels"][i] for i in places]
    text = tokenizer.decode(second["input_ids"])
    assert "subtract" in text and "two" in text


def test_the_chat_template_writes_the_prompt():
    tokenizer = tiny_lm.tokenizer(chat=True)
    (first, second), _ = _examples(chat=True)
    assert tokenizer.decode(first["input_ids"]) == "<|user|>add<|end|>\n<|assistant|>three<|end|>"
    assert tokenizer.decode(second["input_ids"]) == "<|user|>subtract\n\ntwo<|end|>\n<|assistant|>1<|end|>"


def test_without_a_chat_template_the_alpaca_template_writes_it():
    text = tiny_lm.tokenizer().decode(_examples()[0][1]["input_ids"])
    assert text.startswith("Below is an instruction that describes a task, paired with an input")
    assert text.endswith("### Instruction:\nsubtract\n\n### Input:\ntwo\n\n### Response:\n1<eos>")


def test_a_chat_template_that_is_not_there_cannot_be_asked_for():
    with pytest.raises(ValueError, match="has no chat template: set data.template=alpaca"):
        PromptTemplate(tiny_lm.tokenizer(), "chat")


@pytest.mark.parametrize("special", [{"eos_token": "<eos>", "pad_token": "<eos>"}, {"eos_token": "<eos>"}, {}])
def test_padding_does_not_change_the_loss_also_where_pad_is_eos_or_missing(special):
    tokenizer = tiny_lm.tokenizer(**special)
    examples, _ = tokenise([("add", "", "three"), ("a longer one", "x", "yes")], PromptTemplate(tokenizer), LONG)
    collator, model = PaddingCollator(pad_token(tokenizer)), tiny_lm.model()
    batch = collator(examples)
    assert batch["input_ids"].shape[1] == max(len(e["input_ids"]) for e in examples)
    with torch.no_grad():
        together = answer_sums(model(**batch).logits, batch["labels"])
        alone = torch.cat(
            [
                answer_sums(model(input_ids=b["input_ids"]).logits, b["labels"])
                for b in ([collator([e]) for e in examples])
            ]
        )
        assert torch.allclose(together, alone, atol=1e-4)
        assert together[:, 2].tolist() == [sum(t != IGNORED for t in e["labels"]) for e in examples]
        mean = together[:, 0].sum() / together[:, 2].sum()
        assert torch.allclose(model(**batch).loss.double(), mean, atol=1e-5)  # the loss that is trained on, too
        end = together[:, 2] - 1  # eos ends every answer, and is learned although it is what pads
        if tokenizer.eos_token_id is not None:
            assert all(e["labels"][-1] == tokenizer.eos_token_id for e in examples) and (end > 0).all()


def test_neither_prompt_nor_padding_reaches_a_gradient():
    """The much-copied tutorial learns prompts and padding: labels there change the gradient; here they cannot."""
    examples, _ = _examples()
    batch = PaddingCollator(0)(examples)
    model = tiny_lm.model()
    model(**batch).loss.backward()
    ours = model.model.layers[0].mlp.up_proj.weight.grad.clone()
    model.zero_grad()
    # an oracle that does not use labels: −log p of the answers' tokens, picked out by hand
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
    terms = [
        -logits[row, place - 1, token]
        for row, example in enumerate(examples)
        for place, (token, label) in enumerate(zip(example["input_ids"], example["labels"], strict=True))
        if label != IGNORED
    ]
    torch.stack(terms).mean().backward()
    assert torch.allclose(model.model.layers[0].mlp.up_proj.weight.grad, ours, atol=1e-6)
    model.zero_grad()
    tutorial = batch["input_ids"].clone()  # DataCollatorForLanguageModeling's labels: the input, whole
    model(input_ids=batch["input_ids"], labels=tutorial).loss.backward()
    assert not torch.allclose(model.model.layers[0].mlp.up_proj.weight.grad, ours, atol=1e-4)


def test_long_answers_are_cut_and_every_row_is_accounted_for():
    prompt = len(_examples(rows=[("add", "", "x")])[0][0]["input_ids"]) - 2
    rows = [("add", "", "abc"), ("add", "", "abcd"), ("add", "", " "), ("add" + "!" * 9, "", "abc")]
    examples, counts = _examples(rows=rows, length=prompt + 4)
    assert [len(e["input_ids"]) for e in examples] == [prompt + 4, prompt + 4]
    assert (counts.rows, counts.empty, counts.no_room, counts.truncated) == (4, 1, 1, 1)
    assert str(counts) == (
        "4 rows: 1 left out for an empty answer, 1 left out because the prompt alone fills data.max_length, "
        "1 with the answer cut at data.max_length"
    )


def test_packed_rows_give_the_same_losses_as_single_ones():
    rows = [("add", "", "three"), ("subtract", "two", "1"), ("double", "", "it"), ("halve", "", "no")]
    examples, _ = _examples(rows=rows)
    packed = pack(examples, 2 * max(len(e["input_ids"]) for e in examples))
    assert len(packed) < len(examples)
    assert [t for row in packed for t in row["input_ids"]] == [t for e in examples for t in e["input_ids"]]
    model, collator = tiny_lm.model(), PaddingCollator(0)
    model.config.use_cache = False  # as Trainer sets it
    with torch.no_grad():
        batch, single = collator(packed), collator(examples)
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
        ours = answer_sums(logits, batch["labels"]).sum(0)
        theirs = answer_sums(model(**single).logits, single["labels"]).sum(0)
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_splits_are_disjoint_and_follow_the_seed(tmp_path):
    _, data = _load(tmp_path)
    parts = [{tuple(e["input_ids"]) for e in part} for part in (data.train, data.validation, data.test)]
    assert [len(part) for part in parts] == [26, 8, 6]
    assert len(parts[0] | parts[1] | parts[2]) == 40
    _, again = _load(tmp_path)
    _, other = _load(tmp_path, split_seed=1)
    assert [e["input_ids"] for e in again.test] == [e["input_ids"] for e in data.test]
    assert {tuple(e["input_ids"]) for e in other.test} != parts[2]


def test_the_trainer_reports_loss_perplexity_and_accuracy_over_tokens(tmp_path):
    section, data = _load(tmp_path, packing=True)
    model = causal_lm.build_model(section, data, seed=0)
    args = TrainingArguments(
        output_dir=tmp_path / "out",
        max_steps=2,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=3,
        remove_unused_columns=False,
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model,
        args,
        data_collator=data.collator,
        train_dataset=data.train,
        eval_dataset={"validation": data.validation, "test": data.test},
        compute_metrics=data.compute_metrics,
        preprocess_logits_for_metrics=data.preprocess_logits_for_metrics,
        callbacks=data.callbacks,
    )
    trainer.train()
    metrics = trainer.evaluate()
    losses, hits = [], []
    with torch.no_grad():
        for example in data.validation:
            logits = model(torch.tensor([example["input_ids"]])).logits[0].double().log_softmax(-1)
            for place, label in enumerate(example["labels"]):
                if label != IGNORED:
                    losses.append(-logits[place - 1, label].item())
                    hits.append(int(logits[place - 1].argmax()) == label)
    mean = sum(losses) / len(losses)
    assert metrics["eval_validation_loss"] == pytest.approx(mean, abs=1e-5)
    assert metrics["eval_validation_perplexity"] == pytest.approx(math.exp(mean), rel=1e-4)
    assert metrics["eval_validation_token_accuracy"] == pytest.approx(sum(hits) / len(hits))
    (record,) = json.loads((tmp_path / "out" / "generations.json").read_text())
    assert record.keys() == {"prompt", "before", "after"}
    assert record["prompt"] == "What is the meaning of life?"


def test_a_training_taken_up_again_keeps_what_was_generated_before_it(tmp_path):
    _, data = _load(tmp_path)
    (callback,) = data.callbacks
    old = [{"prompt": "What is the meaning of life?", "before": "kept"}]
    (tmp_path / "generations.json").write_text(json.dumps(old))
    args = TrainingArguments(output_dir=tmp_path, use_cpu=True)
    state = type("State", (), {"is_world_process_zero": True})()
    model = tiny_lm.model().train()
    callback.on_train_begin(args, state, None, model=model)
    callback.on_train_end(args, state, None, model=model)
    (record,) = json.loads((tmp_path / "generations.json").read_text())
    assert record["before"] == "kept" and "after" in record
    assert model.training


def test_what_is_cut_or_left_out_is_said(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    table = tiny_lm.save_table(tmp_path / "t", rows=4, output=["x" * 900] * 4)
    _, data = _load(tmp_path, table=table, validation_size=1, test_size=1)
    assert data.notes[0] == "train: 2 rows: 2 with the answer cut at data.max_length (400 tokens)"
    assert data.notes[0] in caplog.text


def test_other_columns_are_named_in_the_error(tmp_path):
    table = tmp_path / "dolly"
    table.mkdir()
    rows = [{"instruction": str(i), "context": "", "response": str(i)} for i in range(9)]
    (table / "train.json").write_text(json.dumps(rows))
    sizes = {"validation_size": 2, "test_size": 2}
    with pytest.raises(ValueError, match="columns instruction, context, response.*data.input_column is 'input'.*null"):
        _load(tmp_path, table=table, **sizes)
    _, data = _load(tmp_path, table=table, input_column="context", output_column="response", **sizes)
    assert len(data.train) == 5
    _, data = _load(tmp_path, table=table, input_column=None, output_column="response", **sizes)
    assert len(data.train) == 5


def test_no_room_for_any_answer_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="no example is left to train on.*raise data.max_length"):
        _load(tmp_path, max_length=20)


def test_examples_longer_than_the_context_are_refused_before_loading(tmp_path):
    section, data = _load(tmp_path, max_length=2000)
    data.train = TokenDataset([{"input_ids": [1] * 600, "labels": [1] * 600}])
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="has 600 tokens, but the model's context is 512: set data.max_length=512"):
        causal_lm.build_model(section, data, 0)


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tmp_path):
    _, data = _load(tmp_path)
    section = ModelSection(architecture="llama", config={"vocab_size": 100, "num_hidden_layers": 1})
    with pytest.raises(ValueError, match="259 tokens, but the model's vocabulary is 100"):
        causal_lm.build_model(section, data, 0)


def test_an_architecture_needs_a_tokenizer(tmp_path):
    data = causal_lm.Data(path=str(tmp_path))
    with pytest.raises(ValueError, match="name one with data.tokenizer"):
        causal_lm.load(data, ModelSection(architecture="llama"))
    data = causal_lm.Data(path=str(tmp_path), tokenizer=str(tmp_path))
    with pytest.raises(ValueError, match="data.tokenizer is .* no folder with a tokenizer"):
        causal_lm.load(data, ModelSection(architecture="llama"))


def test_packing_is_refused_where_one_example_could_look_at_another(tmp_path):
    _, data = _load(tmp_path, packing=True)
    opt = ModelSection(architecture="opt", config={"vocab_size": 512, "max_position_embeddings": 512})
    with pytest.raises(ValueError, match=r"not tested for opt: set data.packing=false"):
        causal_lm.build_model(opt, data, 0)
