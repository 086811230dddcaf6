"""Where the operations of a file ran: how many on what was asked for, and which fell off, and why.

Nothing of it is guessed: the interpreter of this machine or of a board tells it, or the tool that
measured, in its log and its files (`kapps.tflite.measurement.tool_placement`).
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kapps.tflite.results import Count, Line, Name, Number

XNNPACK = "TfLiteXNNPackDelegate"
CPU_DELEGATES = (XNNPACK, "YNNPackDelegate")
"""How the runtime calls what takes operations on the CPU; any other is an accelerator's:
https://github.com/google-ai-edge/LiteRT/blob/main/litert/runtime/compiled_model.cc, GetGraphCounts.
"""

_INTERPRETER = "the interpreter"
_MOST_OUTSIDE = 3  # of a line; --output has all


@dataclass(frozen=True)
class Outside:
    """Operations of one kind that did not go where they were asked to go.

    Attributes:
        operation: as the schema has it, such as HARD_SWISH.
        count: how many; None if that is not told.
        ran_on: the delegate that took them in its place; "" for the plain kernels, or if not told.
        reason: in the words of whoever told it; "" if nobody did.
    """

    operation: Name
    count: Count | None
    ran_on: Line = ""
    reason: Line = ""

    def __str__(self) -> str:
        counted = self.operation if self.count is None else f"{self.count} {self.operation}"
        where = f" on {self.ran_on}" if self.ran_on else ""
        return f"{counted}{where} ({self.reason or 'why is not told'})"


@dataclass(frozen=True)
class Placement:
    """What an accelerator took of a file.

    Attributes:
        delegate: the accelerator's part of the runtime, as that calls it.
        placed: how many operations it took; None if that is not told.
        operations: how many the file has; None likewise.
        complete: whether it took all; None likewise.
        outside: what it did not take.
        told_by: who says so.
    """

    delegate: Line
    placed: Number | None
    operations: Number | None
    complete: bool | None
    outside: tuple[Outside, ...] = ()
    told_by: Line = ""

    @property
    def share(self) -> str:
        """ "63 of 65", as far as it is told; "" if not at all."""
        if self.placed is None:
            return {True: "all", False: "a part", None: ""}[self.complete]
        return f"{self.placed} of {'?' if self.operations is None else self.operations}"

    @property
    def is_contradictory(self) -> bool:
        """Whether it cannot be, as of a file that was changed by hand."""
        if self.placed is None or self.operations is None:
            return False
        return self.placed > self.operations or self.complete != (self.placed == self.operations)

    def words(self, accelerator: str, pieces: int | None) -> str:
        """In one line: "3 of 65 operations on gpu (LITERT_CL), in 1 piece; outside: ..."."""
        told = [f"{self.share or 'not told how many'} operations on {accelerator}"]
        if self.delegate:
            told.append(f" ({self.delegate})")
        if pieces is not None:
            told.append(f", in {pieces} piece{'s' * (pieces != 1)}")
        shown = "; ".join(map(str, self.outside[:_MOST_OUTSIDE]))
        if more := len(self.outside) - _MOST_OUTSIDE:
            shown += f"; and {more} more kinds" if more > 0 else ""
        if shown:
            told.append(f"; outside: {shown}")
        elif not self.complete:
            told.append("; which are outside is not told")
        return "".join(told)


def of_operations(operations: Sequence[Mapping[str, Any]]) -> tuple[Placement, int]:
    """What the CPU delegate took by an interpreter's own list of operations, and its pieces.

    Args:
        operations: as `kapps.tflite.interpreter.operations` gives them.
    """
    from kapps.tflite.interpreter import delegated

    own = delegated(operations)
    counts = collections.Counter(
        op["op_name"] for op, piece in zip(operations, own, strict=False) if piece is None
    )
    outside = tuple(Outside(name, count) for name, count in counts.most_common())
    placed = len(own) - sum(counts.values())
    pieces = len(operations) - len(own)
    taken = XNNPACK if pieces else ""
    placement = Placement(taken, placed, len(own), not counts, outside, _INTERPRETER)
    return placement, pieces


def with_reasons(placement: Placement, reasons: Mapping[str, str]) -> Placement:
    """The same, with {operation: why} for what is outside and of which nobody told it."""
    outside = tuple(
        each if each.reason else replace(each, reason=reasons.get(each.operation, ""))
        for each in placement.outside
    )
    return replace(placement, outside=outside)
