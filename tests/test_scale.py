"""docs/scale.md, and the files beside it that start workers on clusters."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from kapps.tools.cluster import Cluster, from_environment
from kapps.tools.watch import WORKER_FAILED

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def manifest() -> dict[str, dict[str, Any]]:
    """The objects of kubernetes.yaml by kind."""
    objects = list(yaml.safe_load_all((DOCS / "kubernetes.yaml").read_text()))
    kinds = [one["kind"] for one in objects]
    assert sorted(kinds) == ["Job", "NetworkPolicy", "PersistentVolumeClaim", "Service"]
    return dict(zip(kinds, objects, strict=True))


def test_pods_find_one_another(manifest: dict[str, dict[str, Any]]) -> None:
    """By what the manifest sets, and what Kubernetes adds to an Indexed Job."""
    name, job = manifest["Job"]["metadata"]["name"], manifest["Job"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    environ = {variable["name"]: variable["value"] for variable in container["env"]}
    workers = int(environ["KAPPS_WORKERS"])
    assert job["completions"] == job["parallelism"] == workers
    (port,) = (port["containerPort"] for port in container["ports"])
    addresses = tuple(f"{name}-{i}.{pod['subdomain']}:{port}" for i in range(workers))
    for i in range(workers):
        added = {"JOB_COMPLETION_INDEX": str(i), "HOSTNAME": f"{name}-{i}"}
        assert from_environment(environ | added) == Cluster(addresses, i)


def test_service_and_policy_are_of_the_pods(manifest: dict[str, dict[str, Any]]) -> None:
    job, service, policy = (manifest[kind] for kind in ("Job", "Service", "NetworkPolicy"))
    label = {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    assert job["spec"]["completionMode"] == "Indexed"
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"  # the word: a name for each pod
    assert service["spec"]["selector"] == label
    assert policy["spec"]["podSelector"]["matchLabels"] == label


def test_volumes(manifest: dict[str, dict[str, Any]]) -> None:
    """The run's folder lies on the volume that the pods share."""
    pod = manifest["Job"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    (workdir,) = (a for a in container["args"] if a.startswith("--workdir="))
    assert workdir.startswith(f"--workdir={mounts['runs']}/")
    assert manifest["PersistentVolumeClaim"]["metadata"]["name"] == "runs"
    assert manifest["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteMany"]


def slurm(folder: Path, code: int, restarts: int = 0) -> list[str]:
    """What the script calls where a task ends with `code`, after so many restarts."""
    bin_ = folder / "bin"
    bin_.mkdir()
    for name, end in (("srun", code), ("scontrol", 0)):
        (bin_ / name).write_text(f'#!/bin/sh\necho {name} "$@"\nexit {end}\n')
        (bin_ / name).chmod(0o755)
    done = subprocess.run(
        ["bash", DOCS / "slurm.sh"],
        env={"PATH": f"{bin_}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
        | ({"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (code, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize("code", [WORKER_FAILED, 137, 143])
def test_slurm_goes_on(tmp_path: Path, code: int) -> None:
    step, requeue = slurm(tmp_path, code)
    assert step.startswith("srun --kill-on-bad-exit=1 kapps-train --model=")
    assert " --strategy=multi_worker " in step
    assert requeue == "scontrol requeue 7"


@pytest.mark.parametrize(("code", "restarts"), [(0, 0), (1, 0), (2, 0), (143, 20)])
def test_slurm_ends(tmp_path: Path, code: int, restarts: int) -> None:
    assert len(slurm(tmp_path, code, restarts)) == 1


def test_slurm_starts_a_task_for_each_machine() -> None:
    options = dict(
        re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", (DOCS / "slurm.sh").read_text(), re.M)
    )
    assert options["ntasks-per-node"] == "1" and int(options["nodes"]) > 1
    assert options["signal"].startswith("TERM@")


def test_exit_codes_are_told() -> None:
    table = (DOCS / "scale.md").read_text().partition("## Exit codes")[2]
    codes = re.findall(r"^\| ([\d, ]+) \|", table, re.M)
    assert [int(n) for row in codes for n in row.split(", ")] == [
        *(0, 1, 2, WORKER_FAILED),
        *(129, 130, 143),
    ]


def test_links_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (DOCS / "scale.md").read_text())
    assert links and all((DOCS / link).is_file() for link in links)
