"""What the two official tools called benchmark_model print, for tests that have none of them.

The lines are those of https://github.com/google-ai-edge/LiteRT as of August 2026; each function
says of which file. On Android, what goes to stderr goes to the log as well.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# tflite/tools/benchmark/benchmark_model.cc: BenchmarkModel::Run, both tools, on stdout.
COUNTS = (
    "INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if "
    "exceeding 150 seconds.\n"
    "INFO: count=64 first=9120 curr=7420 min=7400 max=9120 avg=7716 std=402 p5=7402 median=7611 "
    "p95=8302\n\n"
    "INFO: Running benchmark for at least 13 iterations and at least 1.2 seconds but terminate if "
    "exceeding 150 seconds.\n"
    "INFO: count=160 first=7431 curr=7430 min=7416 max=7448 avg=7430.2 std=9 p5=7418 median=7430 "
    "p95=7446\n\n"
)
# The same file: BenchmarkLoggingListener::OnBenchmarkEnd, the classic tool, on stdout.
CLASSIC_END = (
    "INFO: Inference timings in us: Init: 84532, First inference: 9120, Warmup (avg): 7716, "
    "Inference (avg): 7430.2\n"
    "INFO: Note: as the benchmark tool itself affects memory footprint, the following is only "
    "APPROXIMATE to the actual memory footprint of the model at runtime. Take the information at "
    "your discretion.\n"
    "INFO: Memory footprint delta from the start of the tool (MB): init=96.5 overall=98.25\n"
)
# litert/tools/benchmark_litert_model.h: BenchmarkLoggingListener::OnBenchmarkEnd, on stderr.
NEWER_END = (
    "INFO: [benchmark_litert_model.h:90] \n========== BENCHMARK RESULTS ==========\n"
    "INFO: [benchmark_litert_model.h:92] Signature name:       serving_default\n"
    "INFO: [benchmark_litert_model.h:94] Model initialization: 23.74 ms\n"
    "INFO: [benchmark_litert_model.h:96] Warmup (first):       9.12 ms\n"
    "INFO: [benchmark_litert_model.h:98] Warmup (avg):         7.72 ms (64 runs)\n"
    "INFO: [benchmark_litert_model.h:100] Inference (avg):      7.43 ms (160 runs)\n"
    "INFO: [benchmark_litert_model.h:124] \nMemory Usage:\n"
    "INFO: [benchmark_litert_model.h:126] Init footprint:       63.91 MB\n"
    "INFO: [benchmark_litert_model.h:128] Overall footprint:    64.50 MB\n"
    "INFO: [benchmark_litert_model.h:138] ======================================\n\n"
)


def replacing(taken: int, total: int, delegate: str, partitions: int) -> str:
    """tflite/core/subgraph.cc: ReplaceNodeSubsetsWithDelegateKernels, on stderr."""
    return (
        f"VERBOSE: Replacing {taken} out of {total} node(s) with delegate ({delegate}) node, "
        f"yielding {partitions} partitions for subgraph 0 (main).\n"
    )


def applied(delegate: str, kernels: int | None) -> str:
    """tflite/tools/benchmark/benchmark_tflite_model.cc: Init, on stdout; None is all of it."""
    if kernels == 0:
        return (
            f"INFO: Though {delegate} delegate is explicitly applied, the model graph will not be "
            "executed by the delegate.\n"
        )
    how = (
        "completely executed by the delegate."
        if kernels is None
        else f"partially executed by the delegate w/ {kernels} delegate kernels."
    )
    return f"INFO: Explicitly applied {delegate} delegate, and the model graph will be {how}\n"


def refused(lines: list[str], taken: int, left: int) -> str:
    """tflite/delegates/gpu/common/model_builder.cc: GetOpsToReplace, on stderr."""
    told = f"{taken} operations will run on the GPU, and the remaining {left}"
    if not taken:
        told = f"No operations will run on the GPU, and all {left}"
    return (
        "ERROR: Following operations are not supported by GPU delegate:\n"
        + "\n".join(lines)
        + f"\n{told} operations will run on the CPU.\n"
    )


# tflite/tools/benchmark/benchmark_model.cc: ParseFlags, on stdout.
def unconsumed(*flags: str) -> str:
    return f"WARN: Unconsumed cmdline flags: {' '.join(flags)}\n"


@functools.cache
def _message(file: str, name: str) -> type:
    """A message of LiteRT's wheel, which is not imported: TensorFlow has registered the same."""
    (folder,) = importlib.util.find_spec("ai_edge_litert").submodule_search_locations
    pool = descriptor_pool.DescriptorPool()
    for each in ("profiling_info", file):
        tree = ast.parse(Path(folder, f"{each}_pb2.py").read_text())
        (content,) = (
            call.args[0].value
            for call in ast.walk(tree)
            if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "AddSerializedFile"
        )
        pool.Add(descriptor_pb2.FileDescriptorProto.FromString(content))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tflite.profiling.{name}"))


