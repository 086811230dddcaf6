"""Layer by layer: sound files pass, and of a broken one the broken layer is named."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from keras import layers

from kapps import InputError
from kapps.tflite.comparison import LIMITS, Comparison, LayerError, compare_layers, layers_in
from kapps.tflite.quantizations import QUANTIZATIONS

pytest_plugins = ["tflite_fixtures"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images(digits):
    return digits[1][0][:4]


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_sound_file(quantization, net, conversions, images):
    comparison = compare_layers(net, conversions[quantization].path, images)
    assert comparison.quantization == quantization
    assert comparison.images == 4
    assert comparison.parts_at is None, comparison.table()
    for error in comparison.layers:
        assert 0 <= error.own_error <= LIMITS[quantization] / 2, error
        assert (error.scale is None) == (quantization != "int8")
    # In the order of the graph; in the table the worst is the first line below the header.
    names = [error.layer for error in comparison.layers]
    main = [name for name in ("stem", "dw", "pw", "last", "head") if name in names]
    assert len(main) == 5
    assert main == sorted(main, key=names.index)
    assert comparison.worst_first[0].own_error == max(e.own_error for e in comparison.layers)
    assert comparison.table().splitlines()[1].split()[0] == comparison.worst_first[0].layer


def test_the_output_and_all_convolutions_are_found(net, conversions, images):
    for quantization in ("float32", "int8"):
        comparison = compare_layers(net, conversions[quantization].path, images[:1])
        assert comparison.layers[-1].layer == "head"
        operations = _operations(conversions[quantization].path, ("CONV_2D", "DEPTHWISE_CONV_2D"))
        found = [error for error in comparison.layers if "CONV_2D" in error.operation]
        assert len(found) >= len(operations) - 1  # a gate's is joined with the half of the next


def test_errors_add_up_but_each_layer_has_its_own(net, conversions, images):
    """Behind a broken layer all outputs are wrong, and their layers are not to blame."""
    content = _edited(conversions["float32"].path, "pw", _flip)
    comparison = compare_layers(net, _written(conversions, "flipped", content), images)
    at = comparison.parts_at
    assert at is not None
    behind = comparison.layers[comparison.layers.index(at) + 1 :]
    assert len(behind) >= 4
    assert max(error.error for error in behind) > 100 * LIMITS["float32"]
    assert max(error.own_error for error in behind) <= LIMITS["float32"]


@pytest.mark.parametrize("output", [0.05, 0.5, float("nan")])
def test_a_layer_that_loses_much_may_not_matter(output):
    """As in MobileNetV3Large at 2 x 2 pixels: a layer at 0.9 in a file that loses nothing."""
    lossy = LayerError("pwl", "Conv2D", "CONV_2D", "x", (1,), 1.1, 0.9, 1.9, 0.1, 0, 0.0)
    last = dataclasses.replace(lossy, layer="head", own_error=0.004, error=output)
    comparison = Comparison("int8", 4, (lossy, last), 0, lossy)
    assert comparison.agrees == (output == 0.05)
    assert "'pwl' (Conv2D" in comparison.verdict()
    assert ("the output is within it" in comparison.verdict()) == comparison.agrees
    assert ("They part at" in comparison.verdict()) != comparison.agrees


def _flip(kernel: np.ndarray) -> None:
    kernel[:] = kernel[::-1].copy()


def _quarter(kernel: np.ndarray) -> None:
    kernel[: len(kernel) // 2] //= 4


@pytest.mark.parametrize(("quantization", "change"), [("float32", _flip), ("int8", _quarter)])
@pytest.mark.parametrize("layer", ["stem", "dw", "head"])
def test_a_corrupted_kernel_is_found(layer, quantization, change, net, conversions, images):
    content = _edited(conversions[quantization].path, layer, change)
    comparison = compare_layers(
        net, _written(conversions, f"{quantization}-{layer}", content), images[:1]
    )
    assert comparison.parts_at is not None
    assert comparison.parts_at.layer in _fused(net, layer)
    assert comparison.parts_at.layer in comparison.verdict()
    apart = [e for e in comparison.layers if not e.own_error <= LIMITS[quantization]]
    # Of those behind it, a range that was fitted to the sound network may cut off what it gives.
    others = [e for e in apart if e == comparison.parts_at or not e.saturated]
    assert apart[0] == comparison.parts_at
    assert others == [comparison.parts_at]  # none other is to blame


def _fused(model: keras.Model, name: str) -> list[str]:
    """The layer, and those that a pass or the converter may fuse with it."""
    names = [layer.name for layer in model.layers]
    return names[names.index(name) : names.index(name) + 3]


@pytest.mark.parametrize("what", ["scale", "zero point"])
def test_a_wrong_quantization_is_found(what, net, conversions, images):
    """A range that does not hold the layer's values saturates them."""
    content = bytearray(conversions["int8"].path.read_bytes())
    graph = schema.Model.GetRootAs(content, 0).Subgraphs(0)
    tensor = next(
        graph.Tensors(i)
        for i in range(graph.TensorsLength())
        if b"dw_1/" in graph.Tensors(i).Name()
        and graph.Tensors(i).ShapeAsNumpy().tolist() == [1, 8, 8, 16]
    )
    table = tensor.Quantization()
    if what == "scale":
        at = table._tab.Vector(table._tab.Offset(8))
        np.frombuffer(content, "<f4", 1, at)[:] *= 0.1
    else:
        at = table._tab.Vector(table._tab.Offset(10))
        np.frombuffer(content, "<i8", 1, at)[:] = 120
    comparison = compare_layers(net, _written(conversions, what, bytes(content)), images[:1])
    assert comparison.parts_at is not None
    assert comparison.parts_at.layer in _fused(net, "dw")
    assert comparison.parts_at.saturated > 0.05
    assert "saturated" in comparison.verdict()


