"""Who the workers of a run are, and which of them this process is, by its environment.

TF_CONFIG says it, as TensorFlow defines it, or else what starts the processes: a step of Slurm, or
an Indexed Job of Kubernetes (docs/scale.md). All workers read the same list there, so that none has
to be asked.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Mapping
from typing import Any

from kapps._errors import InputError, one_line

EXAMPLE = (
    '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'
)
"""TF_CONFIG on the first of two machines."""

_MOST = 1 << 16  # workers; a range of Slurm can name any number of hosts in a few characters
_KUBERNETES_PORT = 2222

# Below those that Linux gives to outgoing connections, 32768 and above. A job has 16 to itself: two
# that were started one after the other may share a node.
_SLURM_PORTS = range(20000, 32000, 16)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a run, of which this process is one."""

    addresses: tuple[str, ...]
    """host:port of each; the first is the chief's, which writes the run's files."""
    index: int
    """This process's place among them."""

    @property
    def is_chief(self) -> bool:
        """Whether this process is the one that writes the run's files."""
        return self.index == 0


def from_environment(environ: Mapping[str, str]) -> Cluster | None:
    """The workers that the environment names; None: it names none, and this process is alone.

    Looked for in this order: TF_CONFIG; a Slurm step of several tasks; an Indexed Job of Kubernetes
    with KAPPS_WORKERS and KAPPS_SERVICE. KAPPS_PORT replaces the (first) port of the last two.

    Raises:
        InputError: it names some, but in a way that does not fit together.
    """
    if environ.get("TF_CONFIG"):
        return _of_tf_config(environ["TF_CONFIG"])
    # Not SLURM_NTASKS: a shell of salloc and the script of sbatch have that too, but only what srun
    # starts is one of several.
    if environ.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        return _of_slurm(environ)
    if "JOB_COMPLETION_INDEX" in environ and "KAPPS_WORKERS" in environ:
        return _of_kubernetes(environ)
    return None


def required(environ: Mapping[str, str]) -> Cluster:
    """The workers that the environment names.

    Raises:
        InputError: it names none, or in a way that does not fit together.
    """
    cluster = from_environment(environ)
    if cluster is not None:
        return cluster
    if "SLURM_JOB_ID" in environ:
        raise InputError(
            "strategy multi_worker: this process is alone in its Slurm step; start it with srun "
            "and a task for each worker, as in docs/slurm.sh"
        )
    raise InputError(
        "strategy multi_worker: nothing says who the workers are; give --num_workers for several "
        "on this machine, or set the environment variable TF_CONFIG, on the first of two machines "
        f"to {EXAMPLE}"
    )


def tf_config(cluster: Cluster) -> str:
    """The value of TF_CONFIG for this process.

    All are of the type "worker": TensorFlow takes the first one of these as the chief.
    """
    task = {"type": "worker", "index": cluster.index}
    return json.dumps({"cluster": {"worker": cluster.addresses}, "task": task})


def _of_tf_config(text: str) -> Cluster:
    """TensorFlow's own words for a wrong one are a traceback, or silence."""
    try:
        return _cluster(json.loads(text))
    except KeyError as error:
        why = f"{error} is missing"
    except (ValueError, RecursionError) as error:
        why = str(error)
    raise InputError(
        f"TF_CONFIG does not describe this worker: {why}; it is {one_line(text, 200)} and should be"
        f" like {EXAMPLE}"
    )


def _cluster(config: Any) -> Cluster:
    """Raises ValueError or KeyError where it is none."""
    cluster, task = _object(_object(config)["cluster"]), _object(config["task"])
    if not set(cluster) <= {"chief", "worker"}:
        raise ValueError(f"it has {', '.join(sorted(cluster))}, where only chief and worker train")
    chiefs, workers = (cluster.get(kind, []) for kind in ("chief", "worker"))
    for addresses in (chiefs, workers):
        if not isinstance(addresses, list) or not all(map(_is_address, addresses)):
            raise ValueError(f"{addresses} is no list of host:port")
    if len(chiefs) > 1:
        raise ValueError("there is more than one chief")
    if len({*chiefs, *workers}) < len(chiefs) + len(workers):
        raise ValueError("an address is there twice")
    kind, index = task["type"], task["index"]
    if kind not in list(cluster) or not re.fullmatch("[0-9]{1,6}", str(index)):
        raise ValueError(f"there is no task {kind} {index}")
    if int(index) >= len(cluster[kind]):
        raise ValueError(f"there is no task {kind} {index} among {len(cluster[kind])}")
    before = len(chiefs) if kind == "worker" else 0
    return Cluster((*chiefs, *workers), before + int(index))


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is no object")
    return value


