"""`python -m forgellm.catalog.pull`: one pull in a process of its own, told what on stdin, telling how far on stdout.

The only code beside hub_search.py that imports huggingface_hub. Must not make a model findable before all its files
are here and checked: the ref that names its snapshot is written last.
"""

import errno
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn, TextIO

import httpx2
import msgspec

from forgellm import typed
from forgellm.catalog import hub
from forgellm.catalog.fetch import Fetcher, check_disk, part_of, size_of
from forgellm.catalog.lock import exclusive
from forgellm.catalog.pulling import Done, Failed, File, News, Order, Planned, Progress, wanted
from forgellm.errors import DiskFull, ForgeLLMError, HubTokenRequired, HubUnavailable, RepositoryNotFound, Unavailable

REPORT_S = 0.2
LOCK_TIMEOUT_S = 5.0  # of a pull that was just killed; a living one is told at once by its daemon
HUB_TIMEOUT_S = 20.0
READ_TIMEOUT_S = 30.0

Say = Callable[[News], None]


def main() -> None:
    """Read an Order from stdin, carry it out, say News; end at once when stdin ends, for then the owner is gone."""
    voice = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no News
    order = typed.decode(sys.stdin.buffer.readline(), Order)
    threading.Thread(target=_end_with_owner, name="owner", daemon=True).start()
    _say(voice, outcome(order, lambda news: _say(voice, news)))


def outcome(order: Order, say: Say) -> Done | Failed:
    """How the pull ended. Raises nothing: the process has nobody to raise it to."""
    try:
        return Done(str(pull(order, say)))
    except ForgeLLMError as error:
        return Failed(error.code, error.message)
    except Exception as error:  # noqa: BLE001 - the edge of the process: the daemon gets it as data
        return Failed(ForgeLLMError.code, f"the pull failed: {type(error).__name__}: {error}")


def pull(order: Order, say: Say) -> Path:
    """Fetch what is missing of a repository into the Hugging Face cache; its snapshot folder.

    Raises RepositoryNotFound, HubTokenRequired, HubUnavailable, DiskFull, UnsupportedFormat, DownloadDamaged."""
    commit, files = described(order)
    repository = hub.repository_folder(order.repository)
    lock = hub.lock_of(order.repository)
    with exclusive(lock, LOCK_TIMEOUT_S):
        try:
            return _pull(order, commit, files, repository, say)
        except OSError as error:  # told apart here: exclusive() has one sentence for all of them
            raise _disk_error(error) from error


def _pull(order: Order, commit: str, files: list[File], repository: Path, say: Say) -> Path:
    blobs = repository / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    here = {each.etag: _here(blobs, each) for each in files}
    total = sum(each.size_bytes for each in {each.etag: each for each in files}.values())
    say(Planned(commit, len(files), total, sum(here.values())))
    next_word = 0.0

    def left() -> int:
        return total - sum(here.values())

    def progress(etag: str, done: int, stage: str) -> None:
        nonlocal next_word
        here[etag] = done
        if time.monotonic() >= next_word:
            next_word = time.monotonic() + REPORT_S
            say(Progress(sum(here.values()), stage))

    check_disk(blobs, left())
    with httpx2.Client(timeout=httpx2.Timeout(READ_TIMEOUT_S, connect=HUB_TIMEOUT_S)) as http:
        for each in files:
            report = partial(progress, each.etag)
            Fetcher(http, _headers(), blobs, left, report).fetch(_url(order.repository, commit, each), each)
            here[each.etag] = each.size_bytes
    say(Progress(total, "linking"))
    return install(repository, order.revision, commit, files)


def install(repository: Path, revision: str, commit: str, files: list[File]) -> Path:
    """Link the blobs into a snapshot, then have the ref name it: from here on, and not before, the model is there."""
    snapshot = repository / "snapshots" / commit
    for each in files:
        link = snapshot / each.name
        link.parent.mkdir(parents=True, exist_ok=True)
        new = link.with_name(f".{link.name}.{os.getpid()}")
        new.unlink(missing_ok=True)
        new.symlink_to(os.path.relpath(repository / "blobs" / each.etag, link.parent))
        new.replace(link)
    ref = repository / "refs" / revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    new = ref.with_name(f"{ref.name}.{os.getpid()}.tmp")
    new.write_text(commit, "ascii")
    new.replace(ref)
    return snapshot


