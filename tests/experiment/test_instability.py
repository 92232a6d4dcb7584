import json

import numpy
import pytest
import torch
from transformers import TrainerCallback, TrainingArguments

from hf_lottery.config import LotteryConfig
from hf_lottery.experiment.instability import measure_instability, reach_rewind_point
from hf_lottery.mask import Mask
from hf_lottery.models.lenet import LeNetConfig, LeNetForImageClassification
from hf_lottery.results.diverged import DivergedError
from hf_lottery.results.linear_path import LinearPath, earliest_stable_step, interpolate, linear_path
from hf_lottery.training.network_folder import NetworkFolder
from hf_lottery.training.trainer import LotteryTrainer

A, B = {"w": torch.tensor([-1.0])}, {"w": torch.tensor([1.0])}


def test_a_bowl_has_no_barrier():
    path = linear_path(A, B, lambda state: 0.1 * float(state["w"]) ** 2)
    assert len(path.errors) == 30
    assert path.alphas == pytest.approx(list(numpy.arange(30) / 29))
    assert path.instability == pytest.approx(0)
    assert path.stable


def test_a_double_well_has_the_height_of_its_hill():
    path = linear_path(A, B, lambda state: 0.2 + 0.5 * (float(state["w"]) ** 2 - 1) ** 2, points=31)
    assert path.errors[15] == pytest.approx(0.7)
    assert path.instability == pytest.approx(0.5)  # 0.7 in the middle, 0.2 at both ends
    assert not path.stable


def test_the_ends_count_by_their_mean():
    path = LinearPath([0, 0.5, 1], [0.10, 0.13, 0.14])
    assert path.instability == pytest.approx(0.02)
    assert LinearPath([0, 0.5, 1], [20.0, 21.0, 20.0], relative=True).instability == pytest.approx(1 / 20)


def test_interpolation_is_exact_at_the_ends_and_takes_buffers_along():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    a = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(torch.randn(8, 3))  # moves the running statistics and counts a batch
    b = {name: torch.randn_like(t) if t.is_floating_point() else t.clone() for name, t in model.state_dict().items()}
    assert all(torch.equal(interpolate(a, b, 0.0)[name], a[name]) for name in a)
    assert all(torch.equal(interpolate(a, b, 1.0)[name], b[name]) for name in a if a[name].is_floating_point())
    middle = interpolate(a, b, 0.25)
    torch.testing.assert_close(middle["1.running_mean"], 0.75 * a["1.running_mean"] + 0.25 * b["1.running_mean"])
    assert int(b["1.num_batches_tracked"]) == 1
    assert int(middle["1.num_batches_tracked"]) == 0


def test_networks_that_differ_are_refused():
    with pytest.raises(ValueError, match="only one of them has 'v'"):
        interpolate(A, {"w": A["w"], "v": A["w"]}, 0.5)
    with pytest.raises(ValueError, match=r"'w' has shape \(1,\) in one network, \(2,\) in the other"):
        interpolate(A, {"w": torch.zeros(2)}, 0.5)
    with pytest.raises(ValueError, match="points is 1"):
        linear_path(A, B, lambda state: 0.0, points=1)


def test_the_earliest_stable_step_is_found_without_running_later_ones():
    measured = {0: 0.3, 10: 0.05, 20: 0.019, 40: 0.0}
    tried = []

    def instability_at(step):
        tried.append(step)
        return measured[step]

    assert earliest_stable_step([40, 0, 20, 10], instability_at) == 20
    assert tried == [0, 10, 20]
    assert earliest_stable_step([0, 10], instability_at) is None


