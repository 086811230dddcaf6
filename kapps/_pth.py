"""Reading PyTorch's .pth files without PyTorch, and without running anything that they say.

A .pth file is a pickle, a program for a stack machine, and its tensors' bytes. Python's unpickler
would let the program call what it likes. Here a small interpreter knows only the instructions that
build containers, and of all functions only the few that rebuild a tensor. Training programs put
more beside the weights, such as their arguments and the optimizer's state: whatever else a file
asks for is neither looked up nor made, but leaves its name, and a name among the weights is
refused. Two forms exist:

- zip (PyTorch 1.6 and later): `data.pkl`, and one uncompressed member for each storage. The bytes
  have a checksum, which is compared.
- legacy: five pickles (magic number, version, system, data, keys of the storages), then, for each
  key, the number of elements and the elements.

https://github.com/pytorch/pytorch/blob/main/torch/serialization.py
"""

from __future__ import annotations

import io
import math
import mmap
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kapps._errors import InputError, printable

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_MOST_INSTRUCTIONS = 5_000_000  # a checkpoint of 1,000 tensors has 50,000
_MOST_ITEMS = 5_000_000  # that its functions are given, all calls together
_MOST_DIMENSIONS = 16
_SIZED = (list, tuple, dict, str)

# Where timm's train.py and torchvision's references put the weights, in the order in which they are
# looked for: the moving average before what it is the average of, as timm's `load_state_dict` does,
# since it is what the programs' accuracy is measured with.
_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model")

_DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",  # numpy has none: see `_tensor`
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


class _Malformed(ValueError):
    """The file is no .pth file, or says what cannot be; the message says what."""


class _NoWeights(ValueError):
    """The file is sound, but its weights are not where they are looked for; the message says more.

    It goes on behind the file's name.
    """


class _Storage(NamedTuple):
    """The bytes that tensors share."""

    kind: str
    key: str
    numel: int
    start: int = 0
    """Of a view into a longer storage, elements."""
    root_numel: int = 0

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(_DTYPES[self.kind])


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """Offset and strides in elements."""


def read_pth(file: Path, key: str | None = None) -> dict[str, np.ndarray]:
    """The tensors of a .pth file by their names.

    The file holds a dictionary of tensors, or a dictionary that has one among other things, as
    training programs write it. That one is, the first that there is, under "state_dict_ema" or
    "model_ema" (moving averages), "state_dict" or "model"; or it is the only dictionary of tensors.
    bfloat16 becomes float32.

    Args:
        file: of either form.
        key: of the dictionary to take, if it is to be another.

    Raises:
        InputError: the file is damaged, holds something else, or asks for anything but tensors; or
            it has several dictionaries of tensors, which the message names, or none at `key`.
    """
    try:
        with open(file, "rb") as stream:
            if zipfile.is_zipfile(stream):
                state, storages = _read_zip(stream, key)
            else:
                # Not the stream: it would make room for whatever length the file claims.
                with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    state, storages = _read_legacy(content, key)
        return {name: _tensor(value, storages) for name, value in state.items()}
    except _NoWeights as error:
        raise InputError(f"{file} {printable(error)}") from error
    except Exception as error:  # zipfile alone raises seven kinds for a damaged file
        reason = str(error) if isinstance(error, _Malformed) else repr(error)
        raise InputError(
            f"{file} is no readable .pth file ({printable(reason)[:200]}); it is damaged, "
            "hostile, or not a checkpoint of tensors: fetch it again from its publisher"
        ) from error


def _read_zip(
    stream: io.BufferedReader, key: str | None
) -> tuple[dict[str, _Tensor], Mapping[str, bytes]]:
    with zipfile.ZipFile(stream) as archive:
        members = {member.filename: member for member in archive.infolist()}
        # PyTorch never compresses: a file of a few kB cannot unfold to gigabytes.
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
            raise _Malformed("it is a compressed zip file, which PyTorch does not write")
        if sum(member.file_size for member in members.values()) > stream.seek(0, io.SEEK_END):
            raise _Malformed("its members overlap")
        folders = [name[: -len("data.pkl")] for name in members if name.endswith("/data.pkl")]
        if len(folders) != 1:
            raise _Malformed("it is a zip file without PyTorch's data.pkl")
        folder = folders[0]
        if f"{folder}byteorder" in members and archive.read(f"{folder}byteorder") != b"little":
            raise _Malformed("it was written on a big-endian machine: save it on another one")
        found = _Interpreter({}).run(io.BytesIO(archive.read(f"{folder}data.pkl")))
        state = _state(found, key)
        storages: dict[str, bytes] = {}
        for storage in _storages(state):
            if f"{folder}data/{storage.key}" not in members:
                raise _Malformed(f"its storage {storage.key!r} is missing")
            storages[storage.key] = archive.read(f"{folder}data/{storage.key}")
            if len(storages[storage.key]) != storage.root_numel * storage.dtype.itemsize:
                raise _Malformed(f"its storage {storage.key!r} has another size than it says")
        return state, storages


