"""Pulls through the control socket: the jobs are the daemon's, so every client sees the same ones."""

import socket
from pathlib import Path

import pytest
from control_parts import FakePool, served

from forgellm import ModelManager
from forgellm.catalog import Downloads
from forgellm.errors import InvalidRequest, JobNotFound, ModelNotFound


@pytest.mark.process
def test_the_jobs_of_a_daemon_are_those_of_all_its_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    pool = FakePool()
    pool.downloads = Downloads()  # type: ignore[attr-defined] - what this test needs and others do not
    with socket.create_server(("127.0.0.1", 0)) as silent, served(tmp_path, pool) as place:  # a hub that never answers
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        one, other = (ModelManager(connect=str(place.address)).downloads for _ in range(2))
        job = one.pull("org/name", "v1")
        assert (job.model, job.state) == ("org/name@v1", "running")
        assert other.pull("org/name@v1").id == job.id
        assert [each.id for each in other.jobs()] == [job.id]
        assert other.cancel(job.id).state == "cancelled"
        assert one.job(job.id).state == "cancelled"
        with pytest.raises(JobNotFound):
            one.job("pull-0")
        with pytest.raises(ModelNotFound):
            one.remove("org/name")
        with pytest.raises(InvalidRequest) as caught:
            one.pull("../x")
        assert caught.value.field == "model"
