"""Weights that are damaged, or replaced under a worker, with real MLX: what the worker checks before it loads them."""

import hashlib
import os
import signal
from pathlib import Path

import pytest

from forgellm import ModelConfig, Settings, Supervisor
from forgellm.api.status import warnings
from forgellm.errors import ModelChanged, ModelInvalid
from forgellm.states import WorkerState
from forgellm.supervisor import ModelStatus
from invariants import sound_pool
from waiting import wait_until

pytestmark = [pytest.mark.model, pytest.mark.chaos]

REVISION = "0123456789abcdef0123456789abcdef01234567"


def in_the_hub(source: Path, hub: Path) -> Path:
    """Put a model into a Hugging Face cache as `org/name`; its weights are named by their sha256. Returns the blob."""
    repository = hub / "models--org--name"
    snapshot = repository / "snapshots" / REVISION
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    for file in source.iterdir():
        is_large = file.suffix == ".safetensors"
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        target = repository / "blobs" / (digest if is_large else digest[:40])
        file.rename(target)
        (snapshot / file.name).symlink_to(target)
    return (snapshot / "model.safetensors").resolve()


def test_chaos_012_047_a_worker_refuses_weights_that_are_damaged_or_not_the_ones_that_were_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tiny_model

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    blob = in_the_hub(tiny_model.build(tmp_path / "source"), tmp_path / "hub")
    plain = tiny_model.build(tmp_path / "plain")
    models = {"plain": ModelConfig(source=str(plain))}
    with sound_pool(Supervisor(Settings(models=models, cache_dir=str(tmp_path / "cache")))) as pool:

        def shown(name: str) -> ModelStatus:
            found = pool.status().model(name)
            assert found is not None
            return found

        pool.load("org/name")
        info = shown("org/name").info
        assert info is not None
        assert (info.integrity, warnings(shown("org/name"))) == ("verified", [])
        pool.unload("org/name")
        content = bytearray(blob.read_bytes())
        content[-100] ^= 1
        blob.write_bytes(content)
        with pytest.raises(ModelInvalid, match=r"sha256 .* download the model again"):
            pool.load("org/name")

        pool.load("plain")
        assert warnings(shown("plain"))[0].startswith("unverified: ")
        pid = shown("plain").workers[0].pid
        assert pid is not None
        os.truncate(plain / "model.safetensors", 1000)
        os.kill(pid, signal.SIGBUS)
        wait_until(lambda: shown("plain").state is WorkerState.FAILED)
        assert shown("plain").error_code == "model_changed"
        with pytest.raises(ModelChanged):
            pool.generate("plain", "hello").result()
