"""Published weights against a server on this machine: what comes damaged is never read or kept."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import hub_server
import keras
import numpy as np
import pytest
import safetensors.numpy
from hub_server import File
from model_table import TABLE
from pth_writer import FORMS, write_pth

import kapps
from kapps import _hub, _index

SMALL = (32, 32, 3)
BUILDER = "LeNet5"
REPOSITORY = "timm/lenet5.lamb_in1k"
TORCHVISION_BUILDER = "NiN"
TORCHVISION_FILE = "nin-f707e7126e.pth"


def row_of(published: str, builder: str, source: str) -> _index.PublishedWeights:
    """As the default weights of one network, but of another, which is smaller."""
    row = _index.find(published, "imagenet")
    return dataclasses.replace(row, builder=builder, source=source)


@pytest.fixture(scope="module")
def index() -> dict[str, list[_index.PublishedWeights]]:
    """Of what is published, with two small networks in it."""
    return {
        **_index._index(),
        BUILDER: [row_of("MobileNetV3Small", BUILDER, REPOSITORY)],
        TORCHVISION_BUILDER: [row_of("ShuffleNetV2_x0_5", TORCHVISION_BUILDER, TORCHVISION_FILE)],
    }


def published_net(index, builder: str) -> keras.Model:
    """With the normalization that the index says, and other numbers than any other net."""
    model = getattr(kapps, builder)(input_shape=SMALL)
    normalization = model.get_layer("normalization")
    normalization.mean.assign(index[builder][0].mean)
    normalization.std.assign(index[builder][0].std)
    return model


@pytest.fixture(scope="module")
def source(index) -> keras.Model:
    return published_net(index, BUILDER)


@pytest.fixture(scope="module")
def good(source, tmp_path_factory) -> bytes:
    """What the hub holds: without metadata about the normalization."""
    file = tmp_path_factory.mktemp("good") / "w.safetensors"
    kapps.save_weights(source, file)
    return safetensors.numpy.save(safetensors.numpy.load_file(file), {"format": "pt"})


@pytest.fixture
def server():
    with hub_server.serve() as server:
        yield server


@pytest.fixture
def cache(server, index, tmp_path, monkeypatch) -> Path:
    """An empty cache, and the server in place of both publishers."""
    import huggingface_hub.constants as constants

    for name, value in environment(server, tmp_path).items():
        monkeypatch.setenv(name, value)
    # huggingface_hub reads its own when it is imported
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(_index, "_index", lambda: index)
    return tmp_path


def environment(server, folder) -> dict[str, str]:
    return {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(folder / "hf"),
        "KAPPS_TORCHVISION_ENDPOINT": server.url,
        "KAPPS_HOME": str(folder / "kapps"),
    }


def kept(folder: Path) -> list[Path]:
    """The weights in both caches, whole or in part; not locks and the hub's notes."""
    return [
        path
        for path in folder.rglob("*")
        if (path.is_symlink() or path.is_file())
        and path.suffix != ".lock"
        and path.name not in ("main", "CACHEDIR.TAG", "agent_harnesses.json")
        and ".no_exist" not in path.parts
    ]


def build(**arguments) -> keras.Model:
    return kapps.LeNet5(weights="imagenet", input_shape=SMALL, **arguments)


def assert_equal(one: keras.Model, other: keras.Model) -> None:
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def refused(match: str, builder: str = BUILDER, weights: str = "imagenet") -> str:
    with pytest.raises(kapps.InputError, match=match) as error:
        getattr(kapps, builder)(weights=weights, input_shape=SMALL)
    message = str(error.value)
    assert "\n" not in message
    return message


# The hub


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_downloaded_once_checked_and_loaded(server, cache, source, good):
    server.put_hub(REPOSITORY, File(good))
    with contextlib.redirect_stderr(Terminal()) as terminal:  # where progress bars are shown
        model = build()
    assert_equal(model, source)
    assert server.downloads() == 1
    assert "model.safetensors" in terminal.getvalue() and "100%" in terminal.getvalue()
    before = len(server.requests)
    assert_equal(kapps.LeNet5(weights="lamb_in1k", input_shape=SMALL), source)
    assert len(server.requests) == before  # from the cache, without asking anybody