def _is_address(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\S+:[0-9]{1,5}", value) is not None


def _of_slurm(environ: Mapping[str, str]) -> Cluster:
    """By node and place on the node: the tasks' own numbers depend on `srun --distribution`."""
    names = ("SLURM_STEP_NUM_TASKS", "SLURM_NODEID", "SLURM_LOCALID", "SLURM_JOB_ID")
    tasks, node, place, job = (_whole(environ, name) for name in names)
    hosts = expand_hosts(_value(environ, "SLURM_STEP_NODELIST"))
    counts = _tasks_per_node(_value(environ, "SLURM_STEP_TASKS_PER_NODE"))
    if len(hosts) != len(counts) or sum(counts) != tasks or [*counts, 0][node:][0] <= place:
        raise InputError(
            f"Slurm's variables do not fit together: {len(hosts)} nodes "
            f"({environ['SLURM_STEP_NODELIST']}) with {counts} tasks, {tasks} in all, and this is "
            f"task {place} of node {node}; set TF_CONFIG instead"
        )
    # Another step, after a crash say, has other ports: the old ones may not be free yet.
    step = _whole(environ, "SLURM_STEP_ID", 0)
    first = _whole(environ, "KAPPS_PORT", _SLURM_PORTS[(job + 101 * step) % len(_SLURM_PORTS)])
    addresses = tuple(
        f"{host}:{first + i}"
        for host, count in zip(hosts, counts, strict=True)
        for i in range(count)
    )
    return Cluster(addresses, sum(counts[:node]) + place)


def expand_hosts(text: str) -> tuple[str, ...]:
    """The hosts of a list as Slurm writes it: "gpu[01-03,07],login1" are five.

    A name may have several brackets; the last one counts fastest. Leading zeros stay.

    Raises:
        InputError: it is no such list, or a very long one.
    """
    hosts: list[str] = []
    for part in re.split(r",(?![^\[]*\])", text):  # at commas outside of brackets
        pieces = re.split(r"\[([^\[\]]*)\]", part)
        choices = [_numbers(p, text) if i % 2 else [p] for i, p in enumerate(pieces)]
        hosts += map("".join, itertools.islice(itertools.product(*choices), _MOST + 1))
        if len(hosts) > _MOST:
            raise InputError(f"Slurm's node list {one_line(text, 200)} is of over {_MOST:,} hosts")
    if not all(re.fullmatch(r"[\w.-]+", host, re.ASCII) for host in hosts):
        raise _no_list(text)
    return tuple(hosts)


def _numbers(ranges: str, text: str) -> list[str]:
    """Those of "01-03,07", as they are written."""
    numbers: list[str] = []
    for part in ranges.split(","):
        found = re.fullmatch("([0-9]{1,18})(?:-([0-9]{1,18}))?", part)
        if found is None:
            raise _no_list(text)
        low, high = found[1], found[2] or found[1]
        count = int(high) - int(low) + 1
        if not 0 < count <= _MOST:
            raise _no_list(text)
        numbers += [str(n).zfill(len(low)) for n in range(int(low), int(high) + 1)]
    return numbers


def _no_list(text: str) -> InputError:
    return InputError(
        f"Slurm's node list {one_line(text, 200)!r} is not like gpu[01-03,07],login1; set TF_CONFIG"
        " instead"
    )


def _tasks_per_node(text: str) -> list[int]:
    """Those of each node: "2(x3),1" are 2, 2, 2, 1."""
    counts: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"([0-9]{1,5})(?:\(x([0-9]{1,5})\))?", part)
        if found is None:
            raise InputError(
                f"SLURM_STEP_TASKS_PER_NODE is {text!r}, and not like 2(x3),1; set TF_CONFIG "
                "instead"
            )
        counts += [int(found[1])] * int(found[2] or 1)
    return counts


def _of_kubernetes(environ: Mapping[str, str]) -> Cluster:
    """A pod of an Indexed Job is called <job>-<index>, and is reached as <job>-<index>.<service>.

    https://kubernetes.io/docs/tasks/job/job-with-pod-to-pod-communication/
    """
    index, workers = _whole(environ, "JOB_COMPLETION_INDEX"), _whole(environ, "KAPPS_WORKERS")
    service, host = _value(environ, "KAPPS_SERVICE"), _value(environ, "HOSTNAME")
    job = host.removesuffix(f"-{index}")
    if not index < workers <= _MOST or job == host:
        raise InputError(
            f"this pod is {host!r} with JOB_COMPLETION_INDEX={index}, of KAPPS_WORKERS={workers}; "
            "it should be called <job>-<index>, and the Job's completions and parallelism be "
            "KAPPS_WORKERS, as in docs/kubernetes.yaml"
        )
    port = _whole(environ, "KAPPS_PORT", _KUBERNETES_PORT)
    return Cluster(tuple(f"{job}-{i}.{service}:{port}" for i in range(workers)), index)


def _value(environ: Mapping[str, str], name: str) -> str:
    if not environ.get(name):
        raise InputError(f"the environment variable {name} is not set; set it, or TF_CONFIG")
    return environ[name]


def _whole(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    if default is not None and not environ.get(name):
        return default
    text = _value(environ, name)
    if not re.fullmatch("[0-9]{1,18}", text):
        raise InputError(f"the environment variable {name} is {text!r}, and should be a number")
    return int(text)
