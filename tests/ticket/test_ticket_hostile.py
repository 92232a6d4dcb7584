"""A ticket is hostile until read: damage and forgery give TicketError, never another exception, never a wrong mask."""

import json
import shutil
import struct
import zlib

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from hf_lottery.mask import Mask
from hf_lottery.ticket.base_model import tensor_sha256
from hf_lottery.ticket.document import dump
from hf_lottery.ticket.model_config import plain_config
from hf_lottery.ticket.rewind_point import RewindPoint
from hf_lottery.ticket.ticket import Ticket, TicketError
from tests.ticket_cases import Tiny, reseal, tiny_ticket

FILES = ("ticket.json", "mask.safetensors", "rewind.safetensors")


def small_ticket() -> Ticket:
    mask = Mask({"w": torch.tensor([[True, False, True], [False, True, True]])})
    return Ticket(mask, RewindPoint(0, {"w": torch.randn(2, 3)}), {"seeds": [1]})


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_every_changed_byte_and_every_truncation_is_noticed(tmp_path, name, compress):
    small_ticket().save_pretrained(tmp_path, compress=compress)
    path = tmp_path / name
    whole = path.read_bytes()
    with path.open("r+b") as file:
        for position in range(len(whole)):
            file.seek(position)
            file.write(bytes([whole[position] ^ (1 + 37 * position % 255)]))
            file.flush()
            with pytest.raises(TicketError):
                Ticket.from_pretrained(tmp_path)
            file.seek(position)
            file.write(whole[position : position + 1])
            file.flush()
        assert Ticket.from_pretrained(tmp_path).mask == small_ticket().mask
        for length in range(len(whole) - 1, -1, -1):
            file.truncate(length)
            with pytest.raises(TicketError):
                Ticket.from_pretrained(tmp_path)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    name=st.sampled_from(["mask.safetensors", "rewind.safetensors"]),
    compress=st.booleans(),
    position=st.integers(0, 10**6),
    value=st.integers(0, 255),
    cut=st.booleans(),
)
def test_damage_under_a_right_hash_is_an_error_or_the_same_mask(tmp_path, name, compress, position, value, cut):
    ticket = small_ticket()
    ticket.save_pretrained(tmp_path, compress=compress)
    path = tmp_path / name
    data = bytearray(path.read_bytes())
    position %= len(data)
    data[position] = value
    path.write_bytes(bytes(data[:position]) if cut else bytes(data))
    reseal(tmp_path)
    try:
        found = Ticket.from_pretrained(tmp_path)
        assert found.mask == ticket.mask
        assert found.rewind.tensors["w"].shape == (2, 3)
    except TicketError:
        pass


def leaves(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from leaves(item, (*path, key))


ODD = [
    None,
    True,
    -1,
    2**63,
    10**29,
    1.5,
    "",
    "x",
    "../../etc/passwd",
    "os:system",
    [],
    [[]],
    {},
    {"a": 1},
    [-1],
    [1] * 99,
]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data(), odd=st.sampled_from(ODD), remove=st.booleans())
def test_a_forged_field_is_an_error_or_the_same_mask(forged_folder, data, odd, remove):
    folder, original = forged_folder
    (folder / "ticket.json").write_bytes(original)
    document = json.loads(original)
    path = data.draw(st.sampled_from([path for path in leaves(document) if path]))
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    if remove:
        del parent[path[-1]]
    else:
        parent[path[-1]] = odd
    document.pop("sha256", None)
    (folder / "ticket.json").write_bytes(dump(document))
    try:
        found = Ticket.from_pretrained(folder)
        assert found.mask == tiny_ticket().mask
        found.apply_to(Tiny())
    except TicketError:
        pass


@pytest.mark.parametrize("rates", [{}, {"learning_rate": None}, {"learning_rate": -1}, {"learning_rate": 1e300}])
def test_a_forged_learning_rate_is_named(tmp_path, rates):
    line = {"replicate": 0, "round": 1, "control": "ticket", "density": 0.3, "recipe_learning_rate": 0.1}
    tiny_ticket(results=[line | {"learning_rate": 0.3}]).save_pretrained(tmp_path)
    assert Ticket.from_pretrained(tmp_path).info["results"] == [line | {"learning_rate": 0.3}]
    reseal(tmp_path, lambda document: document.update(results=[line | rates]))
    with pytest.raises(TicketError, match="learning_rate"):
        Ticket.from_pretrained(tmp_path)


