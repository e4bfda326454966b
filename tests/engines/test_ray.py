"""A real Ray cluster of two nodes on this machine: the same bytes as of one process, while a worker is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rcg.core.errors import UserError
from rcg.core.parts import Share
from rcg.engines.ray_engine import RayResources, _cluster, _each
from rcg.scripts import eval as evaluate
from tests.components import get_dummy_pipeline
from tests.engines.commands import WORKS, contents, run

ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    get_dummy_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False},
    )
    cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def workers(cluster: Any) -> list[psutil.Process]:
    """Processes of this cluster that are doing parts."""
    raylets = [p.process.pid for node in cluster.list_all_nodes() for p in node.all_processes["raylet"]]
    children = [child for pid in raylets for child in psutil.Process(pid).children(recursive=True)]
    return [child for child in children if "MapWorker" in " ".join(child.cmdline())]


@pytest.mark.parametrize("work", WORKS)
def test_the_cluster_leaves_what_one_process_does(cluster: Any, model: Path, tmp_path: Path, work: str) -> None:
    run(work, model, tmp_path / "one")
    run(work, model, tmp_path / "ray", "--engine", "ray")
    assert contents(tmp_path / "ray") == contents(tmp_path / "one")


@pytest.mark.parametrize("generated", ["folder", "pipeline"])
def test_the_cluster_measures_what_one_process_does(cluster: Any, model: Path, tmp_path: Path, generated: str) -> None:
    if generated == "folder":
        run("sample", model, tmp_path / "o", "--num-images", "150")
        what = ["--generated", str(tmp_path / "o")]
    else:
        what = ["--generated", str(model), "--num-images", "150", "--num-inference-steps", "2"]
    about = [
        "--reference",
        "shapes:n=200,size=16",
        "--extractor",
        f"encoder:{model / 'encoder'}",
        "--metrics",
        "fid,kid,prc",
    ]
    about += ["--image-size", "16", "--device", "cpu", "--feature-sample", "120"]
    reports = []
    for name, more in (("one", []), ("ray", ["--engine", "ray"])):
        evaluate.main([*what, *about, *more, "--out", str(tmp_path / f"{name}.json")])
        reports.append(json.loads((tmp_path / f"{name}.json").read_text()))
    one, other = reports
    assert len(one["metrics"]) > 3
    assert one["metrics"] == other["metrics"]  # to the bit, as a worker has one thread, like these tests
    assert one["counts"] == other["counts"]
    assert one["sets"] == other["sets"]


def test_a_killed_worker_costs_nothing(cluster: Any, model: Path, tmp_path: Path) -> None:
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        while not over.is_set() and not killed:
            if list((tmp_path / "ray").glob("*.tar")):
                for process in workers(cluster)[:1]:
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
            time.sleep(0.01)

    more = ("--num-images", "40")
    thread = threading.Thread(target=kill)
    thread.start()
    try:
        run("shards", model, tmp_path / "ray", *more, "--engine", "ray")
    finally:
        over.set()
        thread.join()
    assert killed
    run("shards", model, tmp_path / "one", *more)
    assert contents(tmp_path / "ray") == contents(tmp_path / "one")


def test_a_worker_that_no_machine_has_room_for_is_warned_of(cluster: Any) -> None:
    for resources, what in ((RayResources(cpus=64), "64 CPUs"), (RayResources(gpus=2), "1 CPUs and 2 GPUs")):
        with pytest.warns(UserWarning, match=f"takes {what}, which no machine"), _cluster(resources):
            pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with _cluster(RayResources()):
            pass


def test_a_workers_refusal_is_one_sentence(
    cluster: Any, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("sample", model, tmp_path / "o")
    with pytest.raises(SystemExit):
        run("sample", model, tmp_path / "o", "--engine", "ray")
    assert "already holds images of this run; add --resume" in capsys.readouterr().err.splitlines()[-1]


def refuse(share: Share) -> int:
    if share.rank == 1:
        raise UserError("this part cannot be done.")
    return share.rank


def refusing() -> Callable[[Share], int]:
    return refuse


def test_a_part_s_refusal_is_its_own_sentence(cluster: Any) -> None:
    found: list[int] = []
    with pytest.raises(UserError, match=r"^this part cannot be done\.$"), _cluster(RayResources()):
        found.extend(_each(refusing, 3, RayResources(), lambda done, of: None))


def test_workers_may_take_all_cpus() -> None:
    """In a cluster of its own, as large as a worker."""
    script = (
        "import ray; ray.init('local', num_cpus=1, log_to_driver=False, include_dashboard=False)\n"
        "from rcg.engines.ray_engine import RayResources, _each\n"
        "from functools import partial\n"
        "from tests.engines.commands import ranks\n"
        "print('found', list(_each(ranks, 3, RayResources(cpus=1), lambda done, of: None)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert "found [0, 1, 2]" in done.stdout, done.stderr
