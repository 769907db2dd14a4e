"""Where data lies: the one module that knows URLs.

A setting that names a folder or a file may be ``s3://BUCKET/PATH``, ``gs://BUCKET/PATH`` or ``hdfs://HOST:PORT/PATH``,
which ``place`` makes a ``Url``, a path on which can be looked, listed and read. Whatever else a path can do, a ``Url``
refuses in one line, so nothing writes beside what was meant. There are three ways to the data behind one:

- ``open_parquet`` streams: of a big file the parts that are asked for, from where it lies;
- ``fetched`` gives a local copy, of which a machine has one: for what is small, or read again and again;
- ``put_folder`` puts a folder that was made on this disk, its manifest last. Nothing is renamed there: whoever reads
  takes a folder for whole by its manifest, which is gone before another file changes.

What is made for a URL, and what was fetched, lies in a folder of this user's under ``TMPDIR``.
"""

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PosixPath
from typing import IO, TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

from .leftovers import remove_leftovers, unfinished

if TYPE_CHECKING:
    import pyarrow.fs as fs
    import pyarrow.parquet as pq

T = TypeVar("T")

SCHEMES = ("s3", "gs", "hdfs")
_MARK = ".unfinished"  # at a URL: files are being put there; holds who does it
_AT_ONCE = 8  # files
_WEEK = 7 * 24 * 3600  # seconds that a fetched copy is kept after its last use
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the machine's role",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or the machine's service account",
    "hdfs": "the Kerberos ticket, or HADOOP_USER_NAME",
}
_SERVER = {
    "s3": "AWS_ENDPOINT_URL (where it is not Amazon's) and AWS_REGION",
    "gs": "the network",
    "hdfs": "host and port, JAVA_HOME, HADOOP_HOME and CLASSPATH",
}
_held: dict[Path, IO[str]] = {}  # locks of the copies that this process uses


class UrlError(OSError):
    """What lies behind a URL can't be read or written; one line that says what was got and what to do."""


class UrlNotFound(UrlError, FileNotFoundError):
    """There is nothing behind a URL."""


class Url(PosixPath):
    """A folder or file behind a URL. Made by ``place``; its text is the URL.

    What is looked up is looked up anew each time: a request each.
    """

    def __str__(self) -> str:
        parts = self.parts
        if parts and parts[0][:-1] in SCHEMES:
            return f"{parts[0]}//{'/'.join(parts[1:])}"
        return super().__str__()  # relative to one

    def __fspath__(self) -> str:
        raise UrlError(f"{self} is not on this disk, and this can only be done there; give a local path")

    def absolute(self) -> "Url":
        return self

    def resolve(self, strict: bool = False) -> "Url":
        return self

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        return self._kind() != "NotFound"

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return self._kind() == "File"

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return self._kind() == "Directory"

    def iterdir(self) -> Iterator["Url"]:  # type: ignore[override]
        return iter([self / name for name in sorted({name.split("/")[0] for name, _, _ in _listed(self, deep=False)})])

    def read_bytes(self) -> bytes:
        system, name = where(self)
        with told(self), system.open_input_stream(name) as stream:
            content: bytes = stream.read()
        return content

    def read_text(self, encoding: str | None = None, errors: str | None = None, newline: str | None = None) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def _kind(self) -> str:
        system, name = where(self)
        with told(self):
            return str(system.get_file_info(name).type.name)


