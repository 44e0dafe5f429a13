"""Where a store and its ledger lie: a folder, or a prefix in a bucket.

A few verbs on objects are all that the ledger store needs; an object is there whole or not at all. Buckets are reached
through obstore (`s3://`, `gs://`, `az://`, and `http(s)://` for reading), which takes endpoint and credentials from the
environment, as every other program does: they never pass through ogive.
"""

import errno
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import obstore
from obstore.exceptions import AlreadyExistsError, PreconditionError
from zarr.storage import LocalStore, ObjectStore

from .errors import StoreError

CONNECTIONS = 16
"""Objects that are read from or written to a bucket at the same time."""
_RETRY: Any = {"max_retries": 6, "retry_timeout": timedelta(seconds=60)}


class UnwritableError(StoreError):
    """Nothing can be written where the store lies; no block can be, so the run stops at once."""


class Storage(Protocol):
    """A folder or a prefix, and the objects below it; keys have slashes on every system."""

    @property
    def name(self) -> str:
        """Path or URL, as users write it."""

    def beside(self, suffix: str) -> "Storage":
        """The storage whose name is longer by a suffix."""

    def exists(self) -> bool:
        """Whether anything lies there, an empty folder included."""

    def get(self, key: str) -> bytes:
        """The bytes of an object; FileNotFoundError where there is none."""

    def put(self, key: str, data: bytes) -> None:
        """Write an object, or replace it. StoreError where that cannot be done."""

    def delete(self, key: str) -> None:
        """Take an object away; one that is not there is no error."""

    def objects(self) -> list[str]:
        """All objects, sorted."""

    def clear(self) -> None:
        """Take everything away, the folder included."""

    def zarr(self) -> Any:
        """A store to read with zarr."""


class Folder:
    """Storage on a file system."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    def beside(self, suffix: str) -> "Folder":
        """The folder next to it."""
        return Folder(self.path.with_name(self.path.name + suffix))

    def exists(self) -> bool:
        """Whether the path is taken."""
        return self.path.exists()

    def get(self, key: str) -> bytes:
        """Read a file."""
        try:
            return (self.path / key).read_bytes()
        except (NotADirectoryError, IsADirectoryError):
            raise FileNotFoundError(str(self.path / key)) from None
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _unreadable(str(self.path / key), error) from error

    def put(self, key: str, data: bytes) -> None:
        """Write under another name, wait until it is on the disk, rename."""
        path = self.path / key
        draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with draft.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                draft.replace(path)
            except BaseException:
                draft.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise _unwritable(str(path), error) from error

    def delete(self, key: str) -> None:
        """Remove a file."""
        try:
            (self.path / key).unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(str(self.path / key), error) from error

    def objects(self) -> list[str]:
        """All files, with slashes."""
        return sorted(p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if not p.is_dir())

    def clear(self) -> None:
        """Remove the folder."""
        # Again where a task of another run adds or renames a file meanwhile: it learns of its end at the next block.
        for _ in range(100):
            try:
                shutil.rmtree(self.path)
            except FileNotFoundError:
                if not self.path.exists():
                    return
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise _unwritable(self.name, error) from error
            else:
                return
        raise _unwritable(self.name, OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY)))

    def zarr(self) -> Any:
        """Zarr's store of a folder."""
        return LocalStore(self.path, read_only=True)


