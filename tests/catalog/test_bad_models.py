"""Model folders that are broken, lie, or want to run code: each is refused by name, in under a second, and nothing
of it runs."""

import contextlib
import time
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

import model_files
from broken_models import BROKEN, config
from forgellm.catalog import resolve
from forgellm.config import Settings
from forgellm.errors import ModelError, ModelInvalid, ModelNotFound


@pytest.mark.parametrize("case", BROKEN)
def test_chaos_046_048_049_050_051_052_053_055_a_broken_model_is_refused_by_name_in_under_a_second(
    case: str, settings: Settings, root: Path, tmp_path: Path
) -> None:
    change, error, names = BROKEN[case]
    canary = tmp_path / "canary"
    change(model_files.llama_folder(root / "bad"), canary)
    start = time.perf_counter()
    with pytest.raises(ModelError) as caught:
        resolve("bad", settings)
    assert time.perf_counter() - start < 1.0
    assert type(caught.value) is error
    assert names in caught.value.message
    assert not canary.exists()


def test_auto_map_of_a_model_that_mlx_lm_has_itself_is_harmless(settings: Settings, root: Path) -> None:
    """Many sound repositories carry one; mlx-lm builds the model from its own code and never looks at it."""
    model_files.llama_folder(root / "x", auto_map={"AutoModelForCausalLM": "modeling_x.Model"})
    assert resolve("x", settings).kind == "folder"


def test_sizes_that_differ_from_layer_to_layer_are_taken(settings: Settings, root: Path) -> None:
    """gemma3n has a list of intermediate sizes, step3p5 one of rope bases."""
    model_files.llama_folder(
        root / "x", model_type="gemma3n", intermediate_size=[64, 64], rope_theta=[1e4, 1e6], text_config=None
    )
    assert resolve("x", settings).kind == "folder"


def test_chaos_056_a_model_that_was_removed_is_not_found_the_next_time(settings: Settings, root: Path) -> None:
    folder = model_files.llama_folder(root / "x")
    resolve("x", settings)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    with pytest.raises(ModelNotFound):
        resolve("x", settings)


def test_chaos_056_a_model_that_was_replaced_is_checked_again(settings: Settings, root: Path) -> None:
    file = root / "m.gguf"
    file.write_bytes(model_files.gguf(model_files.llama_metadata(), model_files.llama_tensors()))
    resolve("m.gguf", settings)
    file.write_bytes(b"GGUF")
    with pytest.raises(ModelInvalid):
        resolve("m.gguf", settings)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
keys = st.sampled_from(
    [*model_files.CONFIG, "text_config", "quantization", "quantization_config", "auto_map", "architectures", "head_dim"]
)


@hypothesis.settings(
    max_examples=150, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@given(values=st.dictionaries(keys, json_values, max_size=4))
def test_whatever_a_config_says_only_errors_of_ours_come_out(
    values: dict[str, Any], settings: Settings, root: Path
) -> None:
    folder = model_files.llama_folder(root / "x")
    config(**values)(folder, root)
    with contextlib.suppress(ModelError):
        assert resolve("x", settings).parameters > 0


def test_weights_packed_by_other_tools_are_counted_by_their_bits(settings: Settings, root: Path) -> None:
    """AWQ and GPTQ pack eight weights in an int32 called qweight, which mlx-lm unpacks."""
    folder = model_files.llama_folder(root / "x", quantization_config={"quant_method": "awq", "bits": 4})
    shapes = {}
    for name, shape in model_files.llama_shapes().items():
        is_linear = len(shape) == 2 and "embed" not in name
        shapes[name.replace("weight", "qweight") if is_linear else name] = (
            (shape[1], shape[0] // 8) if is_linear else shape
        )
    (folder / "model.safetensors").write_bytes(model_files.tensors(shapes, "U32"))
    assert resolve("x", settings).kind == "folder"


@pytest.mark.model
def test_model_types_are_renamed_as_mlx_lm_renames_them() -> None:
    """The catalogue keeps a copy of the table, since importing mlx_lm in the supervisor would cost it mlx."""
    from mlx_lm.utils import MODEL_REMAPPING

    from forgellm.catalog.config_file import ALIASES

    assert ALIASES == MODEL_REMAPPING