def test_not_a_number_is_the_worst(net, conversions, images):
    def ruin(kernel: np.ndarray) -> None:
        kernel[:] = np.nan

    content = _edited(conversions["float32"].path, "last", ruin)
    comparison = compare_layers(net, _written(conversions, "nan", content), images[:1])
    assert comparison.parts_at is not None
    assert comparison.parts_at.layer in _fused(net, "last")
    assert np.isnan(comparison.worst_first[0].own_error)


def test_names():
    image = keras.Input((4, 4, 3))
    x = layers.Conv2D(2, 1, name="conv")(image)
    x = layers.Conv2D(2, 1, name="conv_1")(x)
    x = layers.Add(name="add")([x, x])
    model = keras.Model(image, x, name="net")
    # The number behind the model's scope is behind all others too.
    assert layers_in("net_1/conv_1/convolution", model) == ["conv"]
    assert layers_in("net_1/conv_1_1/convolution1", model) == ["conv_1"]
    assert layers_in("net/conv_1/convolution", model) == ["conv_1"]
    # Of a path the layer comes first: "add" is an operation inside of it.
    assert layers_in("net_1/conv_1/add;;net_1/add_1/Add;1", model) == ["conv", "add"]
    assert layers_in("StatefulPartitionedCall:0", model) == []


# Bad input.


def test_a_file_of_another_model(net, conversions, images):
    image = keras.Input((16, 16, 3))
    x = layers.GlobalAveragePooling2D(name="p")(layers.Conv2D(4, 3, name="c")(image))
    other = keras.Model(image, layers.Dense(10, "softmax", name="d")(x), name="other")
    with pytest.raises(InputError, match="compare it with the model that it was converted from"):
        compare_layers(other, conversions["float32"].path, images)


def test_a_model_and_images_of_another_size(net, conversions):
    images = np.zeros((1, 32, 32, 3), "uint8")
    with pytest.raises(InputError, match=r"images have shape \(1, 32, 32, 3\); model 'small_net'"):
        compare_layers(net, conversions["float32"].path, images)
    image = keras.Input((32, 32, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(image))
    larger = keras.Model(image, layers.Dense(10, "softmax")(x))
    with pytest.raises(InputError, match=r"\[1, 16, 16, 3\].*compare it with the model"):
        compare_layers(larger, conversions["float32"].path, images)


def test_no_file_and_no_images(net, tmp_path, images):
    (tmp_path / "text.tflite").write_text("hello")
    with pytest.raises(InputError, match=r"text\.tflite is no \.tflite file"):
        compare_layers(net, tmp_path / "text.tflite", images)
    with pytest.raises(InputError, match="no such file"):
        compare_layers(net, tmp_path / "none.tflite", images)
    with pytest.raises(InputError, match="no images"):
        compare_layers(net, tmp_path / "text.tflite", images[:0])


def test_the_decibels():
    error = LayerError("conv", "Conv2D", "CONV_2D", "x", (1,), 0.1, 0.01, 0.1, None, None, 0.0)
    assert error.sqnr == pytest.approx(40)
    assert dataclasses.replace(error, own_error=0.0).sqnr == np.inf


def _operations(path, names):
    model = schema.Model.GetRootAs(path.read_bytes(), 0)
    numbers = {v: k for k, v in vars(schema.BuiltinOperator).items() if not k.startswith("_")}
    graph = model.Subgraphs(0)
    codes = [
        model.OperatorCodes(graph.Operators(i).OpcodeIndex())
        for i in range(graph.OperatorsLength())
    ]
    found = [numbers[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())] for code in codes]
    return [name for name in found if name in names]


def _edited(path, layer, change):
    """The content of a file with another kernel in the operation that a layer became."""
    content = bytearray(path.read_bytes())
    model = schema.Model.GetRootAs(content, 0)
    graph = model.Subgraphs(0)
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        name = graph.Tensors(operator.Outputs(0)).Name().decode()
        if operator.InputsLength() != 3 or f"/{layer}_1/" not in name:
            continue
        tensor = graph.Tensors(operator.Inputs(1))
        buffer = model.Buffers(tensor.Buffer())
        dtype = np.dtype("float32" if tensor.Type() == schema.TensorType.FLOAT32 else "int8")
        start = buffer._tab.Vector(buffer._tab.Offset(4))
        kernel = np.frombuffer(content, dtype, buffer.DataLength() // dtype.itemsize, start)
        kernel = kernel.reshape(tensor.ShapeAsNumpy().tolist())
        # Output channels first; of a depthwise kernel they are last.
        change(kernel if layer != "dw" else kernel.transpose(3, 0, 1, 2))
        return bytes(content)
    raise AssertionError(f"no {layer} in the file")


def _written(conversions, name, content):
    path = conversions["float32"].path.with_name(f"{name.replace(' ', '-')}.tflite")
    path.write_bytes(content)
    return path
