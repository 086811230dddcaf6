"""Latency on the host, an Android phone or a Linux board, and the files that keep it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kapps._errors import InputError, one_line
from kapps._files import write_text
from kapps.tflite import child, tables
from kapps.tflite.measurement import benchmark_tool, latency
from kapps.tflite.measurement import profile as profiling
from kapps.tflite.measurement.benchmark_tool import ACCELERATORS, LAUNCHES, Settings
from kapps.tflite.measurement.latency import STOP_RULES, Latency
from kapps.tflite.results import checked, read_json

FORMAT = "kapps_benchmark"  # the key that holds the version
_VERSION = 1
MAX_BYTES = 512 << 20  # a sample takes 10, a minute of a net of 0.1 ms is 6 MB


def benchmark(
    paths: Sequence[str | os.PathLike[str]],
    *,
    device: str = "host",
    threads: int = 1,
    accelerator: str = "cpu",
    stop_rule: str = "quick",
    launches: int = LAUNCHES,
    binary: str | os.PathLike[str] | None = None,
    app: str | os.PathLike[str] | None = None,
    input_shape: Sequence[int] | None = None,
    profile: bool = False,
    time_limit: float = 3600.0,
    progress: Callable[[float], object] = lambda share: None,
) -> list[Latency]:
    """Measures .tflite files on a device, one image at a time, in turns.

    Args:
        paths: the files; they share the device's drift, so compare what was measured together.
        device: "host"; "adb", the one phone that is connected, or "adb:SERIAL"; "ssh:HOST".
        threads: of the interpreter.
        accelerator: "cpu"; or "gpu" or "nnapi", on devices that have it and run `benchmark_model`.
        stop_rule: "quick" or "mlperf", see STOP_RULES: what each file has to reach.
        launches: of `benchmark_model`, for each file; it keeps no samples, so that only several
            launches tell the spread.
        binary: `benchmark_model`, for a phone, or for a board that has neither this tool on its
            PATH nor ai-edge-litert.
        app: the same tool as an Android app (an .apk file), for a phone, in place of `binary`.
        input_shape: of the input of files that take any size, such as (1, 224, 224, 3).
        profile: whether each file is run once more, for the time of each operation; it counts for
            no other figure.
        time_limit: seconds after which the measurement is ended. Copying the files to a device, and
            on the host the memory of each file, have limits of their own.
        progress: called now and then with the share that is done, 0 to 1.

    Raises:
        InputError: a file is not there or does not run, the device is not there, not ready, gone,
            or without space, or its tool fails, or the stop rule cannot be reached in time.
    """
    if stop_rule not in STOP_RULES:
        raise InputError(f"unknown stop rule {stop_rule!r}: {', '.join(STOP_RULES)}")
    rule = STOP_RULES[stop_rule]
    shape = child.check_input_shape(input_shape)
    settings = Settings(threads, accelerator, rule, launches, time_limit, progress, shape, profile)
    kind, address = parse_device(device)
    if rule.seconds * len(paths) > time_limit:
        raise InputError(
            f"{len(paths)} files of {rule.seconds:g} s each take over {time_limit:g} s: raise "
            "--time_limit, or measure fewer at once"
        )
    if app is not None and kind != "adb":
        raise InputError("--benchmark_apk is for phones: --device=adb")
    if app is not None and binary is not None:
        raise InputError("give --benchmark_binary or --benchmark_apk, not both")
    if device == "host":
        if accelerator != "cpu":
            raise InputError(f"the host is measured on its CPU only, not on {accelerator!r}")
        if binary is not None:
            raise InputError("the host is measured by ai-edge-litert: leave --benchmark_binary out")
        results = latency.measure(
            paths,
            threads=threads,
            min_runs=rule.runs,
            min_seconds=rule.seconds,
            input_shape=shape,
            time_limit=time_limit,
            progress=progress,
        )
        if not profile:
            return results
        profiles = profiling.on_host(
            paths, threads=threads, input_shape=shape, time_limit=time_limit
        )
        return [
            dataclasses.replace(result, profile=profiled)
            for result, profiled in zip(results, profiles, strict=True)
        ]
    latency.existing(paths)  # before a device is set to work
    if kind == "adb":
        from kapps.tflite.measurement import adb

        return adb.measure(paths, settings, serial=address or None, binary=binary, app=app)
    return _over_ssh(paths, settings, address, binary)


def parse_device(device: str) -> tuple[str, str]:
    """What kind of device it is, host, adb or ssh, and its address, "" for the only one.

    Raises:
        InputError: it is none of these.
    """
    kind, _, address = device.partition(":")
    if device in ("host", "adb") or (kind in ("adb", "ssh") and address):
        return kind, address
    raise InputError(f"unknown device {device!r}: expected host, adb, adb:SERIAL or ssh:HOST")


def _over_ssh(
    paths: Sequence[str | os.PathLike[str]],
    settings: Settings,
    host: str,
    binary: str | os.PathLike[str] | None,
) -> list[Latency]:
    """By `benchmark_model`, if it is given or there; by the board's Python, if not."""
    from kapps.tflite.measurement import board, ssh
    from kapps.tflite.measurement.machine import machine

    with ssh.Ssh(host) as connection:
        processor = machine(connection)
        settings = processor.settings(settings)
        if binary is not None or board.has_tool(connection):
            tool = None if binary is None else latency.existing([binary])[0]
            with board.remote_folder(connection) as folder:
                found = benchmark_tool.measure_remote(
                    connection,
                    paths,
                    settings,
                    root=folder,
                    device=benchmark_tool.linux_device(connection),
                    binary=tool,
                    state=lambda: board.state_words(board.board_state(connection)),
                    notes={},
                )
            return [processor.result(each) for each in found]
        if settings.accelerator != "cpu":
            raise InputError(
                f"{connection.name} has no benchmark_model, and without it no "
                f"{settings.accelerator}: put it on the board's PATH, or give it by "
                "--benchmark_binary"
            )
        run = board.measure_board(
            connection,
            paths,
            threads=settings.threads,
            min_runs=settings.stop_rule.runs,
            min_seconds=settings.stop_rule.seconds,
            input_shape=settings.input_shape,
            profile=settings.profile,
            time_limit=settings.time_limit,
            progress=settings.progress,
        )
        notes = {
            "transport": connection.name,
            "cores": ", ".join(map(str, run.cpus)) or "not pinned",
            **benchmark_tool.changes(board.state_words(run.before), board.state_words(run.after)),
        }
    found = [
        Latency.of_samples(
            Path(path),
            file.samples_ms,
            device=run.board,
            threads=settings.threads,
            stop_rule=settings.stop_rule,
            initialization_ms=file.initialization_ms,
            delegate_pieces=file.delegate_pieces,
            placement=file.placement,
            peak_memory_mb=None
            if file.peak_memory_bytes is None
            else file.peak_memory_bytes / (1 << 20),
            sha256=sha256,
            size_bytes=size_bytes,
            notes=notes,
            versions={**latency.kapps_version(), "runtime": run.runtime},
        )
        for path, (sha256, size_bytes), file in zip(paths, run.identities, run.files, strict=True)
    ]
    if run.profiles:
        found = [
            dataclasses.replace(result, profile=profile)
            for result, profile in zip(found, run.profiles, strict=True)
        ]
    return [processor.result(each) for each in found]