class Blobs(torch.utils.data.Dataset):
    """Two classes of 4 × 4 images, apart by their brightness, with noise."""

    def __init__(self, count: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(count) % 2
        self.images = torch.randn(count, 1, 4, 4, generator=generator) + self.labels.view(-1, 1, 1, 1)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def make_trainer(folder, rewind_step=3, learning_rate=0.05, **arguments):
    torch.manual_seed(0)
    model = LeNetForImageClassification(LeNetConfig(hidden_sizes=[6], image_size=4, num_labels=2))
    settings = {
        "output_dir": str(folder), "max_steps": 12, "per_device_train_batch_size": 4, "learning_rate": learning_rate,
        "use_cpu": True, "report_to": "none", "disable_tqdm": True, "logging_strategy": "no", "save_strategy": "no",
    }  # fmt: skip
    return LotteryTrainer(
        model,
        TrainingArguments(**settings | arguments),
        train_dataset=Blobs(32, 1),
        eval_dataset={"validation": Blobs(16, 2), "test": Blobs(16, 3)},
        compute_metrics=accuracy,
        lottery_config=LotteryConfig(rewind_step=rewind_step),
    )


def half_mask(trainer) -> Mask:
    generator = torch.Generator().manual_seed(5)
    return Mask({name: torch.rand(tensor.shape, generator=generator) < 0.5 for name, tensor in trainer.mask.items()})


def test_copies_start_at_the_same_point_and_differ_by_their_data_order_alone(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    found = measure_instability(trainer, tmp_path / "paths", seeds=[1, 2, 3], points=5)
    assert (found.rewind_step, found.density, len(found.paths)) == (3, 1.0, 3)
    one, two = (NetworkFolder(tmp_path / "paths" / f"order-{seed}").trained().tensors for seed in (1, 2))
    assert any(not torch.equal(one[name], two[name]) for name in one)

    # the same seed in another process gives the same copy, bit for bit
    again = make_trainer(tmp_path / "run")
    measure_instability(again, tmp_path / "again", seeds=[2, 1], points=2)
    repeated = NetworkFolder(tmp_path / "again" / "order-1").trained().tensors
    assert all(torch.equal(one[name], repeated[name]) for name in one)


def test_without_learning_the_copies_are_the_rewind_point(tmp_path):
    trainer = make_trainer(tmp_path / "run", learning_rate=1e-30)  # moves a bias of 0 by 1e-29 at most
    found = measure_instability(trainer, tmp_path / "paths", seeds=[1, 2], points=4)
    start = trainer.rewind_point.tensors
    for seed in (1, 2):
        trained = NetworkFolder(tmp_path / "paths" / f"order-{seed}").trained().tensors
        assert all(torch.allclose(trained[name], start[name], rtol=0, atol=1e-20) for name in start)
    assert found.mean == 0 and found.stable
    written = json.loads((tmp_path / "paths" / "instability.json").read_text())
    assert written["instability"] == 0 and written["stable"] and written["rewind_step"] == 3
    assert len(written["paths"][0]["errors"]) == 4


def test_the_ends_of_a_path_are_the_copies_own_test_errors(tmp_path):
    trainer = make_trainer(tmp_path / "run", rewind_step=0)
    mask = half_mask(trainer)
    (path,) = measure_instability(trainer, tmp_path / "paths", mask=mask, seeds=[4, 5], points=3).paths
    data = Blobs(16, 3)
    for seed, error in ((4, path.errors[0]), (5, path.errors[-1])):
        folder = NetworkFolder(tmp_path / "paths" / f"order-{seed}")
        tensors = folder.trained().tensors
        assert all(not tensors[name][~kept].any() for name, kept in mask.items())
        model = LeNetForImageClassification(LeNetConfig(hidden_sizes=[6], image_size=4, num_labels=2))
        model.load_state_dict(tensors)
        wrong = (model(data.images).logits.argmax(-1) != data.labels).float().mean()
        assert error == pytest.approx(float(wrong))


def test_finished_copies_are_not_trained_again_and_other_masks_are_refused(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    mask = half_mask(trainer)
    measure_instability(trainer, tmp_path / "paths", mask=mask, seeds=[1, 2], points=2)
    files = [tmp_path / "paths" / f"order-{seed}" / "result.json" for seed in (1, 2)]
    before = [file.stat().st_mtime_ns for file in files]
    measure_instability(make_trainer(tmp_path / "run"), tmp_path / "paths", mask=mask, seeds=[1, 2], points=3)
    assert [file.stat().st_mtime_ns for file in files] == before
    with pytest.raises(ValueError, match="holds a network of another mask"):
        measure_instability(make_trainer(tmp_path / "run"), tmp_path / "paths", seeds=[1, 2])


def test_a_fixed_data_seed_does_not_fix_the_copies_orders(tmp_path):
    trainer = make_trainer(tmp_path / "run", data_seed=7)
    measure_instability(trainer, tmp_path / "paths", seeds=[1, 2], points=2)
    one, two = (NetworkFolder(tmp_path / "paths" / f"order-{seed}").trained().tensors for seed in (1, 2))
    assert any(not torch.equal(one[name], two[name]) for name in one)
    assert trainer.accelerator.dataloader_config.data_seed == 7


def test_reaching_the_rewind_point_gives_that_of_the_full_training(tmp_path):
    short, full = make_trainer(tmp_path / "short"), make_trainer(tmp_path / "full")
    reach_rewind_point(short)
    full.train()
    assert short.state.global_step == 4
    assert short.rewind_point.step == full.rewind_point.step == 3
    for name, value in full.rewind_point.tensors.items():
        assert torch.equal(short.rewind_point.tensors[name], value)


def test_one_data_order_is_not_enough(tmp_path):
    with pytest.raises(ValueError, match="instability needs two data orders at least"):
        measure_instability(make_trainer(tmp_path), tmp_path, seeds=[1, 1])


class NanAfter(TrainerCallback):
    """Writes nan into a weight after a step of each training that starts at step 3 (a copy), or of every one."""

    def __init__(self, step: int, copies_alone: bool = True):
        self.step, self.first, self.copies_alone = step, 0, copies_alone

    def on_train_begin(self, args, state, control, **kwargs):
        self.first = state.global_step

    def on_step_end(self, args, state, control, model, **kwargs):
        if state.global_step == self.step and (self.first == 3 or not self.copies_alone):
            next(model.parameters()).data.view(-1)[0] = float("nan")


def test_a_copy_that_diverges_is_one_sentence_each_time(tmp_path):
    for _ in range(2):
        trainer = make_trainer(tmp_path / "run", eval_strategy="steps", eval_steps=6)
        trainer.add_callback(NanAfter(5))
        with pytest.raises(DivergedError, match=r"data order 1 diverged at step 6 \(weights of '.*weight'\)"):
            measure_instability(trainer, tmp_path / "paths", seeds=[1, 2], points=3)


def test_a_dense_network_that_diverges_before_step_k_is_one_sentence(tmp_path):
    trainer = make_trainer(tmp_path / "run", eval_strategy="steps", eval_steps=2)
    trainer.add_callback(NanAfter(2, copies_alone=False))
    with pytest.raises(DivergedError, match=r"the dense network diverged at step 2 .*earlier rewind_step"):
        measure_instability(trainer, tmp_path / "paths", seeds=[1, 2], points=3)
