"""The page that classifies pictures in the browser: in Chromium, from the disk, on LiteRT.js."""

from __future__ import annotations

import base64
import fcntl
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import chromium
import digit_files
import keras
import numpy as np
import pytest
from missing import missing
from PIL import Image
from programs import run_here
from tflite_crafted import crafted_file

from kapps import InputError
from kapps.tflite import Metadata, Runner, convert, web_page
from kapps.tflite.metadata import with_metadata

LITERTJS = "2.5.3"  # of npm's @litertjs/core
_BUILD = Path(__file__).parents[1] / "build"
DIGITS = 40
HOSTILE = "</script><script>document.title = 'pwned'</script>"
LABELS = (HOSTILE, "{{ 7 * 7 }}", "a & b", 'c" onload="x', "é", *"fghijkl")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def litertjs():
    """The folder that npm has filled, once for all processes and runs."""
    folder = _BUILD / f"litertjs-{LITERTJS}"
    _BUILD.mkdir(exist_ok=True)
    with open(_BUILD / f"{folder.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            if shutil.which("npm") is None:
                missing("needs npm, of Node.js")
            with tempfile.TemporaryDirectory(dir=_BUILD) as temporary:
                install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix"]
                package = f"@litertjs/core@{LITERTJS}"
                done = subprocess.run(
                    [*install, f"{temporary}/new", package], capture_output=True, text=True
                )
                assert done.returncode == 0, done.stderr + done.stdout
                Path(temporary, "new").rename(folder)
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium.browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return digit_files.files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def crafted(litertjs, tmp_path_factory):
    """A file that gives the sums of 2 x 2 pixels, normalized, and its page: (file, page)."""
    folder = tmp_path_factory.mktemp("crafted")
    file = folder / "net.tflite"
    about = Metadata(
        name=HOSTILE, labels=LABELS, description=HOSTILE, mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 8.0)
    )
    file.write_bytes(with_metadata(crafted_file([1, 12]), about))
    return file, web_page(file, folder / "page.html", litertjs=litertjs)


def _open(browser, page):
    browser.open(page.as_uri())
    browser.wait("document.getElementById('status').textContent === 'Ready.'")


def _results(browser, n):
    """Of the `n` pictures that the page has taken: name and scores, and what it shows."""
    browser.wait(f"document.querySelectorAll('article').length === {n}")
    return browser.script(
        """return [...document.querySelectorAll('article')].reverse().map((article) => ({
          name: article.querySelector('h2').textContent,
          scores: JSON.parse(article.dataset.scores ?? 'null'),
          lines: [...article.querySelectorAll('li')].map((line) => line.innerText.split('\\n')),
          pixels: Array.from(article.querySelector('canvas')?.getContext('2d').getImageData(
            0, 0, article.querySelector('canvas').width, article.querySelector('canvas').height
          ).data ?? []),
          said: article.querySelector('p')?.textContent ?? ''}))"""
    )


def _saved(images, folder):
    paths = [folder / f"{number}.png" for number in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        Image.fromarray(image).save(path)
    return paths


@pytest.mark.parametrize("quantization", ["float32", "int8"])
@pytest.mark.parametrize("network", ["LeNet5", "MobileNetV3Small"])
def test_held_out_digits(network, quantization, files, litertjs, browser, tmp_path):
    (file,) = [f for f in files if f.stem == f"{network}_{quantization}"] or [None]
    if file is None:
        pytest.skip("`make demo` has not run")
    _open(browser, web_page(file, tmp_path / "page.html", litertjs=litertjs))
    runner = Runner(file)
    images = digit_files.held_out(runner.input_shape[1], DIGITS)
    browser.choose("#choose", _saved(images, tmp_path))
    found = _results(browser, DIGITS)
    expected = runner.predict(images)
    scores = np.array([result["scores"] for result in found])
    assert [result["name"] for result in found] == [f"{n}.png" for n in range(DIGITS)]
    assert len(set(expected.argmax(1))) > 5
    assert (scores.argmax(1) == expected.argmax(1)).all()
    step = runner.output_quantization[0]
    assert np.abs(scores - expected).max() <= (1.01 * step or 1e-6)
    for result, row in zip(found, scores, strict=True):
        best = int(row.argmax())
        assert result["lines"][0] == [str(best), f"{100 * row[best]:.1f} %"]
        assert len(result["lines"]) == 5
    # Nothing came from anywhere but the page itself.
    loaded = browser.script("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert all(name.startswith(("data:", "blob:")) for name in loaded)


def _middle(picture, side):
    """The middle, as Pillow resizes it."""
    width, height = picture.size
    whole = min(width, height)
    left, top = (width - whole) // 2, (height - whole) // 2
    box = (left, top, left + whole, top + whole)
    return np.asarray(picture.crop(box).resize((side, side), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("size", [(97, 61), (61, 98), (3, 2), (640, 480)])
def test_of_any_picture_the_middle_as_pillow_resizes_it(size, crafted, browser, tmp_path):
    file, page = crafted
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype="uint8")
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "wide.png")
    _open(browser, page)
    browser.choose("#choose", [tmp_path / "wide.png"])
    (result,) = _results(browser, 1)
    expected = _middle(picture, 4)
    shown = np.array(result["pixels"]).reshape(4, 4, 4)
    assert (shown[..., 3] == 255).all()
    assert np.abs(shown[..., :3] - expected.astype(int)).max() <= 1
    scores = Runner(file).predict(shown[None, ..., :3])[0]
    np.testing.assert_allclose(result["scores"], scores, rtol=1e-6, atol=1e-5)
    assert float(result["lines"][0][-1]) == pytest.approx(max(scores), rel=1e-3)


def test_names_do_no_harm(crafted, browser, tmp_path):
    _, page = crafted
    _open(browser, page)
    assert browser.script("return document.title") == HOSTILE
    assert HOSTILE in browser.text()
    name = "<img src=x onerror=alert(1)>.png"
    Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    browser.choose("#choose", [tmp_path / name])
    (result,) = _results(browser, 1)
    assert result["name"] == name
    assert {line[0] for line in result["lines"]} <= set(LABELS)
    assert browser.script("return document.title") == HOSTILE


def test_dropped_pictures_and_what_is_none(crafted, browser, tmp_path):
    _, page = crafted
    _open(browser, page)
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    content = base64.b64encode((tmp_path / "clear.png").read_bytes()).decode()
    browser.script(
        """const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
        const dropped = new DataTransfer();
        dropped.items.add(new File(["no picture"], "text.png", {type: "image/png"}));
        dropped.items.add(new File([bytes], "clear.png", {type: "image/png"}));
        document.getElementById("drop").dispatchEvent(
          new DragEvent("drop", {dataTransfer: dropped, bubbles: true, cancelable: true}));""",
        content,
    )
    text, clear = _results(browser, 2)
    assert (text["name"], text["scores"]) == ("text.png", None)
    assert text["said"].startswith("This is no picture that the browser can show")
    assert clear["pixels"] == [255] * 64  # transparent is white


def _net(channels):
    image = keras.Input((8, 8, channels))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(3, 3)(image))
    return keras.Model(image, keras.layers.Softmax()(x), name="net")


def _classified(browser, page, picture, folder):
    _open(browser, page)
    browser.choose("#choose", _saved([picture], folder))
    (result,) = _results(browser, 1)
    return result["scores"]


PICTURE = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype="uint8")