def described(order: Order) -> tuple[str, list[File]]:
    """The commit that a revision is, and which of its files to fetch. Raises as pull()."""
    from huggingface_hub import HfApi, errors  # noqa: PLC0415 - half a second; main() listens to its owner first

    try:
        info = HfApi(library_name="forgellm").model_info(
            order.repository, revision=order.revision, files_metadata=True, timeout=HUB_TIMEOUT_S
        )
    except errors.RevisionNotFoundError as error:
        raise RepositoryNotFound(f"the hub's {order.repository} has no revision {order.revision}") from error
    except (errors.RepositoryNotFoundError, errors.HfHubHTTPError) as error:
        raise _refused(order.repository, error, error.response.status_code) from error
    except (httpx2.HTTPError, OSError, ValueError) as error:  # ValueError: an answer that is no JSON
        raise HubUnavailable(
            f"the hub at {_endpoint()} does not answer ({str(error)[:200] or type(error).__name__}): check the "
            "network, HF_ENDPOINT and HF_HUB_OFFLINE",
            retry_after_s=30.0,
        ) from error
    files = [
        File(
            each.rfilename, _size(each.size), each.lfs.sha256 if each.lfs else each.blob_id or "", each.lfs is not None
        )
        for each in info.siblings or ()
    ]
    commit = info.sha or ""
    if not hub.is_commit(commit):
        raise HubUnavailable(f"the hub at {_endpoint()} names no commit of {order.repository}; is it a hub?")
    return commit, wanted(files, order.repository)


def _refused(repository: str, error: Exception, status: int) -> ForgeLLMError:
    """Nobody without the right token is told whether a private repository is there, so the one sentence says both."""
    from huggingface_hub import errors, get_token  # noqa: PLC0415 - see described()

    if isinstance(error, errors.GatedRepoError) or status in {401, 403}:
        how = "the token it has does not open it" if get_token() else "there is no token"
        return HubTokenRequired(
            f"{repository} is private, gated, or not there, and {how}: set HF_TOKEN for the daemon (or run `hf auth "
            "login` as its user), and accept the model's conditions on its page"
        )
    if isinstance(error, errors.RepositoryNotFoundError) or status == 404:
        hint = "" if get_token() else "; if it is private, set HF_TOKEN for the daemon"
        return RepositoryNotFound(f"the hub has no repository {repository}{hint}")
    return HubUnavailable(f"the hub at {_endpoint()} answered with status {status}; try again", retry_after_s=30.0)


def _disk_error(error: OSError) -> ForgeLLMError:
    where = error.filename or hub.cache_root()
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DiskFull(f"no space is left at {where}: make room there, or move the cache with HF_HUB_CACHE")
    return Unavailable(f"cannot write {where}: {error.strerror or error}")


def _here(blobs: Path, file: File) -> int:
    blob = blobs / file.etag
    return size_of(blob) if blob.exists() else min(size_of(part_of(blob)), file.size_bytes)


def _size(size: int | None) -> int:
    return -1 if size is None else size


def _url(repository: str, commit: str, file: File) -> str:
    from huggingface_hub import hf_hub_url  # noqa: PLC0415 - see described()

    return hf_hub_url(repository, file.name, revision=commit)


def _headers() -> dict[str, str]:
    from huggingface_hub import get_token  # noqa: PLC0415 - see described()

    token = get_token()
    return {"User-Agent": "forgellm", **({"Authorization": f"Bearer {token}"} if token else {})}


def _endpoint() -> str:
    from huggingface_hub.constants import ENDPOINT  # noqa: PLC0415 - see described()

    return ENDPOINT


def _say(voice: TextIO, news: News) -> None:
    voice.write(msgspec.json.encode(news).decode() + "\n")
    voice.flush()


def _end_with_owner() -> NoReturn:
    """The owner holds the other end of stdin, and never writes again: an end is its end."""
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