def place(value: str | Path) -> Path:
    """A setting's path: a ``Url`` where it is a URL, else a local path. ``file://`` is one.

    Args:
        value: as it was given. Of a ``Path`` that a URL went through the slashes are mended.

    Raises:
        ValueError: another scheme, or no bucket or host.
    """
    if isinstance(value, Url):
        return value
    text = str(value)
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):(/+)(.*)", text)
    if found is None or (found[1] not in (*SCHEMES, "file") and len(found[2]) == 1):
        return Path(value)
    scheme, slashes, rest = found.groups()
    if scheme == "file":
        if len(slashes) == 2:
            raise ValueError(f"{text}: got a host, expected file:///PATH, or the path alone")
        return Path("/" + unquote(rest))
    if scheme not in SCHEMES:
        raise ValueError(
            f"{text}: got the scheme {scheme}, expected {', '.join(SCHEMES)} or file, or a local path; copy it to one"
        )
    if scheme == "hdfs" and isinstance(value, Path):
        raise ValueError(f"{text}: a Path loses the slashes of a URL; give it as text")
    if scheme == "hdfs" and len(slashes) > 2:
        rest = f"default/{rest}"  # of Hadoop's own configuration
    if not rest.strip("/"):
        raise ValueError(f"{text}: expected {scheme}://{'HOST:PORT' if scheme == 'hdfs' else 'BUCKET'}/PATH")
    return Url(f"{scheme}:/{rest}")


def where(url: Url) -> "tuple[fs.FileSystem, str]":
    """Arrow's file system of a URL, of which a process has one, and the path in it."""
    scheme, host, *rest = url.parts
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    with told(url):
        system = _system(scheme[:-1], host, endpoint)
    return system, "/" + "/".join(rest) if scheme == "hdfs:" else "/".join((host, *rest))


@cache
def _system(scheme: str, host: str, endpoint: str | None) -> "fs.FileSystem":
    import pyarrow.fs as fs

    try:
        if scheme == "s3":
            region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
            if region is None and endpoint is None:
                region = fs.resolve_s3_region(host)
            return fs.S3FileSystem(endpoint_override=endpoint, region=region, connect_timeout=10)
        options = "?retry_limit_seconds=20" if scheme == "gs" else ""  # of 15 minutes
        return fs.FileSystem.from_uri(f"{scheme}://{host}/{options}")[0]
    except ImportError as error:
        raise UrlError(f"{scheme}://: this pyarrow was built without it ({error}); install another build") from error


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Within the block an error of what lies behind a URL is a ``UrlError``; those of local paths are as they were."""
    try:
        yield
    except OSError as error:
        if isinstance(error, UrlError) or not isinstance(path, Url):
            raise
        raise _told(path, error) from error


def _told(url: Url, error: OSError) -> UrlError:
    scheme, text = url.parts[0][:-1], str(error).strip().splitlines()[0][:300]
    cases = (
        (r"space left", "set TMPDIR to a larger folder"),
        (r"NO_SUCH_BUCKET|NoSuchBucket", "there is no such bucket: check the name"),
        (r"ACCESS_DENIED|\b40[13]\b|credential|authenticat|INVALID_ACCESS_KEY|SIGNATURE|anonymous|permission",
         f"it gives no access: check {_CREDENTIALS[scheme]}"),
        (r"NETWORK_CONNECTION|libjvm|connect|resolve", f"the server can't be reached: check {_SERVER[scheme]}"),
    )  # fmt: skip
    hint = next((say for what, say in cases if re.search(what, text, re.IGNORECASE)), None)
    gone = isinstance(error, FileNotFoundError) or re.search(r"NO_SUCH_KEY|not found", text, re.IGNORECASE)
    if hint is None and gone:
        return UrlNotFound(f"{url}: it is not there: check the path")
    hint = hint or "try again"
    return UrlError(f"{url}: {hint} (got: {text})")


def open_parquet(path: Path, **options: Any) -> "pq.ParquetFile":
    """A Parquet file; behind a URL only what is asked for comes over, in few requests. Use it ``with told(path)``."""
    import pyarrow.parquet as pq

    if not isinstance(path, Url):
        return pq.ParquetFile(path, **options)
    system, name = where(path)
    with told(path):
        return pq.ParquetFile(name, filesystem=system, pre_buffer=True, **options)


def sizes(folder: Path, names: Iterable[str]) -> dict[str, int | None]:
    """Bytes of a folder's files by name; None for one that is not there."""
    if isinstance(folder, Url):
        there = {name: count for name, count, _ in _listed(folder)}  # not "size": Python 3.12.0 to 3.12.3 mix them up
        return {name: there.get(name) for name in names}
    return {name: size(folder / name) for name in names}


