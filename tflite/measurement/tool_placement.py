"""Where `benchmark_model` says that the operations of a file ran.

Both tools of this name (see `tool_output`) can write which delegate replaced which operation, a
`tflite.profiling.ModelRuntimeDetails`; that is exact and comes first. Older builds leave their log,
in which these lines count, all of https://github.com/google-ai-edge/LiteRT as of August 2026:

- tflite/core/subgraph.cc: "Replacing 63 out of 65 node(s) with delegate (LITERT_CL) node, yielding
  2 partitions for subgraph 0 (main)."; the partitions are also those that were left alone. Builds
  for Linux print it only if they are debug builds, and those of before 2023 without the total.
- tflite/tools/benchmark/benchmark_tflite_model.cc: "Explicitly applied GPU delegate, and the model
  graph will be partially executed by the delegate w/ 1 delegate kernels."
- tflite/delegates/gpu/common/model_builder.cc: "Following operations are not supported by GPU
  delegate:", a line "OPERATION: why" for each kind, and how many run on which processor.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from kapps._errors import one_line
from kapps.tflite.measurement.placement import CPU_DELEGATES, XNNPACK, Outside, Placement
from kapps.tflite.measurement.protobuf import Value, fields_of

_FILE = "benchmark_model's model_runtime_info"
_LOG = "benchmark_model's log"
_MOST = 100_000  # operations of a file

_REPLACING = re.compile(
    r"Replacing (\d{1,6}) (?:out of (\d{1,6}) )?node\(s\) with delegate \(([^()\n]{1,80})\) node"
    r"(?:, yielding (\d{1,6}) partitions)?(?: for subgraph (\d{1,6}))?"
)
_UNDONE = "Restored original execution plan after delegate application failure"
_REFUSED = re.compile(
    r"(?:Following|Next) operations are not supported by GPU delegate:[ ]*\n(.{0,20000}?)"
    r"(No|(?:First )?\d{1,6}) operations will run on the GPU, and (?:all|the remaining) (\d{1,6})",
    re.DOTALL,
)
_REFUSAL = re.compile(r"^ *([A-Za-z_][\w /]{0,79}): ?(.{0,300})$", re.MULTILINE)


def read(
    text: str, runtime_info: bytes | None, accelerator: str, name: str
) -> tuple[Placement | None, int | None]:
    """What the tool tells of a run, and into how many pieces; None is what it does not tell.

    Args:
        text: its stdout and its stderr.
        runtime_info: the file of `--model_runtime_info_output_file`, if it wrote one.
        accelerator: what was asked for; "cpu" is XNNPACK.
        name: how the classic tool calls it: "XNNPACK", "GPU".
    """
    wanted_cpu = accelerator == "cpu"
    reasons = refusals(text)
    of_file = _of_file(runtime_info, wanted_cpu) if runtime_info else None
    found = of_file or _of_log(text, wanted_cpu, name)
    if found is None:
        return None, None
    placement, pieces = found
    if wanted_cpu or not reasons:
        return placement, pieces
    return _explained(placement, reasons), pieces


def refusals(text: str) -> dict[str, str]:
    """{operation: why} of what the GPU delegate says that it does not take, in its own words."""
    block = _REFUSED.search(text)
    found: dict[str, list[str]] = {}
    for name, why in _REFUSAL.findall(block.group(1)) if block else ():
        found.setdefault(one_line(name), []).append(one_line(why.strip().rstrip(".")))
    return {name: " / ".join(filter(None, whys)) for name, whys in found.items()}


def _explained(placement: Placement, reasons: Mapping[str, str]) -> Placement:
    named = {each.operation for each in placement.outside}
    outside = [
        replace(each, reason=reasons.get(each.operation, "")[:1000]) for each in placement.outside
    ]
    if not named:
        # The log counts no operation of a kind: some of it may have been taken.
        outside = [Outside(name, None, "", why[:1000]) for name, why in reasons.items()]
    return replace(placement, outside=tuple(outside))


# The file.


@dataclass
class _Node:
    """A node of the graph as it runs: an operation of the file, or a delegate's piece."""

    number: int = 0
    name: str = ""
    taker: int | None = None  # the number of the piece that runs it
    delegate: str = ""  # whose piece it is