def runtime_info(operations: list[tuple[str, str]]) -> bytes:
    """The file of --model_runtime_info_output_file, from (operation, delegate or "") in order.

    As tflite/profiling/model_runtime_info.cc fills it: neighbours of one delegate are one piece.
    """
    details = _message("model_runtime_info", "ModelRuntimeDetails")(model_name="net")
    graph = details.subgraphs.add(subgraph_id=0, subgraph_type=1, name="main")
    pieces: list[tuple[str, list[int]]] = []
    plan = []
    for number, (_, delegate) in enumerate(operations):
        if number and delegate and delegate == operations[number - 1][1]:
            pieces[-1][1].append(number)
            continue
        if delegate:
            pieces.append((delegate, [number]))
        plan.append(len(operations) + len(pieces) - 1 if delegate else number)
    to = {n: len(operations) + i for i, (_, members) in enumerate(pieces) for n in members}
    for number, (name, _) in enumerate(operations):
        node = graph.nodes.add(id=number, name=name, type="3")
        if number in to:
            node.delegated_to_node_id = to[number]
    for number, (delegate, members) in enumerate(pieces):
        node = graph.nodes.add(id=len(operations) + number, name=delegate, type=delegate)
        node.delegate_node_details.delegate_name = delegate
        node.delegate_node_details.tflite_node_ids_replaced.extend(members)
    graph.execution_plan.extend(plan)
    return details.SerializeToString()


def classic_profile(rows, within=()) -> str:
    """tensorflow/core/util/stats_calculator.cc, in the frame of
    tflite/profiling/profile_summary_formatter.cc: rows of (type, ms, name), on stdout.

    `within`: what XNNPACK tells of itself.
    """
    text = (
        "INFO: Profiling Info for Benchmark Initialization:\n"
        + _stats([("ModifyGraphWithDelegate", 51.2, "ModifyGraphWithDelegate/0", 1)])
        + "\n\nINFO: Operator-wise Profiling Info for Regular Benchmark Runs:\n"
        + _stats([(*row, 1) for row in rows])
        + "\n\n"
    )
    if within:
        text += "Delegate internal: \n" + _stats([(*row, 1) for row in within]) + "\n\n"
    return text


def _stats(rows) -> str:
    total = sum(row[1] for row in rows)
    head = (
        f"\t{'[node type]':>24}\t{'[first]':>9}\t{'[avg ms]':>9}\t{'[%]':>8}\t{'[cdf%]':>8}"
        f"\t{'[mem KB]':>10}\t{'[times called]':>9}\t[Name]\n"
    )

    def listed(title, rows):
        text, so_far = f"{'=' * 30} {title} {'=' * 30}\n{head}", 0.0
        for kind, ms, name, calls in rows:
            so_far += ms
            shares = f"\t{100 * ms / total:7.3f}%\t{100 * so_far / total:7.3f}%"
            text += f"\t{kind:>24}\t{ms:9.3f}\t{ms:9.3f}{shares}\t{0:10.3f}\t{calls:9d}\t{name}\n"
        return text

    worst = sorted(rows, key=lambda row: -row[1])
    return (
        listed("Run Order", rows)
        + "\n"
        + listed("Top by Computation Time", worst)
        + f"\nNumber of nodes executed: {len(rows)}\n"
        + f"{'=' * 30} Summary by node type {'=' * 30}\n"
        + "\t             [Node type]\t  [count]\t  [avg ms]\t    [avg %]\t    [cdf %]\t"
        + "  [mem KB]\t[times called]\n"
        + f"\t{rows[0][0]:>24}\t{1:9d}\t{1:10.3f}\t{1:10.3f}%\t{1:10.3f}%\t{0:10.3f}\t{1:9d}\n"
        + "\nTimings (microseconds): count=160 curr=7430 min=7416 max=7448 avg=7430.2 std=9\n"
        + f"Memory (bytes): count=0\n{len(rows)} nodes observed\n"
    )


# litert/runtime/profiler_summarizer.cc, on stderr: three lines of what LiteRT 2.3.0 prints of 50
# runs of an int8 LeNet-5; the calls of the second are those of a network in two pieces.
NEWER_PROFILE = """INFO: [benchmark_litert_model.h:187] 
===================================================================== Run Order ======================================================================
                                                 [node type]    [start]    [first]   [avg ms]        [%]     [cdf%]   [mem KB] [times called]   [Name]
                                                    QUANTIZE      0.000      0.004      0.003     4.708%     4.708%      0.000             50   [Builtin]:0
                      Delegate/Convolution (NHWC, QC8) IGEMM      0.000      0.047      0.053    75.036%    79.743%      0.000            100   [Delegate]:0
                                                     SOFTMAX      0.075      0.001      0.001     0.856%   100.000%      0.000             50   [Builtin]:8

============================================================== Top by Computation Time ===============================================================
                                                 [node type]    [start]    [first]   [avg ms]        [%]     [cdf%]   [mem KB] [times called]   [Name]
                      Delegate/Convolution (NHWC, QC8) IGEMM      0.000      0.047      0.053    75.036%    75.036%      0.000            100   [Delegate]:0

Number of nodes executed: 3
"""  # noqa: E501, W291