def test_a_network_for_gray_images(litertjs, browser, tmp_path):
    gray = np.asarray(Image.fromarray(PICTURE).convert("L"))[None, ..., None]
    convert(_net(1), tmp_path / "net.tflite", verification=gray)
    page = web_page(tmp_path / "net.tflite", tmp_path / "page.html", litertjs=litertjs)
    (expected,) = Runner(tmp_path / "net.tflite").predict(gray)
    found = _classified(browser, page, PICTURE, tmp_path)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_program(litertjs, browser, tmp_path, capfd):
    """`kapps-convert --web`, of a network of one's own."""
    _net(3).save(tmp_path / "net.keras")
    output, page = tmp_path / "net.tflite", tmp_path / "net.html"
    command = f"--keras={tmp_path}/net.keras --calibration=digits --output={output} --web={page}"
    missing = run_here("tflite.programs.convert", f"{command} --litertjs={tmp_path}", capfd)
    assert missing.code == 2
    assert "npm install @litertjs/core" in missing.stderr
    assert not page.exists()
    two = "--quantization=float32,float16"
    both = run_here("tflite.programs.convert", f"{command} {two}", capfd)
    assert both.code == 2 and "--web" in both.stderr

    done = run_here("tflite.programs.convert", f"{command} --litertjs={litertjs}", capfd)
    assert done.code in (0, None), done.stderr
    assert str(page) in done.stdout
    (expected,) = Runner(output).predict(PICTURE[None])
    np.testing.assert_allclose(_classified(browser, page, PICTURE, tmp_path), expected, atol=1e-6)


def test_files_that_make_no_page(litertjs, tmp_path):
    def refused(content, match, **settings):
        (tmp_path / "net.tflite").write_bytes(content)
        with pytest.raises(InputError, match=match):
            web_page(tmp_path / "net.tflite", tmp_path / "page.html", **settings)

    net = crafted_file([1, 12])
    refused(net, "no LiteRT.js in .*npm install @litertjs/core", litertjs=tmp_path)
    for content, match in (
        (b"none", "net.tflite"),
        (crafted_file([1, 2, 6]), "no scores of classes"),
        (crafted_file([1, 12], "INT8"), "of int8, which LiteRT.js does not take: .*--io=uint8"),
        (with_metadata(net, Metadata("net", ("a",))), "1 labels and 12 outputs"),
        (with_metadata(net, Metadata("net", LABELS, mean=(1.0, 2.0))), "2 numbers for 3 channels"),
        (with_metadata(net, Metadata("net", LABELS, std=(0.0,))), "a std of 0"),
    ):
        refused(content, match, litertjs=litertjs)
    with pytest.raises(InputError, match="no such file"):
        web_page(tmp_path / "absent.tflite", tmp_path / "page.html", litertjs=litertjs)
    assert not (tmp_path / "page.html").exists()

    broken = shutil.copytree(litertjs, tmp_path / "broken")
    (broken / "node_modules/@litertjs/core/package.json").write_text(json.dumps([]))
    refused(net, "LiteRT.js in .* cannot be read", litertjs=broken)