@pytest.fixture(scope="module")
def forged_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forged")
    line = {"replicate": 0, "round": 1, "control": "ticket", "density": 0.3, "test_accuracy": 0.9, "sample": 0}
    config = {"model_type": "lenet", "hidden_sizes": [3, 4], "id2label": {"0": "LABEL_0"}}
    tiny_ticket(results=[line], config=config, seeds=[1], versions={"torch": "2"}).save_pretrained(folder)
    return folder, (folder / "ticket.json").read_bytes()


@pytest.mark.parametrize("encoding", ["packed", "deflate"])
def test_a_claim_of_a_trillion_weights_takes_no_memory(tmp_path, traced_peak, encoding):
    small_ticket().save_pretrained(tmp_path, compress=encoding == "deflate")

    def claim(document):
        document["tensors"]["w"] |= {"shape": [10**6, 10**6], "kept": 4, "stored": "survivors"}

    reseal(tmp_path, claim)
    with traced_peak(at_most=1 << 22), pytest.raises(TicketError):
        ticket = Ticket.from_pretrained(tmp_path)
        ticket.mask  # noqa: B018
    if encoding == "deflate":
        ticket = Ticket.from_pretrained(tmp_path)
        with traced_peak(at_most=1 << 22), pytest.raises(TicketError, match="2, 3"):
            ticket.apply_to(torch.nn.ParameterDict({"w": torch.zeros(2, 3)}))


def test_a_bomb_is_unpacked_for_no_one(tmp_path, traced_peak):
    small_ticket().save_pretrained(tmp_path, compress=True)
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"\x01" + coder.compress(bytes(1 << 25)) + coder.flush()
    save_file({"w": torch.frombuffer(bytearray(bomb), dtype=torch.uint8)}, tmp_path / "mask.safetensors")
    reseal(tmp_path, lambda document: document["tensors"]["w"].update(shape=[1 << 28]))
    with traced_peak(at_most=1 << 22), pytest.raises(TicketError, match="too many to unpack without a model"):
        Ticket.from_pretrained(tmp_path).mask  # noqa: B018
    reseal(tmp_path, lambda document: document["tensors"]["w"].update(shape=[2, 3]))
    with traced_peak(at_most=1 << 22), pytest.raises(TicketError):
        Ticket.from_pretrained(tmp_path).mask  # noqa: B018


def test_zeros_for_a_billion_values_are_made_for_no_one(tmp_path):
    mask = Mask({"w": torch.zeros(1 << 14, 1 << 13, dtype=torch.bool)})
    values = torch.zeros(1, dtype=torch.float64).expand(1 << 14, 1 << 13)
    Ticket(mask, RewindPoint(0, {"w": values}), {}).save_pretrained(tmp_path, compress=True)
    found = Ticket.from_pretrained(tmp_path)
    assert found.mask.count() == 0
    with pytest.raises(TicketError, match="stand for 1,073,741,824, too many to unpack without a model"):
        found.rewind  # noqa: B018


@pytest.mark.parametrize(
    "config", [1, "bert", [1], True, {"model_type": 1}, {"num_labels": "3"}, {"num_labels": -1}, {"num_labels": [1]}]
)
def test_a_config_that_could_not_be_used_is_refused(tmp_path, config):
    small_ticket().save_pretrained(tmp_path)
    reseal(tmp_path, lambda document: document.update(config=config))
    with pytest.raises(TicketError, match="'config"):
        Ticket.from_pretrained(tmp_path)


def test_a_large_mask_with_a_small_file_is_unpacked_for_a_model_that_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_lottery.ticket.tensors._FREE_GROWTH", 1 << 10)
    mask = Mask({"w": torch.ones(1 << 10, 1 << 10, dtype=torch.bool)})
    weight = torch.zeros(1 << 10, 1 << 10)
    ticket = Ticket(mask, RewindPoint(0, {}), {"base_tensors": {}})
    ticket.info["base_tensors"]["w"] = {
        "stored": "base",
        "shape": list(weight.shape),
        "dtype": "float32",
        "sha256": tensor_sha256(weight),
    }
    ticket.save_pretrained(tmp_path, compress=True)
    found = Ticket.from_pretrained(tmp_path)
    with pytest.raises(TicketError, match=r"apply_to\(model\)"):
        found.mask  # noqa: B018
    found.apply_to(torch.nn.ParameterDict({"w": weight}))
    assert found.mask == mask


BAD_JSON = {
    "deep": b"[" * 200_000,
    "not an object": b"[1]",
    "a number of many digits": b'{"schema": ' + b"9" * 100_000 + b"}",
    "an infinite number": b'{"schema": 1e999}',
    "NaN": b'{"schema": NaN}',
    "a key twice": b'{"schema": "2.0", "schema": "3.0"}',
    "not text": b"\xff\xfe",
    "nothing": b"",
    "a pickle": b"\x80\x04K\x01.",
}