def _read_legacy(
    stream: mmap.mmap, key: str | None
) -> tuple[dict[str, _Tensor], Mapping[str, bytes]]:
    wanted: dict[str, _Storage] = {}
    if _Interpreter({}).run(stream) != _MAGIC or _Interpreter({}).run(stream) != _VERSION:
        raise _Malformed("it does not begin as PyTorch's files do")
    system = _Interpreter({}).run(stream)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise _Malformed("it was written on a big-endian machine: save it on another one")
    state = _state(_Interpreter(wanted).run(stream), key)
    needed = {storage.key for storage in _storages(state)}
    keys = _Interpreter({}).run(stream)
    if (
        not isinstance(keys, list)
        or not all(type(each) is str for each in keys)  # hashing goes as deep as tuples are nested
        or set(keys) != set(wanted)
        or len(keys) != len(wanted)
    ):
        raise _Malformed("its list of storages is not that of its tensors")
    storages = {}
    for each in keys:
        storage = wanted[each]
        count = int.from_bytes(stream.read(8), "little", signed=True)
        if count != storage.root_numel:
            raise _Malformed(f"its storage {each!r} has another size than it says")
        size = count * storage.dtype.itemsize
        if stream.tell() + size > len(stream):
            raise _Malformed("it ends too early")
        if each in needed:
            storages[each] = stream.read(size)
        else:  # of an optimizer, perhaps: twice as much as the weights
            stream.seek(size, io.SEEK_CUR)
    if stream.read(1):
        raise _Malformed("it goes on behind its end")
    return state, storages


def _state(found: Any, key: str | None) -> dict[str, _Tensor]:
    """The dictionary of tensors in what a file holds: at `key`, or else at the obvious place."""
    if isinstance(found, dict):
        if key is None:
            key = _obvious_key(found)
        elif key not in _states(found):
            there = ", ".join(map(repr, _states(found))) or "none; leave the key out"
            raise _NoWeights(f"has no dictionary of tensors at {key!r}; there are: {there}")
        if key is not None:
            found = found[key]
    if isinstance(found, _Unknown):
        where = "" if key is None else f" at {key!r}"
        raise _NoWeights(
            f"holds a whole {found.name}{where}, and to load it its code would have to run; save "
            "its state_dict() with PyTorch, and load that"
        )
    if not isinstance(found, dict) or not found:
        raise _Malformed("it holds no dictionary of tensors")
    for name, value in found.items():
        if isinstance(value, _Unknown):
            raise _Malformed(f"its entry {name!r} asks for {value.name}, which no weights need")
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            raise _Malformed(f"its entry {name!r} is not a tensor")
    return found


def _obvious_key(found: dict[Any, Any]) -> str | None:
    """Where the dictionary of tensors lies; None if that is the whole."""
    for key in _KEYS:
        if isinstance(found.get(key), dict) and found[key]:
            return key
    states = _states(found)
    if len(states) > 1:
        raise _NoWeights(
            f"holds several dictionaries of tensors, {', '.join(map(repr, states))}: name the one "
            f"to take, as in kapps.load_weights(model, path, key={states[0]!r})"
        )
    models = [key for key in _KEYS if isinstance(found.get(key), _Unknown)]
    return next(iter(states + models), None)


def _states(found: dict[Any, Any]) -> list[str]:
    """The names of the dictionaries of tensors in a dictionary."""
    return [
        name
        for name, value in found.items()
        if isinstance(name, str)
        and isinstance(value, dict)
        and value
        and all(isinstance(k, str) and isinstance(v, _Tensor) for k, v in value.items())
    ]


def _storages(state: dict[str, _Tensor]) -> list[_Storage]:
    """The storages that a dictionary's tensors lie in, each once."""
    return list({tensor.storage.key: tensor.storage for tensor in state.values()}.values())


