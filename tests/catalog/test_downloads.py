"""Pulls from a small hub: real processes, the hub's wire format, and everything that goes wrong on the way."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import model_files
from forgellm.catalog import Downloads, Job, hub, resolve
from forgellm.catalog.downloads import ENDED
from forgellm.config import Settings
from forgellm.errors import JobNotFound, ModelInUse, ModelInvalid, ModelNotFound
from hub_server import COMMIT, Hub, hub_server
from waiting import wait_until

pytestmark = pytest.mark.process

DEADLINE_S = 30.0
MB = 1 << 20


def model_of(folder: Path, extra_bytes: int = 0) -> dict[str, bytes]:
    """The files of a model that passes every check, its weights as much larger as is asked for; and what is not
    fetched."""
    source = model_files.llama_folder(folder)
    shapes = model_files.llama_shapes()
    if extra_bytes:
        shapes |= {"model.extra": (extra_bytes // 4,)}
    weights = model_files.tensors(shapes)
    files = {each.name: each.read_bytes() for each in source.iterdir()}
    return {
        **files,
        "model.safetensors": weights,
        "chat_template.jinja": b"{{ messages }}",
        "modeling_own.py": b"raise SystemExit",
        "pytorch_model.bin": b"\x80\x04.",
        "README.md": b"# model",
    }


@pytest.fixture
def server() -> Iterator[Hub]:
    with hub_server() as found:
        yield found


@pytest.fixture
def downloads(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: None) -> Iterator[Downloads]:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    found = Downloads()
    yield found
    found.close()


def ended(downloads: Downloads, job: Job) -> Job:
    """The job once it has ended."""
    wait_until(lambda: downloads.job(job.id).state in ENDED)
    return downloads.job(job.id)


def failed(downloads: Downloads, model: str) -> Job:
    found = ended(downloads, downloads.pull(model))
    assert found.state == "failed", found
    return found


def nothing_is_there(settings: Settings, name: str = "org/name") -> bool:
    """Whether no part of `name` passes for a model."""
    try:
        resolve(name, settings)
    except (ModelNotFound, ModelInvalid):
        return hub.repositories() == {}
    return False


def test_a_pulled_model_is_whole_in_the_layout_that_huggingface_hub_reads(
    downloads: Downloads, server: Hub, settings: Settings, tmp_path: Path
) -> None:
    server.add("org/name", model_of(tmp_path / "source"))
    job = ended(downloads, downloads.pull("org/name"))
    assert (job.state, job.error, job.commit, job.done_bytes) == ("done", None, COMMIT, job.total_bytes)
    found = resolve("org/name", settings)
    assert found.path == job.path
    assert sorted(each.name for each in Path(found.path or "").iterdir()) == [
        *("chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    ]
    code = "import sys; from huggingface_hub import hf_hub_download as get; "
    code += "print(get('org/name', 'model.safetensors', local_files_only=True))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert Path(run.stdout.strip()) == Path(found.path or "") / "model.safetensors"


def test_a_file_whose_connection_is_cut_three_times_arrives_whole(
    downloads: Downloads, server: Hub, settings: Settings, tmp_path: Path
) -> None:
    files = model_of(tmp_path / "source", 20 * MB)
    server.add("org/name", files)
    server.cuts = [5 * MB, 10 * MB, 15 * MB]
    job = ended(downloads, downloads.pull("org/name"))
    assert (job.state, job.error) == ("done", None)
    ranges = [asked for path, asked, _ in server.asked if path.startswith("/cdn/")]
    assert ranges == [None, *(f"bytes={at * MB}-" for at in (5, 10, 15))]
    path = Path(resolve("org/name", settings).path or "") / "model.safetensors"
    assert path.read_bytes() == files["model.safetensors"]


def test_a_system_without_a_thread_to_give_fails_the_job_and_not_the_next(
    downloads: Downloads, server: Hub, tmp_path: Path
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    server.add("org/name", model_of(tmp_path / "source"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        job = downloads.pull("org/name")
    assert (job.state, job.error_code) == ("failed", "unavailable")
    assert downloads.cancel(job.id) == job
    assert ended(downloads, downloads.pull("org/name")).state == "done"


def test_a_wrong_checksum_is_told_and_what_came_is_thrown_away(
    downloads: Downloads, server: Hub, settings: Settings, tmp_path: Path
) -> None:
    server.add("org/name", model_of(tmp_path / "source", MB))
    server.damage = True
    job = failed(downloads, "org/name")
    assert job.error_code == "download_damaged"
    assert "model.safetensors" in (job.error or "")
    assert nothing_is_there(settings)
    assert not list(hub.repository_folder("org/name").glob("blobs/*.incomplete"))
    server.damage = False
    assert ended(downloads, downloads.pull("org/name")).state == "done"


def test_a_damaged_part_from_before_is_fetched_again_from_its_first_byte(
    downloads: Downloads, server: Hub, settings: Settings, tmp_path: Path
) -> None:
    server.add("org/name", model_of(tmp_path / "source", 2 * MB))
    server.cuts = [MB] * 100
    [sha256] = server.ids
    part = hub.repository_folder("org/name") / "blobs" / f"{sha256}.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"?" * MB)
    server.cuts = []
    assert ended(downloads, downloads.pull("org/name")).state == "done"
    assert [asked for path, asked, _ in server.asked if path.startswith("/cdn/")] == [f"bytes={MB}-", None]


def test_a_private_repository_without_a_token_names_hf_token(
    downloads: Downloads, server: Hub, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("org/name", model_of(tmp_path / "source"))
    server.tokens["org/name"] = "hf_right"
    job = failed(downloads, "org/name")
    assert job.error_code == "hub_token_required"
    assert "HF_TOKEN" in (job.error or "")
    assert nothing_is_there(settings)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert ended(downloads, downloads.pull("org/name")).state == "done"
    assert "hf_right" not in repr(downloads.jobs())


def test_a_gated_repository_says_to_accept_its_conditions(
    downloads: Downloads, server: Hub, settings: Settings, tmp_path: Path
) -> None:
    server.add("org/name", model_of(tmp_path / "source"))
    server.gated.add("org/name")
    job = failed(downloads, "org/name")
    assert job.error_code == "hub_token_required"
    assert "conditions" in (job.error or "")
    assert nothing_is_there(settings)


@pytest.mark.parametrize(
    ("name", "code"), [("org/name@other", "repository_not_found"), ("org/pickles", "unsupported_format")]
)
def test_what_the_hub_does_not_have_is_told(
    name: str, code: str, downloads: Downloads, server: Hub, tmp_path: Path
) -> None:
    server.add("org/name", model_of(tmp_path / "source"))
    server.add("org/pickles", {"config.json": b"{}", "pytorch_model.bin": b"\x80\x04."})
    assert failed(downloads, name).error_code == code


def test_no_network_is_told(downloads: Downloads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    job = failed(downloads, "org/name")
    assert job.error_code == "hub_unavailable"
    assert "127.0.0.1:9" in (job.error or "")


def test_a_cancelled_pull_leaves_no_model_and_the_next_one_goes_on_from_there(
    downloads: Downloads, server: Hub, settings: Settings, tmp_path: Path
) -> None:
    server.add("org/name", model_of(tmp_path / "source", 8 * MB))
    server.hold_at = 4 * MB
    job = downloads.pull("org/name")
    assert downloads.pull("org/name").id == job.id, "one job for one model"
    assert server.held.wait(DEADLINE_S)
    [sha256] = server.ids
    part = hub.repository_folder("org/name") / "blobs" / f"{sha256}.incomplete"
    wait_until(lambda: part.exists() and part.stat().st_size > 0)
    with pytest.raises(ModelInUse):
        downloads.remove("org/name")
    assert downloads.cancel(job.id).state == "cancelled"
    assert nothing_is_there(settings)
    server.hold_at = None
    server.go_on.set()
    assert ended(downloads, downloads.pull("org/name")).state == "done"
    [resumed] = [asked for path, asked, _ in server.asked if path.startswith("/cdn/") and asked]
    assert resumed.startswith("bytes=")
    assert 0 < int(resumed[6:-1]) <= 4 * MB


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["/bin/mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"mounting a tmpfs is not permitted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["/bin/umount", str(folder)], check=True)


def test_a_disk_without_room_is_told_before_and_during_a_pull(
    *,
    small_disk: Path,
    downloads: Downloads,
    server: Hub,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(small_disk / "hub"))
    server.add("org/large", model_of(tmp_path / "large", 120 * MB))
    job = failed(downloads, "org/large")
    assert job.error_code == "disk_full"
    assert "HF_HUB_CACHE" in (job.error or "")
    assert job.done_bytes < MB, "told before the weights were asked for"
    server.add("org/name", model_of(tmp_path / "source", 48 * MB))
    server.hold_at = 4 * MB
    running = downloads.pull("org/name")
    assert server.held.wait(DEADLINE_S)
    (small_disk / "others").write_bytes(bytes(60 * MB))
    server.go_on.set()
    job = ended(downloads, running)
    assert (job.state, job.error_code) == ("failed", "disk_full")
    assert shutil.disk_usage(small_disk).free > 0
    assert nothing_is_there(settings)
    (small_disk / "others").unlink()
    assert ended(downloads, downloads.pull("org/name")).state == "done"


def test_another_revision_is_a_model_of_its_own_name(
    downloads: Downloads, server: Hub, settings: Settings, tmp_path: Path
) -> None:
    server.add("org/name", model_of(tmp_path / "source"))
    server.revisions |= {"v1.0": "f" * 40, "f" * 40: "f" * 40}
    job = ended(downloads, downloads.pull("org/name@v1.0"))
    assert (job.state, job.model) == ("done", "org/name@v1.0")
    assert resolve("org/name@v1.0", settings).path == job.path
    with pytest.raises(ModelInvalid):
        resolve("org/name", settings)


def test_a_model_is_removed_unless_it_is_loaded(
    downloads: Downloads, server: Hub, settings: Settings, tmp_path: Path
) -> None:
    server.add("org/name", model_of(tmp_path / "source"))
    ended(downloads, downloads.pull("org/name"))
    used = Downloads(lambda folder: "fast" if folder.name == "models--org--name" else None)
    with pytest.raises(ModelInUse, match="fast"):
        used.remove("org/name")
    removed = downloads.remove("org/name")
    assert removed.freed_bytes > 0
    assert [each.name for each in hub.cache_root().iterdir()] == [".locks"]
    with pytest.raises(ModelNotFound):
        downloads.remove("org/name")


def test_five_pulls_run_four_at_a_time(downloads: Downloads, server: Hub, tmp_path: Path) -> None:
    names = [f"org/m{number}" for number in range(5)]
    for name in names:
        server.add(name, model_of(tmp_path / name, MB))
    server.hold_at = 0
    jobs = [downloads.pull(name) for name in names]
    assert [job.state for job in jobs] == ["running"] * 4 + ["waiting"]
    assert server.held.wait(DEADLINE_S)
    assert downloads.cancel(jobs[4].id).state == "cancelled", "before it began"
    server.go_on.set()
    assert {ended(downloads, job).state for job in jobs[:4]} == {"done"}


def test_an_unknown_job_is_told(downloads: Downloads) -> None:
    with pytest.raises(JobNotFound):
        downloads.job("pull-0")