def test_offline_with_and_without_the_file(server, cache, source, good, monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = refused("HF_HUB_OFFLINE")
    assert "lenet5.lamb_in1k.safetensors" in message and server.url in message
    assert not server.requests
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    server.put_hub(REPOSITORY, File(good))
    build()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_equal(build(), source)


def test_no_connection(cache, monkeypatch):
    import huggingface_hub.constants as constants

    with socket.socket() as free:  # a port where nobody listens
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("KAPPS_TORCHVISION_ENDPOINT", url)
    for builder, name in (
        (BUILDER, "lenet5.lamb_in1k.safetensors"),
        (TORCHVISION_BUILDER, TORCHVISION_FILE),
    ):
        message = refused(f"cannot fetch {url}.*refused.*with another machine", builder)
        assert f"weights='some/folder/{name}'" in message
    assert not kept(cache)


def flipped(content: bytes, place: int = -5) -> bytes:
    content = bytearray(content)
    content[place] ^= 1
    return bytes(content)


def test_a_flipped_byte_is_never_kept(server, cache, good):
    server.put_hub(REPOSITORY, File(good, sent=[flipped(good)]))
    message = refused(f"{REPOSITORY}/resolve/main/model.safetensors came damaged, twice.*SHA-256")
    assert "nothing was kept" in message
    assert server.downloads() == 2
    assert not kept(cache)


def test_damage_on_the_way_is_repaired_by_a_second_try(server, cache, source, good):
    server.put_hub(REPOSITORY, File(good, sent=[flipped(good), good]))
    assert_equal(build(), source)
    assert server.downloads() == 2


def test_damage_in_the_cache_is_found_and_repaired(server, cache, source, good):
    server.put_hub(REPOSITORY, File(good))
    build()
    (blob,) = (cache / "hf").rglob("blobs/*")
    blob.write_bytes(flipped(blob.read_bytes()))
    assert_equal(build(), source)
    assert server.downloads() == 2
    assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    server.files.clear()
    blob.write_bytes(flipped(blob.read_bytes()))
    refused("cannot fetch")
    assert not kept(cache)


def test_a_blob_in_a_store_of_another_digest(server, cache, source, good):
    """As huggingface_hub 2 shares files between repositories: the blob is itself a link."""
    server.put_hub(REPOSITORY, File(good))
    build()
    (blob,) = (cache / "hf").rglob("blobs/*")
    store = cache / "hf" / ("ab" * 32)
    blob.rename(store)
    blob.symlink_to(os.path.relpath(store, blob.parent))
    assert_equal(build(), source)
    assert server.downloads() == 1
    store.write_bytes(flipped(good))
    server.files.clear()
    refused("cannot fetch")
    assert not kept(cache)


def test_a_cache_without_links_asks_for_the_digest(server, cache, source, good):
    server.put_hub(REPOSITORY, File(good))
    build()
    (link,) = (cache / "hf").rglob("snapshots/*/*")
    link.unlink()
    link.write_bytes(good)
    assert_equal(build(), source)
    assert server.downloads() == 1
    link.write_bytes(flipped(good))
    assert_equal(build(), source)


def test_a_truncated_file(server, cache, good):
    server.put_hub(REPOSITORY, File(good, sent=[good[:-1000]]))
    refused("cannot fetch .*model.safetensors")
    assert not kept(cache)


def test_a_web_page_in_place_of_the_hub(server, cache, good):
    server.put_hub(REPOSITORY, File(good, is_page=True))
    refused("tells no SHA-256.*a proxy's page")
    server.put_hub(REPOSITORY, File(good, etag="0123456789abcdef0123456789abcdef01234567"))
    refused("tells no SHA-256 for it .'0123456789abcdef")  # as for small files, kept in git
    server.put_hub(REPOSITORY, File(good, sent=[hub_server.PAGE]))
    refused("cannot fetch")
    same_size = hub_server.PAGE.ljust(len(good))[: len(good)]
    server.put_hub(REPOSITORY, File(good, sent=[same_size]))
    refused("came damaged")
    assert not kept(cache)


def test_a_file_that_the_hub_does_not_have(cache):
    refused("cannot fetch .*404|cannot fetch .*Not Found")


@pytest.mark.parametrize("fault", ["shape", "missing", "extra"])
def test_a_good_file_of_another_network(fault, server, cache, good):
    tensors = safetensors.numpy.load(good)
    if fault == "shape":
        tensors["conv1.weight"] = np.zeros((8, 3, 5, 5), np.float32)
    elif fault == "missing":
        del tensors["fc1.bias"]
    else:
        tensors["conv9.weight"] = np.zeros((1, 1, 1, 1), np.float32)
    server.put_hub(REPOSITORY, File(safetensors.numpy.save(tensors)))
    reasons = {
        "shape": r"shapes differ: conv1.weight: \(8, 3, 5, 5\) in the file",
        "missing": "only in the model: fc1.bias",
        "extra": "only in the file: conv9.weight",
    }
    message = refused(reasons[fault])
    assert "model.safetensors" in message and "removed from the cache" in message
    assert not kept(cache)


def test_a_good_file_stays_where_the_caller_wants_another_width(server, cache):
    kapps.save_weights(kapps.MobileNetV3Small(input_shape=SMALL), cache / "w.safetensors")
    content = (cache / "w.safetensors").read_bytes()
    for left in cache.glob("w.*"):
        left.unlink()
    server.put_hub("timm/mobilenetv3_small_100.lamb_in1k", File(content))
    with pytest.raises(
        kapps.InputError,
        match="shapes differ.*at its defaults, not with alpha=0.5; "
        "there are also weights of MobileNetV3Small_050",
    ):
        kapps.MobileNetV3Small(weights="imagenet", input_shape=SMALL, alpha=0.5)
    assert _hub.fetch(_index.find("MobileNetV3Small", "imagenet")).read_bytes() == content
    assert server.downloads() == 1


def test_nothing_is_fetched_that_cannot_be_read(server, cache, good, monkeypatch):
    server.put_hub(REPOSITORY, File(good))
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    refused("needs the package safetensors: pip install")
    assert not server.requests and not kept(cache)


def test_a_good_sum_of_a_bad_file(server, cache):
    server.put_hub(REPOSITORY, File(b"\x10" + b"\0" * 7 + b"not safetensors!"))
    refused("not a readable .safetensors file.*removed from the cache")
    assert not kept(cache)


def test_normalization_is_that_of_the_weights(server, cache, good):
    row = _index.find(BUILDER, "imagenet")
    other = dataclasses.replace(row, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    server.put_hub(REPOSITORY, File(good))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_index, "_index", lambda: {BUILDER: [other]})
        model, gray = build(), kapps.LeNet5(weights="imagenet")
        bare = build(include_preprocessing=False)
    layer = model.get_layer("normalization")
    np.testing.assert_allclose(keras.ops.convert_to_numpy(layer.mean), (0.1, 0.2, 0.3))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(layer.std), (0.4, 0.5, 0.6))
    layer = gray.get_layer("normalization")
    np.testing.assert_allclose(keras.ops.convert_to_numpy(layer.mean), [0.2], rtol=1e-6)
    assert model.kapps_weights == gray.kapps_weights == bare.kapps_weights == other