def size(file: Path) -> int | None:
    """Bytes of a file; None where there is none."""
    if not isinstance(file, Url):
        return file.stat().st_size if file.is_file() else None
    system, name = where(file)
    with told(file):
        found = system.get_file_info(name)
    return int(found.size) if found.type.name == "File" else None


def fingerprints(path: Path) -> list[tuple[str, str]]:
    """Name and what tells the content of each file at a URL, without reading it: size, time of change, S3's ETag."""
    assert isinstance(path, Url)
    system, name = where(path)
    with told(path):
        info = system.get_file_info(name)
        if info.type.name != "File":
            return [(file, f"{size} {changed}") for file, size, changed in _listed(path)]
        with system.open_input_stream(name) as stream:
            tag = (stream.metadata() or {}).get("ETag", b"")
    return [("", f"{info.size} {info.mtime_ns} {tag!r}")]


def _listed(folder: Url, deep: bool = True) -> list[tuple[str, int, int]]:
    """Name in the folder, bytes and time of change of its files, sorted; its folders, too, where it is not ``deep``."""
    import pyarrow.fs as fs

    system, name = where(folder)
    with told(folder):
        found = system.get_file_info(fs.FileSelector(name, recursive=deep, allow_not_found=True))
    every = [(f.path.partition(name)[2].strip("/"), f.size or 0, f.mtime_ns or 0) for f in found
             if f.type.name == "File" or not deep]  # fmt: skip
    return sorted(file for file in every if file[0] and file[0] != _MARK)


def fetched(path: Path) -> Path:
    """A copy on this disk of a file or folder behind a URL, of which a machine has one; a local path as it is.

    The copy is whole or not there, and another one where the content is another. It is kept a week after its last use;
    an older content's goes when no process uses it.

    Raises:
        UrlError: it can't be read, or changed while it was.
    """
    if not isinstance(path, Url):
        return path
    files = fingerprints(path)
    content = list(files)
    if any(name == "manifest.json" for name, _ in files):
        content.append(("", hashlib.sha256((path / "manifest.json").read_bytes()).hexdigest()))
    if not files:
        raise UrlNotFound(f"{path}: it is not there: check the path")
    short = lambda value: hashlib.sha256(repr(value).encode()).hexdigest()[:16]  # noqa: E731
    folder = _own("fetched")
    entry = folder / f"{short(str(path))}-{short(content)}"
    copy = entry / path.name
    while entry not in _held or not copy.exists():
        lock = open(f"{entry}.lock", "a")  # noqa: SIM115
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not copy.exists():
            _make_room(folder, entry)
            _fetch(path, entry)
            if fingerprints(path) != files:
                shutil.rmtree(entry)
                raise UrlError(f"{path} changed while it was read; run again when nobody writes there")
        fcntl.flock(lock, fcntl.LOCK_SH)  # as long as this process lives: whoever makes room leaves it
        _held[entry] = lock
    os.utime(entry)
    return copy


def _fetch(path: Url, entry: Path) -> None:
    """Copy what is behind a URL into a new folder of that name, whole or not at all."""
    tmp = unfinished(entry, "partial")
    try:
        if files := listed(path):
            get_files(path, files, tmp / path.name)
        else:
            get_files(path.parent, [path.name], tmp)
        os.rename(tmp, entry)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def listed(folder: Path) -> list[str]:
    """Names in a folder behind a URL of all files in it and below, sorted; none where there is no such folder."""
    assert isinstance(folder, Url)
    return [name for name, _, _ in _listed(folder)]


def get_files(folder: Path, names: Iterable[str], into: Path) -> None:
    """Copy files of a folder behind a URL into a local one."""
    import pyarrow.fs as fs

    assert isinstance(folder, Url)
    system, at = where(folder)

    def get(name: str) -> None:
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with told(folder / name):
            fs.copy_files(f"{at}/{name}", str(target), system, fs.LocalFileSystem(), use_threads=False)

    _each(get, names)


