"""What a name stands for, in which order, and which names never reach the disk."""

import os
import sys
from pathlib import Path

import msgspec
import pytest

import model_files
from forgellm.catalog import demo, resolve
from forgellm.catalog.config_file import kv_bytes_per_token
from forgellm.config import ModelConfig, Settings
from forgellm.errors import InvalidRequest, ModelInvalid, ModelNotFound
from forgellm.messages import ModelSource


def with_models(settings: Settings, **models: ModelConfig) -> Settings:
    return msgspec.structs.replace(settings, models=models)


def test_a_config_entry_wins_over_a_folder_of_the_same_name(settings: Settings, root: Path) -> None:
    model_files.llama_folder(root / "mine")
    ours = with_models(settings, mine=ModelConfig(source="echo", options={"tokens": 3}))
    assert resolve("mine", ours) == ModelSource(name="mine", kind="echo", options={"tokens": 3})


def test_an_entry_keeps_its_own_name_and_takes_the_files_of_its_source(settings: Settings, root: Path) -> None:
    folder = model_files.llama_folder(root / "llama")
    found = resolve("mine", with_models(settings, mine=ModelConfig(source="llama")))
    assert (found.name, found.kind, found.path) == ("mine", "folder", str(folder))


def test_an_entry_does_not_name_another_entry(settings: Settings) -> None:
    """One step only: entries that name each other would never end."""
    ours = with_models(settings, a=ModelConfig(source="b"), b=ModelConfig(source="a"))
    with pytest.raises(ModelNotFound):
        resolve("a", ours)


def test_engine_knobs_on_a_real_model_are_refused(settings: Settings, root: Path) -> None:
    model_files.llama_folder(root / "llama")
    with pytest.raises(ModelInvalid, match=r"models\.mine\.options"):
        resolve("mine", with_models(settings, mine=ModelConfig(source="llama", options={"tokens": 3})))


def test_echo_needs_no_entry(settings: Settings) -> None:
    assert resolve("echo", settings).engine == "echo"


def test_the_demo_model_has_no_path_before_it_is_fetched(settings: Settings) -> None:
    found = resolve("smollm2", settings)
    assert (found.kind, found.path, found.weights_bytes) == ("demo", None, demo.GGUF_BYTES)
    assert found.parameters == demo.PARAMETERS


