"""The files of docs/cluster: against the schemas of Kubernetes, the fields of KubeRay, bash, and the command line of tov."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import skip_without
from test_commands_in_docs import refused

FOLDER = Path(__file__).parents[1] / "docs" / "cluster"
SPEC = {
    "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "entrypoint", "entrypointNumCpus", "entrypointNumGpus",
    "entrypointResources", "jobId", "managedBy", "metadata", "rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes",
    "submissionMode", "submitterConfig", "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished",
}  # fmt: skip
"""Of a RayJob (ray-operator/apis/ray/v1/rayjob_types.go of ray-project/kuberay)."""
CLUSTER = {"autoscalerOptions", "enableInTreeAutoscaling", "headGroupSpec", "rayVersion", "suspend", "workerGroupSpecs"}
GROUP = {"groupName", "maxReplicas", "minReplicas", "numOfHosts", "rayStartParams", "replicas", "template", "suspend"}


def pods(value: Any) -> Iterator[dict[str, Any]]:
    """Every template of a pod in a document."""
    if isinstance(value, dict):
        for name, one in value.items():
            if name == "template" and "containers" in one.get("spec", {}):
                yield one["spec"]
            else:
                yield from pods(one)
    elif isinstance(value, list):
        for one in value:
            yield from pods(one)


def documents() -> list[Path]:
    return sorted(FOLDER.glob("*.yaml"))


def commands() -> list[tuple[str, str]]:
    """Every `tov` command in the files."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in documents()}
    found = [("rayjob.yaml", yaml.safe_load(texts["rayjob.yaml"])["spec"]["entrypoint"])]
    [container] = next(pods(yaml.safe_load(texts["daily.yaml"])))["containers"]
    found += [("daily.yaml", line) for line in container["args"][0].splitlines() if line.startswith("tov ")]
    script = (FOLDER / "tov.sbatch").read_text(encoding="utf-8").replace("\\\n", " ")
    found += [("tov.sbatch", part) for part in re.findall(r"-- +(tov .*)", script)]
    named = [(name, text.replace("$((4 * SLURM_JOB_NUM_NODES - 1))", "15")) for name, text in found]
    return [(name, text.removeprefix("tov ")) for name, text in named]


def test_there_are_commands_in_each_file() -> None:
    assert {name for name, _ in commands()} == {path.name for path in FOLDER.iterdir()}


@pytest.mark.parametrize(("name", "text"), commands())
def test_every_command_is_one(name: str, text: str) -> None:
    assert refused(text) == ""


def test_a_job_of_kuberay_has_its_fields() -> None:
    job = yaml.safe_load((FOLDER / "rayjob.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    assert job["spec"].keys() <= SPEC
    assert cluster.keys() <= CLUSTER
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert group.keys() <= GROUP
    [workers] = cluster["workerGroupSpecs"]
    most = int(job["spec"]["entrypoint"].split("--workers 1:")[1].split()[0])
    assert workers["maxReplicas"] == most + job["spec"]["entrypointNumGpus"]


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_kubernetes_takes_the_pods(path: Path) -> None:
    skip_without("kubernetes_validate", install="pip install kubernetes-validate")
    import kubernetes_validate

    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    of_pods = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": spec} for spec in pods(document)
    ]
    assert of_pods
    for one in [*of_pods, *([document] if document["kind"] == "CronJob" else [])]:
        kubernetes_validate.validate(one, "1.31", strict=True)


def test_bash_takes_the_script() -> None:
    if not shutil.which("bash"):
        pytest.skip("bash is not here")
    subprocess.run(["bash", "-n", str(FOLDER / "tov.sbatch")], check=True)
    lines = (FOLDER / "tov.sbatch").read_text(encoding="utf-8").splitlines()
    options = [line for line in lines if line.startswith("#SBATCH")]
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(lines.index(line) < first for line in options), "Slurm reads no option behind the first command"
