"""`ModelManager` against real daemons: found, started, shared, killed and come back."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from daemons import Daemon, daemon, still_running
from forgellm import Generation, ModelConfig, ModelManager, Settings
from forgellm.control.unix import UnixAddress
from forgellm.errors import ForgeLLMError, ModelNotLoaded, SupervisorUnavailable
from waiting import wait_until

pytestmark = pytest.mark.e2e

STREAMS = 8
WORDS = [" ".join(f"{stream}:{word}" for word in range(40)) for stream in range(STREAMS)]
SLOW = '[models.e]\nsource = "echo"\npreload = true\noptions = {tokens_per_s = 20.0}\n'
DEADLINE_S = 60.0


class Reader(threading.Thread):
    """Reads one answer, or the error that ended it."""

    def __init__(self, generation: Generation) -> None:
        super().__init__(daemon=True)
        self.generation = generation
        self.text = ""
        self.error: ForgeLLMError | None = None
        self.start()

    def run(self) -> None:
        try:
            for token in self.generation:
                self.text += token.text
        except ForgeLLMError as error:
            self.error = error


def texts(readers: list[Reader]) -> list[str]:
    for reader in readers:
        reader.join(DEADLINE_S)
        assert not reader.is_alive()
        assert reader.error is None
    return [reader.text for reader in readers]


def connected(folder: Path, **options: Any) -> ModelManager:
    """A client of the daemon that `daemon(folder)` runs."""
    return ModelManager(connect=f"unix://{folder}/state/control.sock", **options)


def wait_noted(folder: Path) -> None:
    """Until the journal knows what is loaded."""
    journal = folder / "state" / "control.journal.json"
    wait_until(lambda: journal.exists() and json.loads(journal.read_text())["models"])


def workers(served: Daemon) -> list[psutil.Process]:
    return served.family()


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    """Of a daemon that a client may start; stopped at the end, should it run."""
    models = {"e": ModelConfig(source="echo", options={"tokens_per_s": 20.0})}
    own = Settings(models=models, cache_dir=str(tmp_path), port=0, spare=False, shutdown_grace_s=0.0)
    yield own
    lock = UnixAddress(own.socket_path).lock_path
    if lock.exists() and psutil.pid_exists(int(lock.read_text())):
        process = psutil.Process(int(lock.read_text()))
        if "forgellm.daemon" in process.cmdline():
            family = [process, *process.children(recursive=True)]
            process.terminate()
            assert still_running(family, 20) == []


# Starting ------------------------------------------------------------------------------------------------------------

STARTER = "import sys; from forgellm import ModelManager; print(ModelManager().about().pid)"


def test_clients_that_come_at_once_start_one_daemon_and_it_outlives_them(settings, tmp_path):
    env = {**os.environ, "FORGELLM_CACHE_DIR": str(tmp_path), "FORGELLM_PORT": "0", "FORGELLM_SPARE": "false"}
    clients = [
        subprocess.Popen([sys.executable, "-c", STARTER], stdout=subprocess.PIPE, env=env, start_new_session=True)
        for _ in range(4)
    ]
    pids = {int(client.communicate(timeout=DEADLINE_S)[0]) for client in clients}
    assert len(pids) == 1
    process = psutil.Process(pids.pop())
    assert process.ppid() not in {os.getpid(), *(client.pid for client in clients)}
    assert os.getsid(process.pid) == process.pid
    manager = ModelManager(settings, autostart=False)
    for _ in range(60):  # defect 5 of 0.4.7: a pipe that nobody read stopped it after 53 requests
        manager.status()
    assert manager.about().pid == process.pid
    log = UnixAddress(settings.socket_path).log_path
    wait_until(lambda: "serving on" in log.read_text("utf-8"))  # it answers its socket before it serves HTTP


def test_its_settings_are_those_of_the_client_and_all_clients_see_the_same(settings):
    manager = ModelManager(settings)
    with pytest.raises(ModelNotLoaded):
        manager.generate_text("hi")
    assert manager.load("e").loading_time_s is not None
    assert manager.load("e").already_loaded
    other = ModelManager(settings)  # defect 16: a second instance forgot what was loaded
    assert other.get_status()["loaded"]
    assert other.get_status()["model_name"] == "e"
    info = other.get_model_info()
    assert info is not None
    assert info["device"] == "echo"
    assert "e" in [model["id"] for model in other.list_models()]
    assert other.generate_text("say this") == "say this"
    assert other.unload("e").was_loaded
    assert manager.get_status()["loaded"] is False
    assert manager.get_model_info() is None


def test_stopping_ends_what_this_client_runs_and_nothing_else(settings):
    mine, yours = ModelManager(settings), ModelManager(settings)
    mine.load("e")
    stopped, going = Reader(mine.generate("e", WORDS[0])), Reader(yours.generate("e", WORDS[1]))
    wait_until(lambda: stopped.text and going.text)
    mine.stop_generation()
    assert WORDS[0].startswith(texts([stopped])[0])
    assert stopped.generation.finish_reason == "abort"
    assert texts([going]) == [WORDS[1]]


def test_where_none_may_be_started_it_says_that_none_is_there(settings):
    manager = ModelManager(settings, autostart=False)
    for verb in (manager.status, manager.catalog, manager.about, lambda: manager.load("e"), manager.unload):
        with pytest.raises(SupervisorUnavailable, match="no daemon answers"):
            verb()
    with pytest.raises(SupervisorUnavailable, match="no daemon answers"):
        manager.generate("e", "hi").result()


def test_a_daemon_that_cannot_start_is_told_with_its_own_reason(tmp_path):
    broken = Settings(cache_dir=str(tmp_path), host="0.0.0.0", port=0)  # noqa: S104
    with pytest.raises(SupervisorUnavailable, match=r"has ended .*Error: "):
        ModelManager(broken).status()


# Losing it -----------------------------------------------------------------------------------------------------------


@pytest.mark.chaos
def test_chaos_087_streams_of_a_client_go_on_with_the_next_daemon(tmp_path):
    """No word is lost, none comes twice; the next daemon has loaded the model again by itself."""
    with daemon(tmp_path, SLOW) as first:
        manager = connected(tmp_path)
        manager.load("e")
        wait_noted(tmp_path)
        readers = [Reader(manager.generate("e", words)) for words in WORDS]
        wait_until(lambda: all(len(reader.text) > 20 for reader in readers))
        family = workers(first)
        first.process.kill()
        assert still_running(family, 2.0) == []
        first.process.wait()
    with pytest.raises(SupervisorUnavailable):
        manager.status()
    with daemon(tmp_path, SLOW):
        assert texts(readers) == WORDS
        assert [reader.generation.finish_reason for reader in readers] == ["stop"] * STREAMS
        assert {reader.generation.usage.completion_tokens for reader in readers if reader.generation.usage} == {40}


@pytest.mark.chaos
def test_chaos_087_a_client_that_may_starts_the_next_daemon_itself(settings):
    manager = ModelManager(settings)
    manager.load("e")
    wait_noted(settings.socket_path.parent.parent)
    readers = [Reader(manager.generate("e", words)) for words in WORDS]
    wait_until(lambda: all(reader.text for reader in readers))
    lost = manager.about().pid
    os.kill(lost, signal.SIGKILL)
    assert texts(readers) == WORDS
    assert manager.about().pid != lost


@pytest.mark.chaos
def test_chaos_087_without_a_next_daemon_the_streams_end_when_their_time_is_over(tmp_path):
    with daemon(tmp_path, SLOW) as only:
        manager = connected(tmp_path, resume_timeout_s=0.5)
        manager.load("e")
        reader = Reader(manager.generate("e", WORDS[0]))
        wait_until(lambda: reader.text)
        only.process.kill()
        reader.join(20)  # not the 30 s it has by default
        assert isinstance(reader.error, SupervisorUnavailable)
        assert "0.5 s" in str(reader.error)


def test_a_load_that_loses_its_daemon_is_asked_of_the_next_one(tmp_path):
    toml = '[models.e]\nsource = "echo"\noptions = {load_s = 1.5}\n'
    loaded: list[Any] = []
    with daemon(tmp_path, toml) as first:
        manager = connected(tmp_path)
        loading = threading.Thread(target=lambda: loaded.append(manager.load("e")))
        loading.start()
        wait_until(lambda: manager.get_status()["is_loading"])
        first.process.kill()
        first.process.wait()
    with daemon(tmp_path, toml):
        loading.join(DEADLINE_S)
        assert [each.model for each in loaded] == ["e"]
        assert manager.get_status()["loaded"]


def test_a_daemon_that_is_stopped_is_not_started_again_by_a_stream(settings):
    """Somebody stopped it on purpose."""
    manager = ModelManager(settings, resume_timeout_s=0.5)
    manager.load("e")
    reader = Reader(manager.generate("e", WORDS[0]))
    wait_until(lambda: reader.text)
    process = psutil.Process(manager.about().pid)
    process.terminate()
    reader.join(DEADLINE_S)
    assert isinstance(reader.error, SupervisorUnavailable)
    assert still_running([process], 20) == []
    with pytest.raises(SupervisorUnavailable):
        ModelManager(settings, autostart=False).status()


@pytest.mark.model
@pytest.mark.chaos
def test_a_real_model_says_what_it_would_have_said_greedy_and_sampled(tmp_path):
    import tiny_model

    name = str(tiny_model.build(tmp_path / "tiny"))
    hows: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.0, "seed": 7},
        {"temperature": 1.0, "seed": 8},
    ]

    def ask(manager: ModelManager) -> list[Reader]:
        return [Reader(manager.generate(name, "Tell me a story.", max_tokens=400, **how)) for how in hows]

    with daemon(tmp_path, "spare = false\n") as first:
        manager = connected(tmp_path)
        manager.load(name)
        undisturbed = texts(ask(manager))
        wait_noted(tmp_path)
        readers = ask(manager)
        wait_until(lambda: all(len(reader.text) > 40 for reader in readers))
        assert all(reader.is_alive() for reader in readers)
        first.process.kill()
        first.process.wait()
    with daemon(tmp_path, "spare = false\n"):
        assert texts(readers) == undisturbed
