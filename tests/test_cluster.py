"""Who the workers are, as TF_CONFIG, Slurm and Kubernetes say it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kapps import InputError
from kapps.tools.cluster import Cluster, expand_hosts, from_environment, required, tf_config

TWO = {"worker": ["a:1", "b:2"]}

# As srun sets them for the second task of the second of three nodes; a shell of salloc has the
# first two as well.
STEP = {
    "SLURM_JOB_ID": "1000",
    "SLURM_NTASKS": "5",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_NODELIST": "gpu[09-10],login1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_NODEID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_PROCID": "4",  # of --distribution=cyclic
}

POD = {
    "JOB_COMPLETION_INDEX": "2",
    "HOSTNAME": "train-2",
    "KAPPS_WORKERS": "3",
    "KAPPS_SERVICE": "kapps",
}


def by_tf_config(cluster: object, kind: object = "worker", index: object = 0) -> Cluster | None:
    config = {"cluster": cluster, "task": {"type": kind, "index": index}}
    return from_environment({"TF_CONFIG": json.dumps(config)})


@pytest.mark.parametrize("environ", [{}, {"TF_CONFIG": ""}, {"JOB_COMPLETION_INDEX": "1"}])
def test_a_process_of_its_own_is_no_cluster(environ: dict[str, str]) -> None:
    assert from_environment(environ) is None
    with pytest.raises(InputError, match="set the environment variable TF_CONFIG"):
        required(environ)


def test_tf_config() -> None:
    assert by_tf_config(TWO, "worker", 1) == Cluster(("a:1", "b:2"), 1)
    assert by_tf_config(TWO, "worker", "1") == Cluster(("a:1", "b:2"), 1)  # TensorFlow takes it


def test_the_chief_is_first() -> None:
    cluster = {"worker": ["a:1", "b:2"], "chief": ["c:3"]}
    assert by_tf_config(cluster, "chief", 0) == Cluster(("c:3", "a:1", "b:2"), 0)
    assert by_tf_config(cluster, "worker", 1) == Cluster(("c:3", "a:1", "b:2"), 2)
    assert [Cluster(("a:1", "b:2"), i).is_chief for i in range(2)] == [True, False]


def test_tf_config_round_trip() -> None:
    cluster = Cluster(("a:1", "[::1]:2", "c:3"), 2)
    assert from_environment({"TF_CONFIG": tf_config(cluster)}) == cluster


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "Expecting property name"),
        ("[]", "[] is no object"),
        ("{}", "'cluster' is missing"),
        ('{"cluster": {"worker": ["a:1"]}}', "'task' is missing"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker"}}', "'index' is missing"),
        ('{"cluster": {"worker": ["a:1"]}, "task": "worker"}', "'worker' is no object"),
        ("[" * 100000, "recursion"),
    ],
)
def test_text_that_is_no_tf_config(text: str, why: str) -> None:
    with pytest.raises(InputError) as caught:
        from_environment({"TF_CONFIG": text})
    message = str(caught.value)
    assert message.startswith("TF_CONFIG does not describe this worker: ") and why in message
    assert message.endswith('"task": {"type": "worker", "index": 0}}')  # the example
    assert "\n" not in message and len(message) < 600


@pytest.mark.parametrize(
    ("cluster", "kind", "index", "why"),
    [
        (TWO, "worker", 2, "no task worker 2 among 2"),
        (TWO, "worker", -1, "no task worker -1"),
        (TWO, "worker", True, "no task worker True"),
        (TWO, "worker", 0.5, "no task worker 0.5"),
        (TWO, "chief", 0, "no task chief 0"),
        (TWO, [], 0, "no task [] 0"),
        (TWO | {"ps": ["c:3"]}, "worker", 0, "only chief and worker train"),
        (TWO | {"chief": ["c:3", "d:4"]}, "worker", 0, "more than one chief"),
        (TWO | {"chief": ["a:1"]}, "worker", 0, "twice"),
        ({"worker": "a:1"}, "worker", 0, "a:1 is no list of host:port"),
        ({"worker": ["a"]}, "worker", 0, "['a'] is no list of host:port"),
        ({"worker": [1]}, "worker", 0, "[1] is no list of host:port"),
    ],
)
def test_tf_config_that_does_not_fit(
    cluster: object, kind: object, index: object, why: str
) -> None:
    with pytest.raises(InputError) as caught:
        by_tf_config(cluster, kind, index)
    assert why in str(caught.value)


def test_slurm() -> None:
    """The place is that of the address, whatever number Slurm has given to the task."""
    cluster = from_environment(STEP)
    hosts = ["gpu09", "gpu09", "gpu10", "gpu10", "login1"]
    assert cluster is not None and cluster.index == 3
    assert [address.split(":")[0] for address in cluster.addresses] == hosts
    assert cluster.addresses[cluster.index].startswith("gpu10")


def test_slurm_tasks_agree_and_differ() -> None:
    places = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    clusters = [
        from_environment(STEP | {"SLURM_NODEID": str(node), "SLURM_LOCALID": str(place)})
        for node, place in places
    ]
    assert [cluster.index for cluster in clusters if cluster] == [0, 1, 2, 3, 4]
    assert len({cluster.addresses for cluster in clusters if cluster}) == 1
    assert clusters[0] is not None and len(set(clusters[0].addresses)) == 5


def test_slurm_ports_of_neighbours_differ() -> None:
    """Jobs that were started one after the other, and steps of a job, may share a node."""
    others = [STEP | {"SLURM_JOB_ID": str(1000 + i)} for i in range(5)]
    others += [STEP | {"SLURM_STEP_ID": str(i)} for i in range(1, 5)]
    addresses = [cluster.addresses for e in others if (cluster := from_environment(e))]
    flat = list(itertools.chain(*addresses))
    assert len(set(flat)) == len(flat) == 9 * 5
    ports = [int(address.split(":")[1]) for address in flat]
    assert min(ports) > 1024 and max(ports) < 32768


def test_port_that_the_user_sets() -> None:
    cluster = from_environment(STEP | {"KAPPS_PORT": "5000"})
    assert cluster is not None
    assert cluster.addresses[1:3] == ("gpu09:5001", "gpu10:5000")


def test_slurm_without_a_step_is_no_cluster() -> None:
    """A shell of salloc, the script of sbatch, and `srun` of one task in it."""
    job = {k: v for k, v in STEP.items() if "_STEP_" not in k}
    one = job | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NODELIST": "gpu09"}
    for environ in (job, one):
        assert from_environment(environ) is None
        with pytest.raises(InputError, match="start it with srun"):
            required(environ)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("SLURM_STEP_NODELIST", "gpu[09-10]", "do not fit together: 2 nodes"),
        ("SLURM_STEP_TASKS_PER_NODE", "2(x3)", "do not fit together"),
        ("SLURM_STEP_TASKS_PER_NODE", "two", "SLURM_STEP_TASKS_PER_NODE is 'two'"),
        ("SLURM_NODEID", "3", "this is task 1 of node 3"),
        ("SLURM_LOCALID", "2", "this is task 2 of node 1"),
        ("SLURM_LOCALID", "x", "SLURM_LOCALID is 'x'"),
        ("SLURM_LOCALID", "", "SLURM_LOCALID is not set"),
        ("KAPPS_PORT", "http", "KAPPS_PORT is 'http'"),
    ],
)
def test_slurm_that_does_not_fit(name: str, value: str, why: str) -> None:
    with pytest.raises(InputError) as caught:
        from_environment(STEP | {name: value})
    assert why in str(caught.value)


def test_tf_config_stands_above_slurm() -> None:
    config = tf_config(Cluster(("a:1", "b:2"), 1))
    assert from_environment(STEP | {"TF_CONFIG": config}) == Cluster(("a:1", "b:2"), 1)


def test_kubernetes() -> None:
    addresses = ("train-0.kapps:2222", "train-1.kapps:2222", "train-2.kapps:2222")
    assert from_environment(POD) == Cluster(addresses, 2)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("KAPPS_WORKERS", "2", "of KAPPS_WORKERS=2"),
        ("HOSTNAME", "node7", "this pod is 'node7'"),
        ("KAPPS_SERVICE", "", "KAPPS_SERVICE is not set"),
    ],
)
def test_kubernetes_that_does_not_fit(name: str, value: str, why: str) -> None:
    with pytest.raises(InputError) as caught:
        from_environment(POD | {name: value})
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("login1", ["login1"]),
        ("gpu[01-03,07],login1", ["gpu01", "gpu02", "gpu03", "gpu07", "login1"]),
        ("a[8-11]", ["a8", "a9", "a10", "a11"]),
        ("a[098-101]", ["a098", "a099", "a100", "a101"]),
        ("r[1-2]n[1-2]-ib", ["r1n1-ib", "r1n2-ib", "r2n1-ib", "r2n2-ib"]),
    ],
)
def test_expand_hosts(text: str, hosts: list[str]) -> None:
    assert list(expand_hosts(text)) == hosts


@pytest.mark.parametrize(
    "text",
    [
        *("", "a,", "a[1-2", "a1-2]", "a[[1]]", "a[]", "a[2-1]", "a[x]", "a b"),
        *("a[1-999999999]", "a" + "[0-9]" * 9),
    ],
)
def test_what_is_no_list_of_hosts(text: str) -> None:
    """Nor one that would fill the memory."""
    with pytest.raises(InputError, match="Slurm's node list"):
        expand_hosts(text)


def compressed(prefix: str, numbers: Iterable[str], suffix: str) -> str:
    """Numbers of one width, as Slurm writes them: what is next to one another becomes a range."""
    ranges: list[list[str]] = []
    for number in sorted(numbers):
        if ranges and int(number) == int(ranges[-1][-1]) + 1:
            ranges[-1].append(number)
        else:
            ranges.append([number])
    inner = ",".join(r[0] if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in ranges)
    return f"{prefix}[{inner}]{suffix}"


NAMES = st.text("abz-", min_size=1, max_size=4)
GROUPS = st.lists(
    st.tuples(NAMES, st.integers(3, 5), st.sets(st.integers(0, 999), min_size=1), NAMES),
    min_size=1,
    max_size=4,
)


@given(GROUPS)
def test_expand_hosts_undoes_what_slurm_compresses(
    groups: list[tuple[str, int, set[int], str]],
) -> None:
    texts, hosts = [], []
    for prefix, width, values, suffix in groups:
        numbers = [str(value).zfill(width) for value in sorted(values)]
        texts.append(compressed(prefix, numbers, suffix))
        hosts += [prefix + number + suffix for number in numbers]
    assert list(expand_hosts(",".join(texts))) == hosts