@pytest.mark.parametrize("where", ["absolute", "home", "relative", "root", "nested"])
def test_a_folder_is_found_by_path_and_below_models_dir(
    where: str, settings: Settings, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {
        "absolute": (tmp_path / "x", str(tmp_path / "x")),
        "home": (tmp_path / "home" / "x", "~/x"),
        "relative": (tmp_path / "x", "./x"),
        "root": (root / "x", "x"),
        "nested": (root / "org" / "x", "org/x"),
    }
    folder, name = places[where]
    model_files.llama_folder(folder)
    found = resolve(name, settings)
    assert (found.kind, found.path) == ("folder", str(folder))


def test_weights_are_counted_from_the_headers(settings: Settings, root: Path) -> None:
    folder = model_files.llama_folder(root / "x")
    found = resolve("x", settings)
    assert found.weights_bytes == (folder / "model.safetensors").stat().st_size
    assert found.parameters == sum(
        rows * (columns[0] if columns else 1) for rows, *columns in model_files.llama_shapes().values()
    )


def test_quantised_weights_are_counted_unpacked(settings: Settings, root: Path) -> None:
    """4-bit: eight weights in each uint32, one scale for 32 of them."""
    folder = model_files.llama_folder(root / "x", quantization={"group_size": 32, "bits": 4})
    shapes = model_files.llama_shapes()
    packed: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            packed[name] = shape
            continue
        stem = name.removesuffix(".weight")
        packed |= {name: (shape[0], shape[1] // 8), f"{stem}.scales": (shape[0], shape[1] // 32)}
        packed |= {f"{stem}.biases": (shape[0], shape[1] // 32)}
    (folder / "model.safetensors").write_bytes(model_files.tensors(packed, "U32"))
    plain = resolve(str(model_files.llama_folder(root / "plain")), settings)
    assert resolve("x", settings).parameters == plain.parameters


def test_a_gguf_file_or_the_only_one_in_a_folder_is_found(settings: Settings, root: Path) -> None:
    content = model_files.gguf(model_files.llama_metadata(), model_files.llama_tensors())
    (root / "quants").mkdir()
    file = root / "quants" / "m.gguf"
    file.write_bytes(content)
    for name in ("quants", "quants/m.gguf", str(file)):
        found = resolve(name, settings)
        assert (found.kind, found.path, found.weights_bytes) == ("gguf", str(file), len(content))


def test_a_folder_with_two_gguf_files_asks_which(settings: Settings, root: Path) -> None:
    (root / "quants").mkdir()
    for name in ("a.gguf", "b.gguf"):
        (root / "quants" / name).write_bytes(b"GGUF")
    with pytest.raises(InvalidRequest, match=r"a\.gguf, b\.gguf"):
        resolve("quants", settings)


def test_an_unknown_name_gets_the_nearest_ones(settings: Settings, root: Path) -> None:
    model_files.llama_folder(root / "mistral-7b")
    with pytest.raises(ModelNotFound, match=r"did you mean mistral-7b\?") as caught:
        resolve("mistral-7B", settings)
    assert caught.value.field == "model_name"


def test_an_absolute_path_to_no_model_says_no_more_than_a_missing_one(settings: Settings, tmp_path: Path) -> None:
    """A client must not be able to ask which files exist."""
    (tmp_path / "secret").write_text("x")
    for name in ("secret", "missing"):
        with pytest.raises(ModelNotFound, match="there is no model"):
            resolve(str(tmp_path / name), settings)


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "/models/../etc", "..\\x", "a\0b", "a\nb", "x" * 1025, "", "   ", "\ud800", "~nobody-here/x"],
)
def test_chaos_057_a_name_that_no_model_can_have_is_refused_before_the_disk_is_touched(
    name: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the disk was touched")

    with monkeypatch.context() as patch:
        for call in ("stat", "scandir", "listdir", "open"):
            patch.setattr(os, call, refuse)
        with pytest.raises(InvalidRequest) as caught:
            resolve(name, settings)
    assert caught.value.field == "model_name"


@pytest.mark.parametrize(
    "name", ["%2e%2e/x", "\u2024\u2024/x", "\uff0e\uff0e/etc/passwd", "x" * 300, "a//b", "a/", "-rf", "./" + "y" * 400]
)
def test_057_a_name_that_only_looks_like_a_path_out_is_just_unknown(name: str, settings: Settings) -> None:
    with pytest.raises(ModelNotFound):
        resolve(name, settings)


def test_chaos_057_a_link_out_of_models_dir_is_refused(settings: Settings, root: Path, tmp_path: Path) -> None:
    (root / "link").symlink_to(model_files.llama_folder(tmp_path / "outside"))
    with pytest.raises(InvalidRequest, match="link out of"):
        resolve("link", settings)


def test_chaos_057_another_case_is_another_name(settings: Settings, root: Path) -> None:
    """Also on a file system that ignores case: one model must not run under two names."""
    model_files.llama_folder(root / "Llama")
    with pytest.raises(ModelNotFound):
        resolve("llama", settings)


def test_the_catalogue_imports_no_model_library() -> None:
    """The supervisor asks it, and must stay small; a subprocess, since pytest has imported much."""
    import subprocess

    heavy = "{'mlx', 'mlx_lm', 'transformers', 'numpy', 'tokenizers', 'huggingface_hub'}"
    script = (
        "import sys, tempfile; from forgellm.catalog import entries, resolve; from forgellm.config import Settings;"
        "s = Settings(cache_dir=tempfile.gettempdir()); resolve('smollm2', s); entries(s);"
        f"print(sorted({{m.split('.')[0] for m in sys.modules}} & {heavy}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("form", ["folder", "gguf"])
def test_the_kv_cache_of_a_token_is_keys_and_values_of_each_kv_head_in_half_precision(
    form: str, settings: Settings, root: Path
) -> None:
    config = model_files.CONFIG
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    expected = 2 * 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head_dim
    if form == "folder":
        model_files.llama_folder(root / "m")
    else:
        (root / "m.gguf").write_bytes(model_files.gguf(model_files.llama_metadata(), model_files.llama_tensors()))
    assert resolve("m" if form == "folder" else "m.gguf", settings).kv_bytes_per_token == expected


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}, 2 * 2 * 2 * 32),
        ({"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "head_dim": 16}, 2 * 2 * 2 * 4 * 16),
        ({"num_hidden_layers": 2, "num_attention_heads": 4}, 0),
        ({"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "num_key_value_heads": [1, 2]}, 0),
    ],
)
def test_a_config_without_plain_sizes_promises_nothing_of_its_kv_cache(sizes: dict[str, int], expected: int) -> None:
    assert kv_bytes_per_token(sizes) == kv_bytes_per_token({"text_config": sizes}) == expected


def test_what_an_echo_model_allocates_counts_as_its_weights(settings: Settings) -> None:
    ours = with_models(settings, mine=ModelConfig(source="echo", options={"allocate_bytes": 3000}))
    assert resolve("mine", ours).weights_bytes == 3000
