"""Pools of real worker processes on the echo engine."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from pools import StartPool

from forgellm import ModelConfig, Settings, Supervisor
from invariants import sound_pool


@pytest.fixture
def start_pool(tmp_path: Path) -> Iterator[StartPool]:
    """Start a Supervisor whose models are echo models: start_pool({a setting: its value}, a={"tokens_per_s": 50})."""
    with ExitStack() as stack:

        def start(
            _settings: dict[str, Any] | None = None, /, *, _stands_still: bool = False, **models: dict[str, Any]
        ) -> Supervisor:
            configs = {name: ModelConfig(source="echo", options=options) for name, options in models.items()}
            settings = Settings(models=configs, cache_dir=str(tmp_path), **(_settings or {}))
            return stack.enter_context(sound_pool(Supervisor(settings), stands_still=_stands_still))

        yield start
