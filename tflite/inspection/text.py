"""An `Inspection` as text for people: a summary, what is wrong first, then what is there."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence

from kapps._errors import one_line
from kapps.tflite import tables
from kapps.tflite.inspection import Inspection, Operation

_MOST_TEXT = 120  # characters of a text of the file
_MOST_LINES = 20  # of one list; --json has all


def text(inspection: Inspection, target: str = "cpu") -> str:
    parts = [
        _summary(inspection, target),
        _table("Outside the delegate", *_fallen_off(inspection, target)),
        _table("In float", *_floats(inspection)),
        _table("Operations", *_operations(inspection)),
        _table("Quantization of the constants", *_quantization(inspection)),
        _table("Metadata", *_metadata(inspection)),
    ]
    return "\n\n".join(part for part in parts if part)


def _summary(inspection: Inspection, target: str) -> str:
    i = inspection
    named = i.weight_bytes + i.metadata_bytes + i.attached_bytes
    rows = [
        (
            "size",
            f"{_size(i.size_bytes)}: weights {_size(i.weight_bytes)}, "
            f"graph {_size(max(i.size_bytes - named, 0))}, metadata {_size(i.metadata_bytes)}, "
            f"attached files {_size(i.attached_bytes)}",
        )
    ]
    for kind, tensors in (("input", i.inputs), ("output", i.outputs)):
        for t in tensors:
            rows.append((kind, f"{t}  {t.quantization or 'not quantized'}  ({t.name})"))
    rows += [
        ("delegate", _delegate(i) if target == "cpu" else _gpu(i)),
        ("variant", i.variant),
        ("arithmetic", _arithmetic(i)),
        ("loads on", _runtimes(i)),
        ("format", f"TFL3, schema {i.schema_version}, {i.description or 'no description'}"),
    ]
    if len(i.subgraphs) > 1:
        names = ", ".join(graph.name or "unnamed" for graph in i.subgraphs[1:])
        told = f"{len(i.subgraphs) - 1} more, not shown here: {one_line(names, _MOST_TEXT)}"
        rows.append(("subgraphs", told))
    for signature in i.signatures:
        ends = f"{', '.join(signature.inputs)} -> {', '.join(signature.outputs)}"
        rows.append(("signature", one_line(f"{signature.name}: {ends}", _MOST_TEXT)))
    return "\n".join([one_line(i.path, 4096), *(f"  {name:<11} {value}" for name, value in rows)])


def _delegate(i: Inspection) -> str:
    if i.failure:
        return one_line(f"not tried: {i.failure}", 300)
    off, all_ops = len(i.fallen_off), len(i.operations)
    pieces = f"{i.pieces} piece{'s' * (i.pieces != 1)}"
    return f"XNNPACK of {i.runtime}: {pieces}, {off or 'none'} of {all_ops} operations outside"


def _gpu(i: Inspection) -> str:
    off, all_ops = len(i.refused("gpu")), len(i.operations)
    return (
        f"GPU of TensorFlow Lite, by its rules of August 2026 and not tried: {off or 'none'} of "
        f"{all_ops} operations outside"
    )


def _arithmetic(i: Inspection) -> str:
    floats = len(i.float_operations)
    return f"{floats} of {len(i.operations)} operations in float" if floats else "integers only"


def _runtimes(i: Inspection) -> str:
    oldest = i.oldest_runtime
    told = f"TensorFlow Lite {oldest} or newer" if oldest else "unknown"
    if oldest:
        newest = {
            f"{op.name} version {op.version}"
            for graph in i.subgraphs
            for op in graph.operations
            if op.oldest_runtime == oldest
        }
        told += f" (for {_some(sorted(newest))})" if newest else ""
    if i.unknown_age:
        told += f"; unknown for {_some(i.unknown_age)}"
    if i.min_runtime_version:
        told += f"; the converter noted {i.min_runtime_version}"
    return told


def _fallen_off(i: Inspection, target: str) -> tuple[list[str], list[list[str]]]:
    refused = i.refused(target)
    groups = collections.Counter((op.name, _types(i, op), why) for op, why in refused)
    rows = [[str(n), *key] for key, n in groups.most_common()]
    return ["count", "operation", "output", "reason"], rows


def _floats(i: Inspection) -> tuple[list[str], list[list[str]]]:
    floats = i.float_operations
    if 2 * len(floats) > len(i.operations):  # a float file: that is no news
        return [], []
    tensors = i.subgraphs[0].tensors
    rows = [
        [op.name, _types(i, op), ", ".join(tensors[t].name for t in op.outputs if t >= 0)]
        for op in floats
    ]
    return ["operation", "output", "name"], rows


def _operations(i: Inspection) -> tuple[list[str], list[list[str]]]:
    groups: dict[tuple[str, int], list[Operation]] = {}
    for op in i.operations:
        groups.setdefault((op.name, op.version), []).append(op)
    rows = []
    for (name, version), ops in sorted(groups.items(), key=lambda item: -len(item[1])):
        types = sorted({_types(i, op) for op in ops})
        inside = sum(op.piece is not None for op in ops)
        since = ops[0].oldest_runtime or "unknown"
        rows.append([str(len(ops)), str(inside), name, str(version), since, " ".join(types)])
    return ["count", "delegated", "operation", "version", "since", "output"], rows


def _quantization(i: Inspection) -> tuple[list[str], list[list[str]]]:
    groups: collections.Counter[tuple[str, str]] = collections.Counter()
    sizes: collections.Counter[tuple[str, str]] = collections.Counter()
    for tensor in i.subgraphs[0].tensors:
        if tensor.constant:
            kind = f"in blocks of {tensor.block}" if tensor.block else "none"
            if tensor.quantization:
                per_channel = tensor.quantization.axis is not None
                kind = (
                    f"per channel, axis {tensor.quantization.axis}" if per_channel else "per tensor"
                )
            groups[tensor.dtype.lower(), kind] += 1
            sizes[tensor.dtype.lower(), kind] += tensor.bytes
    rows = [[str(groups[key]), _size(n), *key] for key, n in sizes.most_common()]
    return ["count", "size", "type", "quantized"], rows


def _metadata(i: Inspection) -> tuple[list[str], list[list[str]]]:
    rows = []
    if i.metadata_error:
        rows.append(["error", one_line(i.metadata_error, _MOST_TEXT)])
    for name, value in (i.metadata or {}).items():
        if name == "labels" and value:
            value = f"{len(value)}: {', '.join(map(str, value[:5]))}{', ...' * (len(value) > 5)}"
        if value:
            told = ", ".join(map(str, value)) if isinstance(value, list) else value
            rows.append([name, one_line(told, _MOST_TEXT)])
    rows += [[f"entry {name}", _size(size)] for name, size in i.entries.items()]
    rows += [[f"file {name}", _size(size)] for name, size in i.attached.items()]
    return ["", ""], rows


def _types(i: Inspection, op: Operation) -> str:
    tensors = i.subgraphs[0].tensors
    return ",".join(dict.fromkeys(tensors[t].dtype.lower() for t in op.outputs if t >= 0))


def _size(count: int) -> str:
    if count < 10_000:
        return f"{count} B"
    return f"{count / 1e3:.0f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"


def _some(names: Sequence[str], most: int = 3) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{rest}"


def _table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Aligned columns, numbers to the right; "" without rows."""
    rows = list(rows)
    shown = rows[:_MOST_LINES]
    if not rows:
        return ""
    numbers = {k for k in range(len(header)) if header[k] in ("count", "delegated", "size")}
    table = tables.aligned(header if any(header) else None, shown, right=numbers)
    told = [f"{title}:", *(f"  {line}" for line in table.splitlines())]
    if len(rows) > len(shown):
        told.append(f"  ... and {len(rows) - len(shown)} more")
    return "\n".join(told)
