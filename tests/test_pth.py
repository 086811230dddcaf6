"""Reading .pth files: the same numbers as PyTorch's own reader, and nothing runs."""

from __future__ import annotations

import io
import os
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_pth_goldens import GOLDENS, expected, trained
from pth_writer import (
    FORMS,
    WRAPPERS,
    legacy,
    number,
    pickled,
    state,
    storage,
    tensor,
    text,
    tuple_of,
    write_pth,
    zipped,
)

import kapps
from kapps._pth import read_pth


@pytest.mark.parametrize("form", FORMS)
def test_golden_files(form):
    found = read_pth(GOLDENS / f"{form}.pth")
    assert list(found) == list(expected())
    for name, value in expected().items():
        assert found[name].dtype == value.dtype, name
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_equals_pytorchs_reader(form):
    torch = pytest.importorskip("torch")
    found = read_pth(GOLDENS / f"{form}.pth")
    for name, value in torch.load(GOLDENS / f"{form}.pth", weights_only=True).items():
        if value.dtype == torch.bfloat16:
            value = value.float()
        np.testing.assert_array_equal(found[name], value.detach().numpy(), err_msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_many_tensors(form, tmp_path):
    tensors = {f"layer{i}.weight": np.full((i, 2), i, np.float32) for i in range(1, 300)}
    (tmp_path / "w.pth").write_bytes(write_pth(tensors, form))
    found = read_pth(tmp_path / "w.pth")
    assert list(found) == list(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(found[name], value)


# What training programs write: see make_pth_goldens.py


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> bool:
    return found.keys() == wanted.keys() and all(
        np.array_equal(found[name], value) for name, value in wanted.items()
    )


def test_timms_checkpoint():
    file = GOLDENS / "checkpoint_timm.pth"
    assert same(read_pth(file), trained(average=True))
    assert same(read_pth(file, "state_dict_ema"), trained(average=True))
    assert same(read_pth(file, "state_dict"), trained())


def test_torchvisions_checkpoint():
    file = GOLDENS / "checkpoint_torchvision.pth"
    average = {f"module.{name}": value for name, value in trained(average=True).items()}
    assert same(read_pth(file), {"n_averaged": np.array(7), **average})
    assert same(read_pth(file, "model"), trained())


def test_the_only_dictionary_of_tensors_is_taken():
    assert same(read_pth(GOLDENS / "checkpoint_tutorial.pth"), trained())


ENTRY = b"}" + text("w") + tensor(storage()) + b"s"  # a dictionary of one tensor


def checkpoint(form: str, **entries: bytes) -> bytes:
    items = b"".join(text(name) + value + b"s" for name, value in entries.items())
    return WRAPPERS[form](pickled(b"}" + items))


@pytest.mark.parametrize("form", FORMS)
def test_where_the_weights_lie(form, tmp_path):
    file = tmp_path / "c.pth"

    def says(match: str, key: str | None = None) -> None:
        with pytest.raises(kapps.InputError, match=match) as error:
            read_pth(file, key)
        assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)

    file.write_bytes(checkpoint(form, epoch=number(3), net=ENTRY, best=ENTRY))
    says(r"several dictionaries of tensors, 'net', 'best': name .* key='net'\)$")
    says("no dictionary of tensors at 'nut'; there are: 'net', 'best'$", "nut")
    says("no dictionary of tensors at 'epoch'; there are", "epoch")
    assert read_pth(file, "best")["w"].shape == (2, 3)
    file.write_bytes(checkpoint(form, w=tensor(storage())))
    says("none; leave the key out", "state_dict")
    file.write_bytes(checkpoint(form, state_dict_ema=b"}", state_dict=ENTRY))
    assert read_pth(file)["w"].shape == (2, 3)  # an average that was not begun is passed over


def test_a_whole_module_is_named():
    with pytest.raises(
        kapps.InputError, match=r"a whole torch\..*Sequential at 'model'.*state_dict"
    ):
        read_pth(GOLDENS / "checkpoint_whole_model.pth")


@pytest.mark.parametrize("form", FORMS)
def test_the_whole_file_may_be_a_module(form, tmp_path):
    (tmp_path / "w.pth").write_bytes(WRAPPERS[form](pickled(b"cnet\nNet\n)\x81}b")))
    with pytest.raises(kapps.InputError, match="a whole net.Net, and to load it"):
        read_pth(tmp_path / "w.pth")


OBJECTS = {
    "reduced": b"cos\nsystem\n" + text("touch pwned") + b"\x85R",
    "built": b"cargparse\nNamespace\n)\x81}" + text("lr") + b"Nsb",
    "of protocol 0": b"(S'touch pwned'\nios\nsystem\n",
    "of protocol 1": b"(cos\nsystem\n" + text("touch pwned") + b"o",
    "of protocol 4": b"cnet\nNet\n)}\x92",
    "a counter": b"ccollections\nCounter\n}\x85R" + text("x") + b"Ns",
    "a list of its own": b"cnet\nList\n)\x81(NNe",
    "a set": b"\x8f(K\x01\x90",
    "a frozen set": b"(K\x01\x91",
    "a key": b"}cnet\nNet\nNs",
    "bytes": b"C\x03abc",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", OBJECTS)
def test_what_lies_beside_the_weights_is_never_made(case, form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("it ran"))
    file = tmp_path / "c.pth"
    file.write_bytes(checkpoint(form, args=OBJECTS[case], state_dict=ENTRY))
    assert list(read_pth(file)) == ["w"]
    assert not (tmp_path / "pwned").exists()


def test_what_lies_beside_the_weights_is_not_read(tmp_path):
    """An optimizer's state is twice as large as the weights."""
    content = (GOLDENS / "checkpoint_timm.pth").read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        last = max((m for m in archive.infolist() if "/data/" in m.filename), key=_number)
        first = archive.getinfo(last.filename.rpartition("/")[0] + "/0")
        places = [content.index(archive.read(m), m.header_offset) for m in (first, last)]
    for place, readable in zip(places, (False, True), strict=True):
        damaged = bytearray(content)
        damaged[place] ^= 1
        (tmp_path / "w.pth").write_bytes(damaged)
        if readable:
            assert same(read_pth(tmp_path / "w.pth", "state_dict"), trained())
        else:
            with pytest.raises(kapps.InputError, match="CRC"):
                read_pth(tmp_path / "w.pth", "state_dict")


def _number(member: zipfile.ZipInfo) -> int:
    return int(member.filename.rpartition("/")[2])


# Files that say what they should not.


@pytest.mark.parametrize("form", FORMS)
def test_the_files_written_here_are_good_but_for_what_is_tested(form, tmp_path):
    (tmp_path / "w.pth").write_bytes(WRAPPERS[form](state(tensor(storage()))))
    assert read_pth(tmp_path / "w.pth")["w"].shape == (2, 3)


def refused(tmp_path, content: bytes, reason: str) -> None:
    file = tmp_path / "bad.pth"
    file.write_bytes(content)
    with pytest.raises(kapps.InputError, match=reason) as error:
        read_pth(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)
    assert len(str(error.value)) < 500 + len(str(file))


COMMAND = "touch pwned"
HOSTILE = {
    "os.system": (b"cos\nsystem\n" + text(COMMAND) + b"\x85R", "os.system"),
    "posix.system": (text("posix") + text("system") + b"\x93" + text(COMMAND) + b"\x85R", "posix"),
    "eval": (
        b"c__builtin__\neval\n" + text(f"__import__('os').system({COMMAND!r})") + b"\x85R",
        "eval",
    ),
    "builtins.exec": (b"cbuiltins\nexec\n" + text("1/0") + b"\x85R", "builtins.exec"),
    "getattr": (b"cbuiltins\ngetattr\n" + text("x") + text("__class__") + b"\x86R", "getattr"),
    "subprocess": (b"csubprocess\nPopen\n" + text(COMMAND) + b"\x85R", "subprocess.Popen"),
    "protocol 0": (b"(S'touch pwned'\nios\nsystem\n", "os.system"),
    "a dotted name": (b"ctorch\nFloatStorage.__init__\n", "FloatStorage.__init__"),
    "another's OrderedDict": (b"ccollections\nnamedtuple\n", "collections.namedtuple"),
    "torch.load itself": (b"ctorch\nload\n" + text("x") + b"\x85R", "torch.load"),
    "torch.hub": (b"ctorch.hub\nload_state_dict_from_url\n", "torch.hub"),
    "a module": (b"ctorchvision.models.resnet\nResNet\n)\x81", "torchvision.models.resnet.ResNet"),
    "an object": (text("x") + b")\x81", "NEWOBJ"),
    "the registry": (b"\x82\x01", "EXT1"),
    "an own REDUCE": (text("x") + b")R", "no function"),
    "attributes": (text("x") + b"}b", "attributes"),
    "a call with other arguments": (b"ctorch\nSize\n)R", "torch|missing"),
    "another reference": (text("0") + b"Q", "no storage"),
    "a huge memo": (b"Nr\xff\xff\xff\x7f0", "POP"),
    "a huge string": (b"X\xff\xff\xff\x7fabc", "expected 2147483647 bytes"),
    "a huge string of 8 bytes": (b"\x8d" + b"\xff" * 7 + b"\x0fabc", "expected"),
    "a deep key": (b")" + b"\x85" * 100_000 + b"N", "keys are not names"),
    "a name that unfolds": (
        b")" + b"q\x00h\x00\x86" * 60 + text("x") + b"\x93",  # 2 ** 60 leaves, by the memo
        "name is no text",
    ),
    "calls that copy": (
        b"](" + b"N" * 5000 + b"eq\x00" + b"ctorch\nSize\nh\x00\x85R" * 1100,
        "more than any checkpoint",
    ),
    "memo without value": (b"h\x07", "KeyError"),
    "an empty stack": (b"0", "POP"),
    "SETITEM on nothing": (b"s", "not there"),
    "a mark's other side": (b"(\x85t", "not there"),
    "an append to no list": (b"}Na", "no list"),
    "a list as storage": (b"]Q", "no storage"),
    "a tensor of a list": (tensor(b"]"), "not made of a storage"),
    "a parameter of a list": (
        b"ctorch._utils\n_rebuild_parameter\n" + tuple_of(b"]", b"\x88", b"N") + b"R",
        "not made of a tensor",
    ),
    "text in place of a tensor": (text("x"), "entry 'w' is not a tensor|list of storages"),
    "an unknown storage": (tensor(storage("torch\nQInt8Storage")), "torch.QInt8Storage"),
    "two descriptions": (
        tensor(storage()) + b"0" + tensor(storage(count=7)),
        "POP|two ways",
    ),
    "beyond the end": (tensor(storage(), offset=1), "beyond its storage"),
    "far strides": (tensor(storage(), strides=(4, 1)), "beyond its storage"),
    "negative strides": (tensor(storage(), strides=(-3, 1)), "no list of whole numbers"),
    "a negative offset": (tensor(storage(), offset=-1), "do not fit together"),
    "huge sizes": (tensor(storage(), shape=(1 << 40, 1 << 40), strides=(0, 0)), "more elements"),
    "many dimensions": (tensor(storage(), shape=(1,) * 60, strides=(0,) * 60), "do not fit"),
    "strides of another number": (tensor(storage(), strides=(1,)), "do not fit together"),
    "a storage of another size": (tensor(storage(count=7)), "another size"),
    "a huge storage": (tensor(storage(count=1 << 45)), "another size"),
    "a missing storage": (tensor(storage(key="1")), "missing|list of storages"),
    "a storage outside": (tensor(storage(key="../0")), "missing|list of storages"),
    "a view beyond": (
        tensor(storage(view=tuple_of(text("1"), number(3), number(4)))),
        "beyond its storage",
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(case, form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where COMMAND would leave its file
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("it ran"))
    instructions, reason = HOSTILE[case]
    refused(tmp_path, WRAPPERS[form](state(instructions)), reason)
    assert not (tmp_path / "pwned").exists()


def test_the_hostile_files_are_dangerous_to_pythons_unpickler(tmp_path, monkeypatch):
    """Or the test above would show nothing."""
    monkeypatch.chdir(tmp_path)
    for case in ("os.system", "posix.system", "eval", "protocol 0"):
        pickle.loads(pickled(HOSTILE[case][0]))
        (tmp_path / "pwned").unlink()


DAMAGED = {
    "a deep key of a storage": (
        lambda data: legacy(data).replace(
            pickle.dumps(["0"], 2), pickled(b"](" + b")" + b"\x85" * 100_000 + b"e")
        ),
        "list of storages",
    ),
    "big-endian": (lambda data: zipped(data, byteorder=b"big"), "big-endian"),
    "big-endian legacy": (lambda data: legacy(data, little=False), "big-endian"),
    "compressed": (lambda data: zipped(data, compression=zipfile.ZIP_DEFLATED), "compressed"),
    "no zip of PyTorch's": (lambda data: zipped(data).replace(b"data.pkl", b"data.txt"), "without"),
    "cut short": (lambda data: legacy(data)[:-1], "too early"),
    "too long": (lambda data: legacy(data) + b"x", "behind its end"),
    "a wrong count": (lambda data: legacy(data, count=-1), "another size"),
    "short elements": (lambda data: zipped(data, bytes(20)), "another size"),
    "another pickle": (lambda data: pickle.dumps({"w": 1}), "begin"),
    "a web page": (lambda data: b"<!doctype html><html>" * 40, "no readable"),
    "nothing": (lambda data: b"", "no readable"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files(case, tmp_path):
    make, reason = DAMAGED[case]
    refused(tmp_path, make(state(tensor(storage()))), reason)


def test_a_flipped_byte_of_a_zip_is_found_by_its_checksum(tmp_path):
    content = bytearray((GOLDENS / "zip.pth").read_bytes())
    with zipfile.ZipFile(GOLDENS / "zip.pth") as archive:
        (member,) = (m for m in archive.infolist() if m.filename.endswith("/data/0"))
    place = content.index(expected()["conv.weight"].tobytes(), member.header_offset)
    content[place] ^= 1
    refused(tmp_path, bytes(content), "CRC")


def test_members_that_overlap(tmp_path):
    """Many members of the same bytes: a small file that would unfold to a large one."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("net/data.pkl", state(tensor(storage())))
        archive.writestr("net/data/0", bytes(24 * 40))
        first = archive.getinfo("net/data/0")
        for i in range(1, 100):
            twin = zipfile.ZipInfo(f"net/data/{i}")
            for slot in ("header_offset", "file_size", "compress_size", "CRC", "compress_type"):
                setattr(twin, slot, getattr(first, slot))
            archive.filelist.append(twin)
            archive.NameToInfo[twin.filename] = twin
    refused(tmp_path, file.getvalue(), "overlap")


def test_a_checkpoint_without_tensors(tmp_path):
    refused(
        tmp_path,
        legacy(pickled(b"}")).replace(pickle.dumps(["0"], 2), pickle.dumps([], 2))[:-32],
        "no dictionary of tensors",
    )


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=300)
@given(data=st.data())
def test_mutated_files_raise_nothing_else(form, data, tmp_path_factory):
    content = bytearray((GOLDENS / f"{form}.pth").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(("set", "cut", "insert", "remove")))
        if kind == "set":
            content[place] = data.draw(st.integers(0, 255))
        elif kind == "cut" and place > 0:
            del content[place:]
        elif kind == "insert":
            content[place:place] = data.draw(st.binary(max_size=8))
        else:
            del content[place : place + data.draw(st.integers(1, 8))]
        if not content:
            break
    file = tmp_path_factory.mktemp("pth") / "w.pth"
    file.write_bytes(content)
    try:
        found = read_pth(file)
    except kapps.InputError as error:
        assert str(file) in str(error)
    else:
        assert all(isinstance(value, np.ndarray) for value in found.values())
