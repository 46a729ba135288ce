"""Whether a model's files are those that were checked, and whole: identity and sha256. Must not read what they mean.

Hashing gigabytes at each load would cost more than the load; so the verdict on a file is kept in the cache folder, for
as long as its path, size, time and inode stay.
"""

import contextlib
import hashlib
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from forgellm.errors import ModelChanged, ModelInvalid
from forgellm.messages import Integrity, ModelFile, ModelSource

_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_BLOCK = 16 << 20


def note(paths: Iterable[Path]) -> tuple[ModelFile, ...]:
    """What identifies these files now, and the sha256 of each that is a blob of the Hugging Face cache: large ones are
    named by it there. One that cannot be read is left out: whoever opens it will say so."""
    found = []
    for path in paths:
        with contextlib.suppress(OSError):
            stat, target = path.stat(), path.resolve()
            is_named = target.parent.name == "blobs" and _SHA256.fullmatch(target.name)
            sha256 = target.name if is_named else None
            found.append(ModelFile(str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino, sha256))
    return tuple(found)


def check_unchanged(source: ModelSource) -> None:
    """Raise ModelChanged if a file of the model is not the one that was checked: another model must not go on with the
    answers of this one."""
    for file in source.files:
        if note([Path(file.path)]) != (file,):
            raise ModelChanged(
                f"{file.path} was changed, replaced or removed since {source.name} was checked; load {source.name} "
                "again to serve what is there now"
            )


def verify(files: Iterable[ModelFile], cache_dir: Path, progress: Callable[[float, str], None]) -> Integrity:
    """Compare each file whose sha256 is known with it, unless that was done before.

    "unverified": of some file no sha256 is known. Raises ModelInvalid for a file that is not what its name says."""
    files = tuple(files)
    for file in files:
        if file.sha256 is not None and not _is_known_good(file, cache_dir):
            _compare(file, progress)
            _remember(file, cache_dir)
    return foresee(files)


def foresee(files: Iterable[ModelFile]) -> Integrity:
    """What verify() will say, if it does not refuse the files. Reads nothing."""
    weights = [file for file in files if file.path.endswith((".safetensors", ".gguf"))]
    return "verified" if weights and all(file.sha256 for file in weights) else "unverified"


def _compare(file: ModelFile, progress: Callable[[float, str], None]) -> None:
    digest, done, name = hashlib.sha256(), 0, Path(file.path).name
    try:
        with Path(file.path).open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
                done += len(block)
                progress(0.0, f"checking the sha256 of {name}, {done / 1e6:.0f} of {file.size_bytes / 1e6:.0f} MB")
    except OSError as error:
        raise ModelInvalid(f"{file.path} cannot be read: {error.strerror}") from error
    if digest.hexdigest() != file.sha256:
        raise ModelInvalid(
            f"{file.path} has sha256 {digest.hexdigest()}, but should have {file.sha256}: the file is damaged; delete "
            "it and download the model again"
        )


def _verdict(file: ModelFile, cache_dir: Path) -> Path:
    return (
        cache_dir.expanduser() / "checksums" / hashlib.sha256(file.path.encode("utf-8", "surrogateescape")).hexdigest()
    )


def _line(file: ModelFile) -> str:
    return f"{file.sha256} {file.size_bytes} {file.mtime_ns} {file.inode}"


def _is_known_good(file: ModelFile, cache_dir: Path) -> bool:
    try:
        return _verdict(file, cache_dir).read_text("ascii") == _line(file)
    except (OSError, UnicodeDecodeError):
        return False


def _remember(file: ModelFile, cache_dir: Path) -> None:
    """The verdict appears complete or not at all; a cache folder that cannot be written costs a check the next time."""
    target = _verdict(file, cache_dir)
    with contextlib.suppress(OSError):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=target.parent, encoding="ascii", delete=False) as part:
            part.write(_line(file))
        Path(part.name).replace(target)
