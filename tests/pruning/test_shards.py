"""Selection over parts of weights on several processes is selection over the whole."""

import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.multiprocessing import start_processes

from hf_lottery.distributed.processes import leave
from hf_lottery.mask import Mask
from hf_lottery.pruning.selection.select import prune, select
from hf_lottery.pruning.selection.shards import Shards


class Team:
    """Threads as processes: an all-reduce that waits for all of them, and a split of tensors by rows."""

    def __init__(self, size):
        self.size, self.barrier, self.parts = size, threading.Barrier(size, timeout=60), [None] * size

    def all_reduce(self, rank, counts):
        self.parts[rank] = counts.clone()
        self.barrier.wait()
        total = torch.stack(self.parts).sum(0)
        self.barrier.wait()
        return total

    def run(self, work):
        """`work(rank)` on every rank -> results or exceptions."""
        results = [None] * self.size

        def one(rank):
            try:
                results[rank] = work(rank)
            except ValueError as error:
                results[rank] = error

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.size)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        return results

    def shards(self, rank, tensors):
        offsets = {
            name: sum(len(part) for part in tensor.tensor_split(self.size)[:rank]) * tensor.shape[1:].numel()
            for name, tensor in tensors.items()
        }
        return Shards({n: t.shape for n, t in tensors.items()}, offsets, lambda counts: self.all_reduce(rank, counts))

    def part(self, rank, tensors):
        return {name: tensor.tensor_split(self.size)[rank] for name, tensor in tensors.items()}


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 5), st.sampled_from([1, 3, 1000]), st.data())
def test_parts_are_pruned_as_the_whole(seed, size, tensors, distinct, data):
    generator = torch.Generator().manual_seed(seed)
    shapes = [data.draw(st.sampled_from([(1, 3), (5, 4), (9,), (2, 3, 2)])) for _ in range(tensors)]
    scores = {
        f"{index}": torch.randint(-distinct, distinct, shape, generator=generator) / distinct
        for index, shape in enumerate(shapes)
    }
    alive = {name: torch.rand(score.shape, generator=generator) > 0.2 for name, score in scores.items()}
    count = data.draw(st.integers(0, Mask(alive).count()))
    team = Team(size)
    whole = select(scores, Mask(alive), count)
    parts = team.run(
        lambda rank: select(
            team.part(rank, scores), Mask(team.part(rank, alive)), count, shards=team.shards(rank, scores)
        )
    )
    assert Mask({name: torch.cat([part[name] for part in parts]) for name in scores}) == whole


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_parts_large_enough_to_be_sampled(scope):
    scores = {"a": torch.randn(1300, 1000), "b": torch.randn(7, 1000), "c": torch.randn(300, 999).bfloat16()}
    whole = prune(scores, Mask.ones(scores), 0.3, scope=scope, key=torch.abs)
    team = Team(2)
    parts = team.run(
        lambda rank: prune(
            team.part(rank, scores), Mask.ones(team.part(rank, scores)), 0.3, scope=scope, key=torch.abs,
            shards=team.shards(rank, scores),
        )
    )  # fmt: skip
    assert Mask({name: torch.cat([part[name] for part in parts]) for name in scores}) == whole


def test_an_error_in_one_part_stops_all():
    scores = {"a": torch.rand(4, 2), "b": torch.tensor([[0.0], [1.0], [float("nan")], [2.0]])}
    team = Team(2)

    def work(rank):
        part = team.part(rank, scores)
        return select(part, Mask.ones(part), 3, shards=team.shards(rank, scores))

    errors = team.run(work)
    assert all(isinstance(error, ValueError) and "'b' is NaN" in str(error) for error in errors)


def one_of_two(rank, store):
    """What each of two real processes does: FSDP2 over gloo."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 11), nn.ReLU(), nn.Linear(11, 3), nn.Linear(3, 1))
        with torch.no_grad():
            model[2].weight.mul_(4).round_()  # ties
        weights = {name: p.detach().clone() for name, p in model.named_parameters() if "weight" in name}
        fully_shard(model)
        sharded = {name: p for name, p in model.named_parameters() if "weight" in name}
        shards = Shards.of(sharded)
        local = {name: p.to_local() for name, p in sharded.items()}
        for scope in ("layer", "global"):
            whole, mine = Mask.ones(weights), Mask.ones(local)
            for _ in range(4):
                whole = prune(weights, whole, 0.3, scope=scope, key=torch.abs)
                mine = prune(local, mine, 0.3, scope=scope, key=torch.abs, shards=shards)
            for name, p in sharded.items():
                expected = distribute_tensor(whole[name], p.device_mesh, p.placements).to_local()
                assert torch.equal(mine[name], expected), (scope, name)
        columns = distribute_tensor(torch.rand(4, 4), init_device_mesh("cpu", (2,)), [Shard(1)])
        with pytest.raises(ValueError, match=r"'w' is placed as .*one Shard\(0\)"):
            Shards.of({"w": columns})
        with pytest.raises(ValueError, match="'w' is a Tensor, not a DTensor"):
            Shards.of({"w": torch.rand(2)})
    finally:
        dist.destroy_process_group()


def test_fsdp2_on_two_processes(tmp_path):
    # ranks of a fork server do not finalise Python, which gloo's threads can abort (pytorch/pytorch#190489)
    start_processes(one_of_two, (tmp_path / "store",), nprocs=2, start_method="forkserver")


def greet_and_leave(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    dist.all_reduce(torch.ones(3))
    assert gloo_threads()
    leave()
    assert not dist.is_initialized() and not gloo_threads()
    leave()  # of nothing


def gloo_threads() -> list[str]:
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_no_thread_of_gloo_outlives_the_work(tmp_path):
    start_processes(greet_and_leave, (tmp_path,), nprocs=2, start_method="forkserver")