class Bucket:
    """Storage in an object store."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            from obstore.store import from_url
        except ImportError:
            raise StoreError(self.name, rule="stores in a bucket need obstore", fix='pip install "ogive[s3]"') from None
        try:
            self.store: Any = from_url(self.url)
        except Exception as error:
            raise StoreError(self.name, rule="must be the address of a bucket", value=_first_line(error)) from None

    @property
    def name(self) -> str:
        """The URL, without a query."""
        return self.url.split("?")[0]

    def beside(self, suffix: str) -> "Bucket":
        """The prefix next to it."""
        return Bucket(self.url + suffix)

    def exists(self) -> bool:
        """Whether an object has this prefix."""
        if self.url.startswith("http"):
            return _found(self, "zarr.json")
        try:
            return any(len(chunk) for chunk in obstore.list(self.store, chunk_size=1))
        except Exception as error:
            raise _unreadable(self.name, error) from None

    def get(self, key: str) -> bytes:
        """Read an object."""
        try:
            return bytes(obstore.get(self.store, key).bytes())
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.name}/{key}") from None
        except Exception as error:
            raise _unreadable(f"{self.name}/{key}", error) from None

    def put(self, key: str, data: bytes) -> None:
        """Write an object."""
        try:
            obstore.put(self.store, key, data)
        except Exception as error:
            raise _unwritable(f"{self.name}/{key}", error) from None

    def swap(self, key: str, data: bytes, tag: str | None) -> str | None:
        """Write an object only if it is as it was read: `tag` as of `tagged` or `swap`, None where nothing lies.

        Returns
        -------
        str or None
            The new tag; None where somebody else was faster.
        """
        import obstore

        mode: Any = "create" if tag is None else {"e_tag": tag}
        try:
            return str(obstore.put(self.store, key, data, mode=mode)["e_tag"])
        except (AlreadyExistsError, PreconditionError):
            return None
        except Exception as error:
            if tag is not None and isinstance(error, FileNotFoundError):
                return None
            raise _unwritable(f"{self.name}/{key}", error) from None

    def tagged(self, key: str) -> tuple[bytes, str]:
        """An object and the tag of this version of it; FileNotFoundError where there is none."""
        try:
            got = obstore.get(self.store, key)
            return bytes(got.bytes()), str(got.meta["e_tag"])
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.name}/{key}") from None
        except Exception as error:
            raise _unreadable(f"{self.name}/{key}", error) from None

    def delete(self, key: str) -> None:
        """Remove an object."""
        try:
            obstore.delete(self.store, key)
        except FileNotFoundError:
            pass
        except Exception as error:
            raise _unwritable(f"{self.name}/{key}", error) from None

    def objects(self) -> list[str]:
        """All objects with this prefix."""
        try:
            return sorted(entry["path"] for chunk in obstore.list(self.store) for entry in chunk)
        except Exception as error:
            raise _unreadable(self.name, error) from None

    def clear(self) -> None:
        """Remove every object with this prefix."""
        for_all(self.delete, self.objects(), self)

    def zarr(self) -> Any:
        """Zarr's store of a bucket."""
        return ObjectStore(self.store, read_only=True)


def storage_of(path: Any) -> Storage:
    """The storage behind a path or URL, or behind an Icechunk repository: an open one, or a name with its suffix.

    Examples
    --------
    >>> storage_of("a/b.zarr").beside(".ledger").name.endswith("a/b.zarr.ledger")
    True
    """
    if isinstance(path, Folder | Bucket):
        return path
    text = str(path)
    if not isinstance(path, str | Path) or text.rstrip("/").endswith(".icechunk"):
        from ._icechunk import snapshot_of

        return snapshot_of(path)
    if is_url(text):
        return Bucket(text)
    return Folder(Path(text).absolute())


def is_url(path: str | Path) -> bool:
    """Whether something is an address rather than a path.

    Examples
    --------
    >>> is_url("s3://bucket/cube.zarr"), is_url("cube.zarr"), is_url("C:/cube.zarr")
    (True, False, False)
    """
    return "://" in str(path)


def for_all(do: Callable[[str], Any], keys: Iterable[str], storage: Storage) -> list[Any]:
    """Call for many objects, in order where they lie in a folder, some at a time where each takes a round trip."""
    if isinstance(storage, Folder):
        return [do(key) for key in keys]
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return list(pool.map(do, keys))


def _found(storage: Storage, key: str) -> bool:
    try:
        storage.get(key)
    except FileNotFoundError:
        return False
    return True


def _unwritable(name: str, error: Exception) -> UnwritableError:
    return UnwritableError(
        name, rule="cannot be written", value=_first_line(error),
        fix="make room or get write access, then run the same line again; what is written stays valid",
    )  # fmt: skip


def _unreadable(name: str, error: Exception) -> StoreError:
    return StoreError(name, rule="cannot be read", value=_first_line(error), fix="check address and access rights")


def _first_line(error: Exception) -> str:
    """What happened, without the queries of addresses and without what a library prints to debug itself."""
    text = getattr(error, "strerror", None) or (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"\?[^\s'\"]*", "", re.sub(r"//[^/@\s]*@", "//", text))
