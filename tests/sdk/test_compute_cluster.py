"""The tasks of a job on a Dask cluster give the blocks of one process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import LocalCluster, Security
from test_compute import CIDS, JOBS, BlockFiles, files, in_this_process, job, leases, own_temporary_files  # noqa: F401

from usufruct.compute.cluster import ClusterExecutor
from usufruct.errors import BlockMismatchError, ConfigurationError, WorkerError


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, silence_logs=50
    ) as made:
        yield made


@pytest.fixture(scope="module")
def executor(cluster: LocalCluster) -> Iterator[ClusterExecutor]:
    with ClusterExecutor(cluster.scheduler_address) as made:
        yield made


@pytest.mark.parametrize("name", sorted(JOBS))
@pytest.mark.parametrize("carried", [False, True])
def test_a_cluster_gives_the_blocks_of_one_process(
    name: str,
    carried: bool,
    executor: ClusterExecutor,
    files: BlockFiles,  # noqa: F811
) -> None:
    assert executor.in_flight == 4
    assert dict(job(name, executor, files, carried=carried)) == in_this_process(name)
    assert not leases()


def test_a_block_that_a_worker_refuses_fails_the_job_with_its_typed_error(
    executor: ClusterExecutor,
    files: BlockFiles,  # noqa: F811
) -> None:
    path = files.path_of(CIDS[1, 2])
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(BlockMismatchError):
        list(job("rows", executor, files))
    assert not leases()


def test_a_cluster_beyond_this_machine_has_to_be_reached_through_tls() -> None:
    for address in (
        "tcp://192.0.2.7:8786",
        "tcp://scheduler.example:8786",
        "ws://127.0.0.1:8786",
        "192.0.2.7:8786",
    ):
        with pytest.raises(ConfigurationError, match="unprotected"):
            ClusterExecutor(address)


@pytest.mark.parametrize(
    "address",
    ["", "tls://", "tls://host", "tls://host:x", "tls://[::1:88", "tls://:8786", "tcp://127.0.0.1:99999"],
)
def test_an_address_that_is_none_is_a_typed_error(address: str) -> None:
    with pytest.raises(ConfigurationError, match="of a scheduler"):
        ClusterExecutor(address)


def test_tls_without_certificates_that_can_be_loaded_is_a_typed_error(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent.pem")
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    for security, told in (
        (None, "needs a certificate"),
        (Security(), "needs a certificate"),
        (Security(tls_ca_file=absent), "needs a certificate"),
        (Security(tls_ca_file=absent, tls_client_cert=absent), "cannot be loaded"),
        (Security(tls_ca_file=str(broken), tls_client_cert=str(broken)), "cannot be loaded"),
    ):
        with pytest.raises(ConfigurationError, match=told):
            ClusterExecutor("tls://127.0.0.1:8786", security=security)


def test_a_scheduler_that_does_not_answer_is_a_typed_error() -> None:
    with pytest.raises(WorkerError, match="no Dask scheduler"):
        ClusterExecutor("tcp://127.0.0.1:1", timeout_s=0.3)