def _of_file(content: bytes, wanted_cpu: bool) -> tuple[Placement, int] | None:
    """None if it is no `ModelRuntimeDetails`, or has no graph.

    The message is defined in tflite/profiling/proto/model_runtime_info.proto.
    """
    try:
        nodes = _nodes(content)
    except ValueError:
        return None
    pieces = {node.number: node.delegate for node in nodes if node.delegate}
    own = [node for node in nodes if not node.delegate]
    if not own:
        return None
    takers = ["" if node.taker is None else pieces.get(node.taker, "") for node in own]
    counts: collections.Counter[tuple[str, str]] = collections.Counter(
        (node.name, taker)
        for node, taker in zip(own, takers, strict=True)
        if not _is(taker, wanted_cpu)
    )
    outside = tuple(Outside(name, n, taker) for (name, taker), n in counts.most_common())
    placed = len(own) - sum(counts.values())
    mine = {node.taker for node in own if node.taker is not None} & {
        number for number, delegate in pieces.items() if _is(delegate, wanted_cpu)
    }
    delegate = pieces[min(mine)] if mine else ""
    return Placement(delegate, placed, len(own), not counts, outside, _FILE), len(mine)


def _nodes(content: bytes) -> list[_Node]:
    """Those of the main graph: the first that is no delegate's own.

    Raises:
        ValueError: it is no such message.
    """
    for number, graph in fields_of(content):
        if number == 2 and isinstance(graph, bytes):
            fields = list(fields_of(graph))
            if (5, 2) in fields:  # DELEGATE_SUBGRAPH
                continue
            nodes = [node for number, node in fields if number == 3 and isinstance(node, bytes)]
            if len(nodes) > _MOST:
                raise ValueError(f"over {_MOST} operations")
            return [_node(node) for node in nodes]
    return []


def _node(content: bytes) -> _Node:
    node = _Node()
    for number, value in fields_of(content):
        match number, value:
            case 1, int():
                node.number = value
            case 2, bytes():
                node.name = _name(value)
            case 9, int():
                node.taker = value
            case 8, bytes():
                node.delegate = _name(dict(fields_of(value)).get(1, b""))
    node.name = node.name or "?"
    return node


def _name(value: Value) -> str:
    text = value[:320].decode("utf-8", "replace") if isinstance(value, bytes) else ""
    return one_line(text)[:80] or "?"


def _is(delegate: str, wanted_cpu: bool) -> bool:
    return bool(delegate) and (delegate in CPU_DELEGATES) == wanted_cpu


# The log.


def _of_log(text: str, wanted_cpu: bool, name: str) -> tuple[Placement, int | None] | None:
    """What the lines say, each of them as far as it goes."""
    if _UNDONE in text:
        # It said that it was replacing them, and took that back.
        return Placement("", 0, None, False, (), _LOG), 0
    kernels = _kernels(text, name)
    lines = [match.groups() for match in _REPLACING.finditer(text) if match[5] in (None, "0")]
    mine = [line for line in lines if _is(line[2], wanted_cpu)]
    if mine:
        taken, total, delegate, partitions, _ = mine[0]
        placed, operations = int(taken), int(total) if total else None
        pieces = kernels
        if pieces is None:
            pieces = _pieces(lines, lines.index(mine[0]), placed, operations, partitions)
        complete = None if operations is None else placed == operations
        if complete is None and kernels is not None:
            complete = _completely(text, name)
        if complete:
            operations = placed
        return Placement(one_line(delegate), placed, operations, complete, (), _LOG), pieces
    delegate = XNNPACK if wanted_cpu else ""
    if kernels is None:
        return None
    counted = None if wanted_cpu else _REFUSED.search(text)
    if kernels == 0:
        return Placement("", 0, None, False, (), _LOG), 0
    if counted and counted[2].split()[-1].isdecimal():
        placed = int(counted[2].split()[-1])
        return Placement(delegate, placed, placed + int(counted[3]), False, (), _LOG), kernels
    return Placement(delegate, None, None, _completely(text, name), (), _LOG), kernels


def _kernels(text: str, name: str) -> int | None:
    """The pieces by the classic tool's own count; 0 if it says that there are none."""
    applied = re.search(
        rf"Explicitly applied {name} delegate, .{{0,80}}(completely executed|w/ (\d{{1,6}}) )", text
    )
    if applied:
        return int(applied.group(2) or 1)
    return 0 if re.search(rf"Though {name} delegate is explicitly applied", text) else None


def _completely(text: str, name: str) -> bool:
    pattern = rf"Explicitly applied {name} delegate, .{{0,80}}completely executed"
    return re.search(pattern, text) is not None


def _pieces(
    lines: list[tuple[Any, ...]], at: int, placed: int, operations: int | None, partitions: str
) -> int | None:
    """From how many nodes the next delegate found, or from the partitions, if those decide it.

    Of a chain, every other partition is a piece: of an odd number it may be one more or one less
    than half.
    """
    if operations is None:
        return None
    if placed == operations:
        return 1
    if at + 1 < len(lines) and lines[at + 1][1] is not None:
        pieces = int(lines[at + 1][1]) - (operations - placed)
        return pieces if pieces > 0 else None
    count = int(partitions or 1)
    return count // 2 if count % 2 == 0 else None