def test_other_classes_and_no_classifier(server, cache, source, good):
    server.put_hub(REPOSITORY, File(good))
    with pytest.warns(UserWarning, match="10 classes and the model 5.*'fc3' keeps"):
        five = build(classes=5)
    headless = build(include_top=False)
    stem = source.get_layer("conv1").get_weights()[0]
    for model in (five, headless):
        np.testing.assert_array_equal(model.get_layer("conv1").get_weights()[0], stem)
    assert headless.kapps_weights is not None


# torchvision


@pytest.fixture(scope="module")
def nin(index) -> keras.Model:
    return published_net(index, TORCHVISION_BUILDER)


@pytest.fixture(params=FORMS)
def published(request, server, cache, nin, monkeypatch) -> File:
    """torchvision's address has a .pth file, and the index knows it by its digits."""
    kapps.save_weights(nin, cache / "w.safetensors")
    content = write_pth(safetensors.numpy.load_file(cache / "w.safetensors"), request.param)
    for left in cache.glob("w.*"):
        left.unlink()
    name = f"nin-{hashlib.sha256(content).hexdigest()[:10]}.pth"
    row = row_of("ShuffleNetV2_x0_5", TORCHVISION_BUILDER, name)
    monkeypatch.setattr(_index, "_index", lambda: {TORCHVISION_BUILDER: [row]})
    server.files[f"/{name}"] = File(content)
    return server.files[f"/{name}"]