def delete_files(folder: Path, names: Iterable[str]) -> None:
    """Delete files of a folder behind a URL."""
    assert isinstance(folder, Url)
    system, at = where(folder)

    def delete(name: str) -> None:
        try:
            system.delete_file(f"{at}/{name}")
        except OSError:  # Arrow then puts a mark of an empty folder, which servers over a file system refuse
            if system.get_file_info(f"{at}/{name}").type.name != "NotFound":
                raise

    with told(folder):
        _each(delete, names)


def _make_room(folder: Path, entry: Path) -> None:
    """Remove copies that nobody uses: of the same URL, and those that nobody has used for a week."""
    remove_leftovers(folder)
    of_url = entry.name.split("-")[0]
    for other in folder.iterdir():
        if other == entry or not other.is_dir() or other.name.startswith("."):
            continue
        try:
            if not other.name.startswith(of_url) and time.time() - other.stat().st_mtime < _WEEK:
                continue
            with open(f"{other}.lock", "a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(other, ignore_errors=True)
        except OSError:  # in use, or somebody else removes it
            continue


def _each(call: Callable[[T], None], things: Iterable[T]) -> None:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(call, things):
            pass


def _own(name: str) -> Path:
    """This user's folder of that name under ``TMPDIR``, which others can't write to."""
    root = Path(tempfile.gettempdir(), f"placerank-{os.getuid()}")
    root.mkdir(mode=0o700, exist_ok=True)
    if root.stat().st_uid != os.getuid():
        raise OSError(f"{root} belongs to another user; set TMPDIR to a folder of your own")
    (root / name).mkdir(exist_ok=True)
    return root / name


def at_work(path: Path) -> Path:
    """Where on this disk, and beside what, that is made which is to lie at ``path``: there, where that is local."""
    if not isinstance(path, Url):
        return path
    return _own("work") / f"{hashlib.sha256(str(path).encode()).hexdigest()[:16]}-{path.name}"


def check_seen(folder: Path) -> None:
    """Raises OSError where a folder that another rank has made is not on a disk that this one sees."""
    if not folder.is_dir():
        raise OSError(
            f"{folder}, which the first rank made, is not on this machine: expected a folder that all machines see; "
            "choose another output, or, where the output is a URL, set TMPDIR to a folder on a disk that all share"
        )


def was_begun(path: Path, last: str) -> bool:
    """Whether ``path`` holds only what a ``put_folder`` that was ended left there."""
    return isinstance(path, Url) and (path / _MARK).is_file() and not (path / last).is_file()


def put_folder(new: Path, url: Url, last: str) -> None:
    """Put the files of a local folder to a URL, in place of whatever is there; one process puts at a time.

    Ended at any moment, it leaves the old folder, a new one, or one without the file ``last``, and with a mark by which
    the next one knows that it may go on (``was_begun``).

    Args:
        new: the local folder.
        url: where to; others' files there go.
        last: the file that says that the folder is whole: it goes first and comes last.
    """
    system, name = where(url)
    me = uuid.uuid4().hex
    files = {path.relative_to(new).as_posix(): path for path in new.rglob("*") if path.is_file()}
    with told(url):
        with system.open_output_stream(f"{name}/{_MARK}") as stream:
            stream.write(me.encode())
        old = listed(url)
        delete_files(url, [last] if last in old else [])
        delete_files(url, [file for file in old if file not in files and file != last])
        put_files(new, [file for file in files if file != last], url)
        there = {file: size for file, size, _ in _listed(url)}
        mine = {file: path.stat().st_size for file, path in files.items() if file != last}
        if there != mine or (url / _MARK).read_text() != me:
            raise UrlError(f"{url}: another process writes there too; let one end, then run again with --overwrite")
        put_files(new, [last], url)
        delete_files(url, [_MARK])


def put_files(folder: Path, names: Iterable[str], url: Path) -> None:
    """Put files of a local folder to a URL: each appears there whole or not at all."""
    import pyarrow.fs as fs

    assert isinstance(url, Url)
    system, at = where(url)

    def put(name: str) -> None:
        with told(url / name):
            fs.copy_files(str(folder / name), f"{at}/{name}", fs.LocalFileSystem(), system, use_threads=False)

    _each(put, names)