def _tensor(tensor: _Tensor, storages: Mapping[str, bytes]) -> np.ndarray:
    storage = tensor.storage
    whole = np.frombuffer(storages[storage.key], storage.dtype)
    values = whole[storage.start : storage.start + storage.numel]
    if math.prod(tensor.shape) > len(values):
        raise _Malformed("a tensor has more elements than its storage")
    last = tensor.offset + sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True)
    )
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, np.float32)
    if last >= len(values):
        raise _Malformed("a tensor reaches beyond its storage")
    array = np.lib.stride_tricks.as_strided(
        values[tensor.offset :],
        tensor.shape,
        [stride * values.itemsize for stride in tensor.strides],
        writeable=False,
    )
    return from_bfloat16(array) if storage.kind == "BFloat16Storage" else array


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """bfloat16 numbers, given as uint16, as float32: the same bits, and 16 zeros."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


# What a global name of the file stands for: a kind of storage, or one of these functions.


def _rebuild_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any
) -> _Tensor | _Unknown:
    """The rest: requires_grad, hooks, metadata."""
    if isinstance(storage, _Unknown):
        return storage
    if not isinstance(storage, _Storage) or len(rest) > 3:
        raise _Malformed("a tensor is not made of a storage")
    for numbers in (shape, strides):
        if not isinstance(numbers, tuple) or not all(_is_count(n) for n in numbers):
            raise _Malformed("a tensor's shape is no list of whole numbers")
    if not _is_count(offset) or not len(shape) == len(strides) <= _MOST_DIMENSIONS:
        raise _Malformed("a tensor's offset, shape and strides do not fit together")
    return _Tensor(storage, offset, shape, strides)


def _rebuild_parameter(tensor: Any, requires_grad: Any, hooks: Any) -> _Tensor | _Unknown:
    if not isinstance(tensor, _Tensor | _Unknown):
        raise _Malformed("a parameter is not made of a tensor")
    return tensor


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    for pair in pairs:
        key, value = pair
        _put(made, key, value)
    return made


def _size(numbers: Any) -> tuple[Any, ...]:
    return tuple(numbers)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections OrderedDict": _ordered_dict,
    "torch Size": _size,
    "torch._utils _rebuild_tensor": _rebuild_tensor,
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils _rebuild_parameter": _rebuild_parameter,
}


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _put(target: Any, key: Any, value: Any) -> None:
    # A key of nested tuples would be hashed recursively, by C code without a limit.
    if not isinstance(target, dict) or not isinstance(key, str | int | float | None | _Unknown):
        raise _Malformed("it has a dictionary whose keys are not names")
    target[key] = value


class _Interpreter:
    """Builds the value that a pickle describes; of Python, it can reach nothing.

    `storages` gains each storage that is asked for.
    """

    def __init__(self, storages: dict[str, _Storage]) -> None:
        self._storages = storages
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._items = 0

    def run(self, stream: Any) -> Any:
        """The value of the pickle at the stream's place; it stands behind the pickle then."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count == _MOST_INSTRUCTIONS:
                raise _Malformed("its pickle is longer than that of any checkpoint")
            self._step(opcode.name, argument)
        if len(self._stack) != 1 or self._marks:
            raise _Malformed("its pickle leaves more than one value")
        return self._stack.pop()

    def _step(self, name: str, argument: Any) -> None:
        stack, memo = self._stack, self._memo
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in ("PROTO", "FRAME", "STOP"):
            pass
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[argument] = self._top()
        elif name == "MEMOIZE":
            memo[len(memo)] = self._top()
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[argument])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(self._pop(int(name[-1]))))
        elif name == "TUPLE":
            stack.append(tuple(self._pop_mark()))
        elif name == "LIST":
            stack.append(self._pop_mark())
        elif name == "DICT":
            self._set_items({}, self._pop_mark())
        elif name in ("APPEND", "APPENDS"):
            values = self._pop(1) if name == "APPEND" else self._pop_mark()
            if isinstance(self._top(), list):
                self._top().extend(values)
            elif not isinstance(self._top(), _Unknown):
                raise _Malformed("it appends to what is no list")
        elif name in ("SETITEM", "SETITEMS"):
            values = self._pop(2) if name == "SETITEM" else self._pop_mark()
            self._set_items(self._pop(1)[0], values)
        elif name in ("EMPTY_SET", "FROZENSET"):
            if name == "FROZENSET":
                self._pop_mark()
            stack.append(_Unknown("builtins.set"))
        elif name == "ADDITEMS":
            self._pop_mark()
            if not isinstance(self._top(), _Unknown):
                raise _Malformed("it adds to what is no set")
        elif name == "GLOBAL":
            stack.append(_global(argument))
        elif name == "INST":
            self._pop_mark()
            stack.append(_made_of(_global(argument)))
        elif name == "OBJ":
            stack.append(_made_of((self._pop_mark() or [None])[0]))
        elif name in ("NEWOBJ", "NEWOBJ_EX"):
            stack.append(_made_of(self._pop(2 if name == "NEWOBJ" else 3)[0]))
        elif name == "STACK_GLOBAL":
            words = self._pop(2)
            if not all(type(word) is str for word in words):
                raise _Malformed("it asks for something whose name is no text")
            stack.append(_global(" ".join(words)))
        elif name == "REDUCE":
            function, arguments = self._pop(2)
            if isinstance(function, _Unknown):
                stack.append(function)
                return
            if not isinstance(function, _Function) or not isinstance(arguments, tuple):
                raise _Malformed("it calls what is no function")
            # Each call copies what it is given, which may be the same long list every time.
            self._items += sum(len(each) for each in arguments if isinstance(each, _SIZED))
            if self._items > _MOST_ITEMS:
                raise _Malformed("its functions are given more than any checkpoint holds")
            stack.append(_FUNCTIONS[function.name](*arguments))
        elif name == "BINPERSID":
            stack.append(self._storage(self._pop(1)[0]))
        elif name == "BUILD":  # attributes, such as a dictionary's _metadata, which we leave
            self._pop(1)
            if not isinstance(self._top(), dict | _Unknown):
                raise _Malformed("it sets attributes of what is no dictionary")
        else:
            raise _Malformed(f"it has the instruction {name}, which no weights file needs")

    def _top(self) -> Any:
        self._check(1)
        return self._stack[-1]

    def _check(self, count: int) -> None:
        floor = self._marks[-1] if self._marks else 0
        if len(self._stack) - floor < count:
            raise _Malformed("its pickle takes what is not there")

    def _pop(self, count: int) -> list[Any]:
        self._check(count)
        values = self._stack[-count:]
        del self._stack[-count:]
        return values

    def _pop_mark(self) -> list[Any]:
        if not self._marks:
            raise _Malformed("its pickle takes what is not there")
        mark = self._marks.pop()
        values = self._stack[mark:]
        del self._stack[mark:]
        return values

    def _set_items(self, target: Any, values: list[Any]) -> None:
        if not isinstance(target, _Unknown):
            for key, value in zip(values[::2], values[1::2], strict=True):
                _put(target, key, value)
        self._stack.append(target)

    def _storage(self, identity: Any) -> _Storage | _Unknown:
        """Of ("storage", kind, key, device, elements) and, in legacy files, a view of it."""
        if not isinstance(identity, tuple) or len(identity) not in (5, 6):
            raise _Malformed("it refers to something that is no storage")
        word, kind, key, _, numel, *view = identity
        if word == "storage" and isinstance(kind, _Unknown):
            return kind
        if word != "storage" or not isinstance(kind, _Kind) or not isinstance(key, str):
            raise _Malformed("it refers to something that is no storage")
        if not _is_count(numel):
            raise _Malformed("a storage has no size")
        storage = _Storage(kind.name, key, numel, 0, numel)
        known = self._storages.setdefault(key, storage)
        if known[:3] != storage[:3]:
            raise _Malformed(f"its storage {key!r} is described in two ways")
        if view and view[0] is not None:
            if not isinstance(view[0], tuple) or len(view[0]) != 3:
                raise _Malformed("a view of a storage is not described by three numbers")
            _, start, length = view[0]
            if not _is_count(start) or not _is_count(length) or start + length > numel:
                raise _Malformed("a view reaches beyond its storage")
            storage = storage._replace(start=start, numel=length)
        return storage


class _Kind(NamedTuple):
    """A class of storage, such as torch.FloatStorage."""

    name: str


class _Function(NamedTuple):
    """One of `_FUNCTIONS`."""

    name: str


class _Unknown(NamedTuple):
    """What a name that is none of these stands for, and whatever is made with it: that name."""

    name: str


def _global(name: str) -> _Kind | _Function | _Unknown:
    """What a name in the file stands for; `name` is module and attribute, a space between."""
    module, _, attribute = name.partition(" ")
    if module == "torch" and attribute in _DTYPES:
        return _Kind(attribute)
    return _Function(name) if name in _FUNCTIONS else _Unknown(f"{module}.{attribute}")


def _made_of(made: Any) -> _Unknown:
    """An object of a class."""
    if not isinstance(made, _Unknown):
        raise _Malformed("it has the instruction NEWOBJ for what is no class")
    return made


_LITERALS = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING"),  # of Python 2
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    }
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