def test_torchvision_file(server, cache, published, nin):
    with contextlib.redirect_stderr(Terminal()) as terminal:
        for weights in ("IMAGENET1K_V1", "imagenet"):
            model = kapps.NiN(weights=weights, input_shape=SMALL)
            assert_equal(model, nin)
    assert server.downloads() == 1
    assert "nin-" in terminal.getvalue() and "100%" in terminal.getvalue()
    (file,) = kept(cache)
    assert file.parent == cache / "kapps" / "torchvision"


DAMAGES = {
    "a flipped byte": (lambda file: file.sent.append(flipped(file.content)), "SHA-256"),
    "another length": (lambda file: file.sent.append(file.content[:-9]), "SHA-256"),
    "a cut connection": (lambda file: setattr(file, "cut_at", 5000), r"5000 of \d+ bytes"),
    "a web page": (lambda file: setattr(file, "is_page", True), "a web page"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_torchvision_file_damaged(damage, server, cache, published):
    spoil, reason = DAMAGES[damage]
    spoil(published)
    refused(f"came damaged, twice: .*{reason}|cannot fetch.*{reason}", TORCHVISION_BUILDER)
    assert server.downloads() == 2
    assert not kept(cache)


def test_torchvision_file_damaged_in_the_cache(server, cache, published, nin):
    for _ in range(2):
        model = kapps.NiN(weights="imagenet", input_shape=SMALL)
        assert_equal(model, nin)
        (file,) = kept(cache)
        file.write_bytes(flipped(file.read_bytes()))
    assert server.downloads() == 2


def test_torchvision_offline(server, cache, published, monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("offline mode is on", TORCHVISION_BUILDER)
    assert not server.requests and not kept(cache)


def test_a_cache_that_cannot_be_written(cache, monkeypatch):
    (cache / "file").touch()
    monkeypatch.setenv("KAPPS_HOME", str(cache / "file"))
    refused("cannot write .*set KAPPS_HOME", TORCHVISION_BUILDER)


# Two processes

CHILD = """
import sys
from kapps import _hub, _index
print(_hub.fetch(_index.find(sys.argv[1], "imagenet")))
"""


def test_two_processes_at_once(server, cache, good):
    """What a builder does before it reads the file, and without Keras, which takes seconds."""
    server.put_hub("timm/mobilenetv3_small_100.lamb_in1k", File(good))
    command = [sys.executable, "-c", CHILD, "MobileNetV3Small"]
    variables = {**os.environ, **environment(server, cache)}
    children = [
        subprocess.Popen(
            command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    results = [child.communicate() for child in children]
    assert [child.returncode for child in children] == [0, 0], results
    assert results[0][0] == results[1][0]
    assert server.downloads() == 1
    (blob,) = (cache / "hf").rglob("blobs/*")
    assert blob.read_bytes() == good


# The index


def test_unknown_tags_and_builders_without_weights(index):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_index, "_index", lambda: index)
        refused(
            "no published weights 'a1_in2k'; there are: imagenet, lamb_in1k; ", weights="a1_in2k"
        )
    with pytest.raises(kapps.InputError, match="no weights are published for LeNet5"):
        kapps.LeNet5(weights="imagenet")
    with pytest.raises(kapps.InputError, match="unknown model 'ResNet5000'"):
        _index.list_weights("ResNet5000")
    assert _index.list_weights("LeNet5") == []


def test_list_weights():
    rows = {row.tag: row for row in _index.list_weights("ResNet50")}
    row = rows["a1_in1k"]
    assert (row.license, row.classes, row.size, row.test_size) == ("apache-2.0", 1000, 224, 288)
    assert (row.crop, row.test_crop, row.top1, row.test_top1) == (0.95, 1.0, 80.382, 81.24)
    assert rows["fb_swsl_ig1b_ft_in1k"].license == "cc-by-nc-4.0"
    assert str(row) == (
        "a1_in1k (apache-2.0; 1000 classes; 224 px, crop 0.95: 80.38 %; 288 px, crop 1.0: 81.24 %)"
    )
    assert str(next(iter(rows.values()))).endswith(" imagenet")


def test_the_index_is_what_it_says():
    every = [row for rows in _index._index().values() for row in rows]
    assert len(every) > 150
    names = [row.file_name for row in every]
    assert len(set(names)) == len(names)
    for builder, rows in _index._index().items():
        assert len({row.tag for row in rows}) == len(rows), builder
        assert [row.default for row in rows[1:]].count(True) == 0, builder
    for row in every:
        assert row.builder in _index._index() and re.fullmatch(r"\w+", row.tag)
        assert row.license and 0 < row.crop <= 1 and 32 < row.size < 1000
        assert len(row.mean) == len(row.std) == 3
        assert row.classes != 1000 or 50 < row.top1 < 90
        if row.default:
            assert row.classes == 1000 and "-nc" not in row.license
        if row.source.endswith(".pth"):
            assert re.search(r"-[0-9a-f]{8,}\.pth$", row.source)
        else:
            assert row.source.startswith("timm/") and row.source.endswith("." + row.tag)


def test_the_index_has_the_peers_of_the_model_table():
    for table_row in TABLE:
        library, _, peer = table_row.peer.partition(":")
        for row in _index.list_weights(table_row.name):
            if library == "timm" and not row.source.endswith(".pth"):
                assert row.source == f"timm/{peer}.{row.tag}"


def test_files_by_hand_are_recognized_by_their_name(source, good, cache):
    file = cache / "lenet5.lamb_in1k.safetensors"
    file.write_bytes(good)
    model = kapps.LeNet5(weights=file, input_shape=SMALL)
    assert_equal(model, source)
    assert model.kapps_weights.tag == "lamb_in1k"
    kapps.save_weights(model, cache / "trained.safetensors")
    kapps.load_weights(model, cache / "trained.safetensors")
    # Perhaps they are no longer what was published, but that is where they come from.
    assert model.kapps_weights is None and model.kapps_evaluation.source == REPOSITORY
    (cache / "shufflenetv2_x0.5-f707e7126e.pth").write_bytes(b"anything")
    with pytest.raises(kapps.InputError, match="damaged: its SHA-256 does not begin as its name"):
        kapps.load_weights(model, cache / "shufflenetv2_x0.5-f707e7126e.pth")


def test_digits_in_a_name(tmp_path):
    (tmp_path / "w").write_bytes(b"abc")
    assert _hub.name_matches(tmp_path / "w", "net-ba7816bf.pth")  # of FIPS 180-2, appendix B.1
    for name in ("net-ba7816be.pth", "net.pth", "net-ba7816b.pth"):
        assert not _hub.name_matches(tmp_path / "w", name)
