"""The optimised BLAS: chosen, compiled once, and never a reason to fail."""

import subprocess
import sys
from pathlib import Path

import pytest

from forgellm.worker import blas

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere mlx brings its own fast BLAS")


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    return done.stdout.strip()


@linux_only
def test_switched_off_it_is_the_stock_blas(tmp_path: Path) -> None:
    assert blas.activate(tmp_path, enabled=False) == "stock"
    assert list(tmp_path.iterdir()) == []


@linux_only
def test_without_any_library_it_is_the_stock_blas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing wheel, a missing compiler, an unwritable folder: a worker still has to run."""

    def missing(*_: object) -> str:
        raise OSError("no such library")

    monkeypatch.setattr(blas, "_from_wheel", missing)
    monkeypatch.setattr(blas, "_from_system", missing)
    assert blas.activate(tmp_path, enabled=True) == "stock"
    assert not blas.is_fast("stock")


@linux_only
def test_a_compiler_that_fails_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas.shutil, "which", lambda _name: None)
    monkeypatch.setattr(blas.ctypes, "CDLL", lambda *_args, **_kwargs: (_ for _ in ()).throw(OSError("not loadable")))
    assert blas.activate(tmp_path, enabled=True) == "stock"
    assert list(tmp_path.rglob("*.so")) == []


@linux_only
def test_the_shim_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compile that is cut short leaves nothing that a later start would load."""

    def killed(*_args: object, **_kwargs: object) -> None:
        raise subprocess.TimeoutExpired("cc", 1)

    monkeypatch.setattr(blas.shutil, "which", lambda _name: "/usr/bin/cc")
    monkeypatch.setattr(blas.subprocess, "run", killed)
    with pytest.raises(subprocess.TimeoutExpired):
        blas._compiled_shim(tmp_path / "blas" / "shim.so")
    assert list((tmp_path / "blas").iterdir()) == []


@linux_only
@pytest.mark.model
@pytest.mark.alone
def test_mlx_computes_the_same_much_faster_with_it(tmp_path: Path) -> None:
    """The reference BLAS runs at 3 GFLOPS; anything three times as fast is not it."""
    code = f"""
from pathlib import Path
from forgellm.worker import blas
name = blas.activate(Path({str(tmp_path)!r}), enabled=ENABLED)
import time, mlx.core as mx
a = mx.random.normal((384, 384), key=mx.random.key(1)); b = mx.random.normal((384, 384), key=mx.random.key(2))
mx.eval(a @ b)
best = 9.0
for _ in range(5):
    started = time.perf_counter(); c = a @ b; mx.eval(c); best = min(best, time.perf_counter() - started)
print(name, "|", best, "|", float(c.sum().item()))
"""
    name, fast_s, fast_sum = run(code.replace("ENABLED", "True")).split("|")
    stock_name, stock_s, stock_sum = run(code.replace("ENABLED", "False")).split("|")
    assert stock_name.strip() == "stock"
    if name.strip() == "stock":
        pytest.skip("neither a C compiler for the wheel's shim nor a system OpenBLAS here")
    assert name.startswith("openblas ")
    assert float(fast_sum) == pytest.approx(float(stock_sum), rel=1e-3)
    assert 3 * float(fast_s) < float(stock_s)
