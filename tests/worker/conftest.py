"""The tiny model, and an engine that has it loaded."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Requested = dict[str, Any]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random model that has a chat template. Do not change it: copy it first."""
    import tiny_model

    return tiny_model.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model without a chat template."""
    import tiny_model

    return tiny_model.build(tmp_path_factory.mktemp("tiny-base"), chat_template=False)


@pytest.fixture(scope="session")
def load_engine() -> Iterator[Callable[..., Any]]:
    """Makes engines: `load_engine(folder, adapter_path=…, **EngineOptions)`; closes them at the end."""
    from forgellm.messages import EngineOptions, ModelSource
    from forgellm.worker.mlx_engine import MLXEngine

    made: list[MLXEngine] = []

    def load(folder: Path, *, adapter_path: str | None = None, **options: Any) -> MLXEngine:
        engine = MLXEngine()
        source = ModelSource(name="tiny", kind="folder", path=str(folder), adapter_path=adapter_path)
        engine.load(source, EngineOptions(**options), lambda _done, _stage: None)
        made.append(engine)
        return engine

    yield load
    for engine in made:
        engine.close()
