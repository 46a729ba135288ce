"""Put an optimised BLAS in front of mlx's reference BLAS on a Linux CPU, before mlx is imported.

Must not import mlx or numpy, must not need an environment variable, and never raises: without it a worker still runs.

libmlx takes three functions from its BLAS: cblas_sgemm, cblas_dgemm and cblas_cgemm. The dynamic linker asks globally
loaded libraries first, so a library with these names, loaded with RTLD_GLOBAL, wins over the one in the wheel.
"""

import ctypes
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

STOCK = "stock"
WHEEL = "scipy-openblas32"
COMPILE_TIMEOUT_S = 60

# scipy's wheel prefixes every name, so that it can live beside another BLAS; three forwarders take the prefix off.
SHIM = """
#define FORWARD(name, scalar)                                                                    \\
  void scipy_cblas_##name(int, int, int, int, int, int, scalar, const void *, int, const void *, \\
                          int, scalar, void *, int);                                             \\
  void cblas_##name(int order, int ta, int tb, int m, int n, int k, scalar alpha, const void *a, \\
                    int lda, const void *b, int ldb, scalar beta, void *c, int ldc) {            \\
    scipy_cblas_##name(order, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);             \\
  }
FORWARD(sgemm, float)
FORWARD(dgemm, double)
FORWARD(cgemm, const void *)
"""


def activate(cache_dir: Path, enabled: bool) -> str:
    """Load the best BLAS there is into this process, and say which: "openblas 0.3.x (scipy-openblas32)",
    "openblas 0.3.x (system)", "accelerate" on macOS, or "stock".

    Call it before mlx is imported; afterwards it has no effect on mlx. The shim for scipy's wheel is compiled once
    into `cache_dir`/blas, which needs a C compiler.
    """
    if sys.platform == "darwin":
        return "accelerate"
    if not enabled or sys.platform != "linux":
        return STOCK
    for source in (_from_wheel, _from_system):
        try:
            return source(cache_dir)
        except (OSError, AttributeError, subprocess.SubprocessError, metadata.PackageNotFoundError):
            continue  # not there, or cannot be compiled or loaded here: the next source
    return STOCK


def is_fast(description: str) -> bool:
    """Whether `description` (of activate) names an optimised BLAS."""
    return description != STOCK


def _from_wheel(cache_dir: Path) -> str:
    version = metadata.version(WHEEL)
    spec = importlib.util.find_spec("scipy_openblas32")
    if spec is None or not spec.submodule_search_locations:
        raise OSError(f"{WHEEL} is not importable")
    library = next((Path(spec.submodule_search_locations[0]) / "lib").glob("libscipy_openblas*.so*"), None)
    if library is None:
        raise OSError(f"{WHEEL} {version} holds no library")
    openblas = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    shim = _compiled_shim(cache_dir / "blas" / f"cblas-shim-{version}-{platform.machine()}.so")
    ctypes.CDLL(str(shim), mode=ctypes.RTLD_GLOBAL)
    _limit_threads(openblas.scipy_openblas_set_num_threads)
    return f"openblas {'.'.join(version.split('.')[:3])} ({WHEEL})"


def _from_system(_cache_dir: Path) -> str:
    openblas = ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)
    openblas.openblas_get_config.restype = ctypes.c_char_p
    config = openblas.openblas_get_config().decode("ascii", "replace").split()
    _limit_threads(openblas.openblas_set_num_threads)
    return f"openblas {config[1] if len(config) > 1 else '?'} (system)"


def _limit_threads(set_num_threads: Callable[[int], None]) -> None:
    """Half of the cores that this process may use, 1 to 8, unless the user said otherwise.

    OpenBLAS would take all of the machine's, and its threads spin while they wait for each other. Measured on two
    cores, demo model: two threads gain 15 % while the machine is idle, and lose a factor of 3 as soon as a second
    worker computes.
    """
    if "OPENBLAS_NUM_THREADS" not in os.environ and "OMP_NUM_THREADS" not in os.environ:
        set_num_threads(min(8, max(1, len(os.sched_getaffinity(0)) // 2)))


def _compiled_shim(path: Path) -> Path:
    """The shim at `path`, compiled now if it is not there; appears whole or not at all."""
    if path.exists():
        return path
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise OSError("no C compiler")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        source, built = Path(scratch, "shim.c"), Path(scratch, "shim.so")
        source.write_text(SHIM, "ascii")
        subprocess.run(
            [compiler, "-O2", "-shared", "-fPIC", "-o", str(built), str(source)],
            check=True,
            capture_output=True,
            timeout=COMPILE_TIMEOUT_S,
        )
        built.replace(path)
    return path