@pytest.mark.parametrize("what", BAD_JSON)
def test_bad_json_is_our_error(tmp_path, what):
    small_ticket().save_pretrained(tmp_path)
    (tmp_path / "ticket.json").write_bytes(BAD_JSON[what])
    with pytest.raises(TicketError):
        Ticket.from_pretrained(tmp_path)


def test_a_ticket_json_without_end_is_not_read(tmp_path, traced_peak, monkeypatch):
    small_ticket().save_pretrained(tmp_path)
    monkeypatch.setattr("hf_lottery.ticket.document.MAX_BYTES", 1 << 16)
    with (tmp_path / "ticket.json").open("ab") as file:
        file.truncate(1 << 30)
    with traced_peak(at_most=1 << 22), pytest.raises(TicketError, match="at most"):
        Ticket.from_pretrained(tmp_path)


def test_a_ticket_json_of_many_small_values_is_not_read(tmp_path, traced_peak):
    small_ticket().save_pretrained(tmp_path)
    (tmp_path / "ticket.json").write_bytes(b'{"a": [' + b"[]," * (1 << 22) + b"[]]}")
    with traced_peak(at_most=1 << 25), pytest.raises(TicketError, match="values; at most"):
        Ticket.from_pretrained(tmp_path)


FORGED = {
    "a file of its own choosing": lambda d: d["files"].update({"../x.safetensors": d["files"]["mask.safetensors"]}),
    "a Python file": lambda d: d["files"].update({"modeling.py": d["files"]["mask.safetensors"]}),
    "an unknown field": lambda d: d.update(loader="os.system"),
    "a criterion that is an import path": lambda d: d.update(criterion="os.system"),
    "code in the config": lambda d: d.update(config={"auto_map": {"AutoModel": "evil.Model"}}),
    "code deep in the config": lambda d: d.update(config={"a": {"b": [{"quantization_config": {}}]}}),
    "a kernel of the Hub": lambda d: d.update(config={"attn_implementation": "evil/kernels"}),
    "a path in the config": lambda d: d.update(config={"vocab": "/etc/passwd"}),
    "a base model that is a path": lambda d: d.update(base_model="../model"),
    "an escape sequence": lambda d: d.update(recipe="\x1b[2J"),
    "a name that is none": lambda d: d["tensors"].update({"\x1b[2J": d["tensors"]["w"]}),
    "another polarity": lambda d: d.update(mask_true_means="pruned"),
    "a negative count": lambda d: d["tensors"]["w"].update(kept=-1),
    "more kept than there are": lambda d: d["tensors"]["w"].update(kept=7),
    "no rewind point": lambda d: d["files"].pop("rewind.safetensors"),
    "no mask": lambda d: d["files"].pop("mask.safetensors"),
    "an endless shape": lambda d: d["tensors"]["w"].update(shape=[1 << 40] * 8),
    "another fingerprint": lambda d: d.update(fingerprint="0" * 64),
    "other survivors": lambda d: d["tensors"]["w"].update(dtype="float64"),
}


@pytest.mark.parametrize("what", FORGED)
def test_forgeries_are_refused(tmp_path, what):
    small_ticket().save_pretrained(tmp_path)
    reseal(tmp_path, FORGED[what])
    with pytest.raises(TicketError):
        Ticket.from_pretrained(tmp_path).mask  # noqa: B018


def test_a_header_larger_than_the_file_is_refused(tmp_path):
    small_ticket().save_pretrained(tmp_path)
    path = tmp_path / "mask.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 60) + path.read_bytes()[8:])
    reseal(tmp_path)
    with pytest.raises(TicketError, match="header"):
        Ticket.from_pretrained(tmp_path)


def test_a_pickle_in_the_folder_is_never_opened(tmp_path):
    small_ticket().save_pretrained(tmp_path)
    shutil.copy(tmp_path / "mask.safetensors", tmp_path / "training_args.bin")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR.")
    assert Ticket.from_pretrained(tmp_path).mask == small_ticket().mask


def test_a_config_goes_into_a_ticket_without_its_code():
    config = {
        "model_type": "lenet",
        "auto_map": {"AutoModel": "me--x.Y"},
        "_name_or_path": "/home/me/model",
        "attn_implementation": "me/kernel",
        "hidden_act": "gelu",
        "id2label": {0: "a", 1: "b/c"},
        "text_config": {"quantization_config": {"a": 1}, "hidden_size": 4},
        "layers": [1, 2.5, None, True],
    }
    assert plain_config(config) == {
        "model_type": "lenet",
        "hidden_act": "gelu",
        "id2label": {"0": "a"},
        "text_config": {"hidden_size": 4},
        "layers": [1, 2.5, None, True],
    }