# On the screen.

_HEADER = (
    *("file", "p50", "p90", "p95", "p99", "mean", "std", "init", "MB", "runs", "launches' p50"),
    *("placed", "pieces"),
)


def table(results: Sequence[Latency]) -> str:
    """The results for a terminal: a table for each device, times in ms; "-" is not told."""
    groups: dict[tuple[str, ...], list[Latency]] = {}
    for result in results:
        plural = "" if result.threads == 1 else "s"
        what = f"{result.device}; {result.accelerator}, {result.threads} thread{plural}"
        groups.setdefault((what, result.stop_rule, *_note_lines(result)), []).append(result)
    parts = []
    for (what, rule, *notes), members in groups.items():
        rows = tables.aligned(
            _HEADER, [_cells(member) for member in members], right=range(1, len(_HEADER))
        )
        where = [placement_line(member) for member in members]
        shown = [
            f"\n{one_line(member.file.name)}, by operation:\n{profiling.table(member.profile)}"
            for member in members
            if member.profile
        ]
        if members[0].emulated:
            rule = "no times: they would be the emulator's; verified: each file runs there"
        else:
            rule = f"milliseconds; {rule}"
        parts.append("\n".join([what, rule, *notes, "", rows, "", *where, *shown]))
    return "\n\n\n".join(parts)


def _note_lines(result: Latency) -> list[str]:
    return [f"{one_line(name)}: {one_line(words)}" for name, words in result.notes.items()]


