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
