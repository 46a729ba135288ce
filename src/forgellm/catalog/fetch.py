"""Fetches one file over HTTP into a cache of blobs: resumed after every cut, checked, and only then under its name.

Knows no hub: a URL, headers, a size and a checksum are all it needs. Must not leave a blob that was not checked.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx2

from forgellm.catalog.pulling import File
from forgellm.errors import DiskFull, DownloadDamaged, HubTokenRequired, HubUnavailable, RepositoryNotFound

BLOCK_BYTES = 1 << 20
RESERVE_BYTES = 64 << 20  # of free disk are left alone: logs and journals go on beside a pull
DISK_CHECK_BYTES = 16 << 20  # how much may come between two looks at the disk
ATTEMPTS = 6  # without a new byte; then the hub counts as gone
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 8.0
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})

Report = Callable[[int, str], None]
"""Called with the bytes of this file that are here, and what is being done."""


class _Cut(Exception):
    """The connection broke, or the server was busy: worth another attempt."""


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Fetches into `blobs`. `left` says how many bytes the whole pull still needs, for the checks of the disk."""

    http: httpx2.Client
    headers: Mapping[str, str]
    blobs: Path
    left: Callable[[], int]
    report: Report

    def fetch(self, url: str, file: File) -> Path:
        """The blob of `file`. Raises HubUnavailable, HubTokenRequired, RepositoryNotFound, DiskFull, DownloadDamaged.

        What came before a failure stays beside it (`.incomplete`), and the next fetch goes on from there."""
        blob = self.blobs / file.etag
        if blob.exists():
            return blob
        part = part_of(blob)
        is_resumed = part.exists()
        while True:
            self._fill(url, file, part)
            found = self._checksum(part, file)
            if found == file.etag:
                part.replace(blob)
                return blob
            part.unlink()
            if not is_resumed:
                raise DownloadDamaged(
                    f"{file.name} came with the checksum {found}, but the hub says {file.etag}: what came was thrown "
                    "away; try again, and if it stays so, a proxy on the way or the repository is damaged"
                )
            is_resumed = False  # what was left from before may be at fault: once more, from its first byte

    def _fill(self, url: str, file: File, part: Path) -> None:
        """Append to `part` until it has all its bytes, over as many connections as it takes."""
        failures = 0
        while (have := size_of(part)) < file.size_bytes or not part.exists():
            if have > file.size_bytes:
                part.unlink()
                have = 0
            try:
                self._append(url, file, part, have)
            except (_Cut, httpx2.TransportError) as error:
                failures = 1 if size_of(part) > have else failures + 1
                if failures >= ATTEMPTS:
                    raise HubUnavailable(
                        f"the hub does not send {file.name} ({error or type(error).__name__}); what came is kept, and "
                        "the next pull goes on from there",
                        retry_after_s=30.0,
                    ) from error
                self.report(size_of(part), f"{file.name}: connection lost, trying again")
                time.sleep(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (failures - 1)))
        if size_of(part) > file.size_bytes:
            part.unlink()
            raise DownloadDamaged(f"{file.name} is longer than the hub says ({file.size_bytes} bytes); try again")

    def _append(self, url: str, file: File, part: Path, have: int) -> None:
        check_disk(self.blobs, self.left())
        headers = {**self.headers, "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        with self.http.stream("GET", url, headers=headers, follow_redirects=True) as response:
            _check_status(response.status_code, file)
            is_partial = response.status_code == 206
            if is_partial and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                raise _Cut("it sent another range than it was asked for")
            with part.open("ab" if is_partial else "wb") as out:  # 200: a server without ranges begins again
                self._write(response, file, out.fileno(), have if is_partial else 0)

    def _write(self, response: httpx2.Response, file: File, out: int, done: int) -> None:
        checked = done
        for block in response.iter_raw(BLOCK_BYTES):
            view = memoryview(block)
            while view:
                view = view[os.write(out, view) :]
            done += len(block)
            self.report(done, file.name)
            if done > file.size_bytes:
                return  # _fill() tells
            if done - checked >= DISK_CHECK_BYTES:
                check_disk(self.blobs, self.left())
                checked = done
        if done < file.size_bytes:
            raise _Cut(f"it ended after {done} of {file.size_bytes} bytes")

    def _checksum(self, part: Path, file: File) -> str:
        """The checksum that the etag is, of what is on the disk now: a resumed part was written by another process."""
        digest = hashlib.sha256() if file.is_lfs else hashlib.sha1(usedforsecurity=False)
        if not file.is_lfs:
            digest.update(b"blob %d\0" % file.size_bytes)  # how git names its blobs
        with part.open("rb") as source:
            while block := source.read(BLOCK_BYTES):
                digest.update(block)
                self.report(file.size_bytes, f"{file.name}: checking")
            os.fsync(source.fileno())
        return digest.hexdigest()


def part_of(blob: Path) -> Path:
    """Where a blob grows until it is whole; huggingface_hub's own name for it."""
    return blob.with_name(blob.name + ".incomplete")


def size_of(path: Path) -> int:
    """Bytes of a file, 0 if it is not there."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def check_disk(folder: Path, needed_bytes: int) -> None:
    """Raises DiskFull unless `needed_bytes`, and the reserve, fit into the file system of `folder`."""
    free = shutil.disk_usage(folder).free
    if needed_bytes + RESERVE_BYTES > free:
        raise DiskFull(
            f"{needed_bytes / 1e6:.0f} MB are still to come and {RESERVE_BYTES / 1e6:.0f} MB are to stay free, but "
            f"{folder} has {free / 1e6:.0f} MB: make room there, or move the cache with HF_HUB_CACHE",
            retry_after_s=60.0,
        )


def _check_status(status: int, file: File) -> None:
    if status in {200, 206}:
        return
    if status in {401, 403}:
        raise HubTokenRequired(
            f"the hub does not hand out {file.name} (status {status}): accept the model's conditions on its page, and "
            "set HF_TOKEN for the daemon to a token of that account"
        )
    if status in {404, 410}:
        raise RepositoryNotFound(f"the hub no longer has {file.name}; pull again")
    if status in _TRANSIENT or status == 416:
        raise _Cut(f"status {status}")
    raise HubUnavailable(f"the hub answered {status} for {file.name}", retry_after_s=30.0)