def _cells(result: Latency) -> tuple[str, ...]:
    spread = "-"
    if len(result.launch_p50_ms) > 1:
        spread = f"{_ms(min(result.launch_p50_ms))} to {_ms(max(result.launch_p50_ms))}"
    return (
        one_line(result.file.name),
        *map(_ms, (result.p50_ms, result.p90_ms, result.p95_ms, result.p99_ms)),
        *map(_ms, (result.mean_ms, result.std_ms, result.initialization_ms)),
        "-" if result.peak_memory_mb is None else f"{result.peak_memory_mb:.1f}",
        f"{result.runs:,}",
        spread,
        (result.placement.share if result.placement else "") or "-",
        "-" if result.delegate_pieces is None else str(result.delegate_pieces),
    )


def placement_line(result: Latency) -> str:
    """Where a file ran: "net.tflite: 63 of 65 operations on gpu (LITERT_CL), in 1 piece; ..."."""
    name, placement = one_line(result.file.name), result.placement
    if placement is None:
        return f"{name}: what of it ran on {result.accelerator} is not told"
    return f"{name}: {one_line(placement.words(result.accelerator, result.delegate_pieces))}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


# In files.


def write_results(results: Sequence[Latency], path: str | os.PathLike[str]) -> Path:
    """Writes results as JSON for `read_results`, whole or not at all.

    Raises:
        InputError: the folder cannot be written.
    """
    write_text(path, to_json(results))
    return Path(path)


def to_json(results: Sequence[Latency]) -> str:
    """What `write_results` writes. Of a file's path its name is kept, as printable text."""
    listed = [
        {**dataclasses.asdict(result), "file": one_line(result.file.name) or "?"}
        for result in results
    ]
    return json.dumps({FORMAT: _VERSION, "results": listed}, ensure_ascii=False) + "\n"


def read_results(path: str | os.PathLike[str]) -> list[Latency]:
    """The results in a file of `write_results`. It may come from elsewhere: each value is checked.

    Raises:
        InputError: no such file, or not of this form; the message names the value.
    """
    content = read_json(path, most_bytes=MAX_BYTES, kind="benchmark result")
    return parse_results(content, path)


def parse_results(content: Any, path: str | os.PathLike[str]) -> list[Latency]:
    """The results in the JSON of the file at `path`, as `read_results` has them.

    Raises:
        InputError: they are not of this form; the message names the value.
    """
    if not isinstance(content, dict) or FORMAT not in content:
        raise InputError(f"{path} is no result of kapps-benchmark --output: no {FORMAT!r}")
    if content[FORMAT] != _VERSION or isinstance(content[FORMAT], bool):
        raise InputError(
            f"{path} is of version {one_line(content[FORMAT])} of the results, and this kapps "
            f"reads version {_VERSION}: measure again, or use the kapps that wrote it"
        )
    results = content.get("results")
    if not isinstance(results, list):
        raise InputError(f"{path}: results: expected a list")
    return [_result(path, number, values) for number, values in enumerate(results)]


def _result(path: str | os.PathLike[str], number: int, values: Any) -> Latency:
    at = f"{path}: results[{number}]"
    result = checked(values, Latency, at)
    if result.accelerator not in ACCELERATORS:
        known = ", ".join(ACCELERATORS)
        raise InputError(f"{at}.accelerator: expected one of {known}, got {result.accelerator!r}")
    percentiles = (result.p50_ms, result.p90_ms, result.p95_ms, result.p99_ms)
    told = [value for value in percentiles if value is not None]
    if told != sorted(told):
        raise InputError(f"{at}: its percentiles do not rise: {told}")
    if result.placement is not None and result.placement.is_contradictory:
        raise InputError(f"{at}: its placement contradicts itself: {result.placement.share}")
    times = (*percentiles, result.mean_ms, result.std_ms, result.initialization_ms)
    if result.emulated and (
        any(time is not None for time in times) or result.samples_ms or result.profile
    ):
        raise InputError(f"{at}: times of an emulated device, which mean nothing")
    for name in ("mean_ms", "std_ms"):
        if getattr(result, name) is None and not result.emulated:
            raise InputError(f"{at}.{name}: expected a time, got null")
    if result.samples_ms and len(result.samples_ms) != result.runs:
        raise InputError(f"{at}: {result.runs} runs and {len(result.samples_ms)} samples")
    return result
