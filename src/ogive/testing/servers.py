"""Servers on 127.0.0.1 for tests: files with HTTP ranges, and a real STAC API. Both log requests and can fail on order.
Files can also fail by chance, as archives do, or want signed addresses. Object stores are in `buckets`.

with range_server(folder, fail_first=2) as server:   # every path answers 503 twice, then as it should
    read(server.url + "/scene/B08.tif")
assert server.statuses("/scene/B08.tif")[:3] == [503, 503, 206]
"""

import contextlib
import hashlib
import hmac
import http.client
import http.server
import json
import os
import re
import secrets
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pystac


@dataclass(frozen=True)
class Request:
    """One request as it was answered."""

    method: str
    path: str
    status: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Faults:
    """Requests that go wrong for a time.

    Whether one does depends on the seed, on what is asked for and how often it was: not on threads.

    Parameters
    ----------
    share : float
        Share of the requests that go wrong, 0 ... 1.
    kinds : tuple of str
        A status (`"503"`), `"timeout"` (no answer), `"reset"` (RST), `"short"` (half of the body, then the end).
    seed : int
    silence : float
        How long a "timeout" says nothing [s].
    latency : float
        Wait before every answer [s].
    """

    share: float = 0.0
    kinds: tuple[str, ...] = ("503", "500", "429", "timeout", "reset", "short")
    seed: int = 0
    silence: float = 1.0
    latency: float = 0.0

    def draw(self, what: str) -> str:
        """The fault of a request; "" for none.

        Examples
        --------
        >>> Faults(1, ("reset",)).draw("GET /a.tif 1"), Faults(0).draw("GET /a.tif 1")
        ('reset', '')
        """
        chance = zlib.crc32(f"{self.seed} {what}".encode()) / 2**32
        return self.kinds[int(chance / self.share * len(self.kinds))] if chance < self.share else ""


def sign(url: str, *, secret: str, life: float = 2.0) -> str:
    """A signed address that `range_server(secret=...)` accepts for a while.

    Parameters
    ----------
    url : str
    secret : str
    life : float
        How long [s].
    """
    return f"{url}?{_token(secret, time.time() + life)}"


def _token(secret: str, end: float) -> str:
    text = f"{end:.3f}"
    return f"sig={text}-{hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()}"


@dataclass
class Server:
    """A running server: its address, what it was asked, and how often which fault was made."""

    url: str
    requests: list[Request] = field(default_factory=list)
    faults: dict[str, int] = field(default_factory=dict)

    def statuses(self, path: str) -> list[int]:
        """The answers to the requests for one path, in order."""
        return [request.status for request in self.requests if request.path == path]


class _HttpServer(http.server.ThreadingHTTPServer):
    """Remembers its connections: one that a client keeps open would outlive the test."""

    daemon_threads = False

    def __init__(self, handler: type[http.server.BaseHTTPRequestHandler]) -> None:
        self.connections: set[Any] = set()
        super().__init__(("127.0.0.1", 0), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client may leave in the middle of an answer; anything else is a fault of the test itself.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def _running(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    server = _HttpServer(handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        for connection in list(server.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    """Common parts: the log, the planned failures, one way to answer."""

    protocol_version = "HTTP/1.1"
    server_log: Server
    missing: Collection[str] = ()
    fail_first = 0
    failed: dict[str, int]
    lock: threading.Lock

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr: `Server.requests` is the log."""

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """Send one complete answer and log it."""
        self.server_log.requests.append(Request(self.command, urlsplit(self.path).path, status, dict(self.headers)))
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if not headers or "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def planned_failure(self) -> int | None:
        """404 for a missing path, 503 while failures are left for this path."""
        path = urlsplit(self.path).path
        if path in self.missing:
            return 404
        with self.lock:
            self.failed[path] = self.failed.get(path, 0) + 1
            return 503 if self.failed[path] <= self.fail_first else None


def _handler(base: type[_Handler], **attributes: Any) -> type[_Handler]:
    return type("Handler", (base,), {"failed": {}, "lock": threading.Lock(), **attributes})


class _RangeHandler(_Handler):
    root: Path
    faults: Faults
    secret: str
    life: float
    fault: str

    def do_GET(self) -> None:
        """A file, whole or in part, or what goes wrong instead."""
        time.sleep(self.faults.latency)
        self.fault = self._drawn()
        if self.fault == "timeout":
            time.sleep(self.faults.silence)
        if self.fault in ("timeout", "reset"):
            # Closed at once and without a farewell: RST.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
            self.close_connection = True
        elif self.fault.isdigit():
            self.answer(int(self.fault))
        elif self.secret and self.path.startswith("/token/"):
            end = time.time() + self.life
            stamp = datetime.fromtimestamp(end, UTC).isoformat()
            self.answer(200, json.dumps({"token": _token(self.secret, end), "msft:expiry": stamp}).encode())
        elif self.secret and not self._is_signed():
            self.answer(403)
        else:
            self._file()

    do_HEAD = do_GET

    def _drawn(self) -> str:
        what = f"{self.command} {urlsplit(self.path).path} {self.headers.get('Range', '')}"
        with self.lock:
            self.failed[what] = self.failed.get(what, 0) + 1
            fault = self.faults.draw(f"{what} {self.failed[what]}")
            if fault:
                self.server_log.faults[fault] = self.server_log.faults.get(fault, 0) + 1
        return fault

    def _is_signed(self) -> bool:
        given = parse_qs(urlsplit(self.path).query).get("sig", [""])[0]
        end = given.partition("-")[0]
        return given != "" and f"sig={given}" == _token(self.secret, float(end)) and float(end) > time.time()

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """As ever, or with half of the body only."""
        if self.fault == "short" and body:
            headers = {**(headers or {}), "Content-Length": str(len(body))}
            self.close_connection = True
            body = body[: len(body) // 2]
        super().answer(status, body, headers)

    def _file(self) -> None:
        failure = self.planned_failure()
        path = (self.root / unquote(urlsplit(self.path).path).lstrip("/")).resolve()
        if failure or not path.is_file() or not path.is_relative_to(self.root):
            self.answer(failure or 404)
            return
        size = path.stat().st_size
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not wanted or not any(wanted.groups()):
            body = path.read_bytes() if self.command != "HEAD" else b""
            self.answer(200, body, {"Accept-Ranges": "bytes", "Content-Length": str(size)})
            return
        first, last = wanted.groups()
        start = int(first) if first else max(0, size - int(last))
        stop = min(int(last) + 1, size) if first and last else size
        if start >= stop:
            self.answer(416, headers={"Content-Range": f"bytes */{size}", "Content-Length": "0"})
            return
        with path.open("rb") as file:
            file.seek(start)
            body = file.read(stop - start)
        headers = {"Accept-Ranges": "bytes", "Content-Range": f"bytes {start}-{stop - 1}/{size}"}
        self.answer(206, body, headers | {"Content-Length": str(stop - start)})


@contextlib.contextmanager
def range_server(
    folder: str | Path,
    *,
    missing: Collection[str] = (),
    fail_first: int = 0,
    faults: Faults | None = None,
    secret: str = "",
    life: float = 2.0,
) -> Iterator[Server]:
    """Serve a folder over HTTP with range requests, as object stores do.

    For readers in one thread; see `remote_range_server`.

    Parameters
    ----------
    folder : str or Path
    missing : collection of str
        Paths ("/a/b.tif") that answer 404 although the file exists.
    fail_first : int
        How many requests for each path answer 503 before the first success.
    faults : Faults, optional
    secret : str
        Only addresses signed with it (`sign`) are answered, others with 403; `/token/...` hands out tokens.
    life : float
        Of such a token [s].

    Yields
    ------
    Server
        `url` without a slash at the end, `requests` as they come.
    """
    log = Server("")
    handler = _handler(
        _RangeHandler, server_log=log, root=Path(folder).resolve(), missing=frozenset(missing), fail_first=fail_first,
        faults=faults or Faults(), secret=secret, life=life,
    )  # fmt: skip
    with _running(handler) as url:
        log.url = url
        yield log


@contextlib.contextmanager
def remote_range_server(folder: str | Path, *, faults: Faults | None = None, **how: Any) -> Iterator[Server]:
    """The same in a process of its own, for readers in several threads.

    Now and then GDAL asks while rasterio holds the lock of the interpreter: a server in the same process could answer
    only after the request is given up.

    Parameters
    ----------
    folder : str or Path
    faults, how : as in `range_server`

    Yields
    ------
    Server
        `requests` and `faults` are there at the end.
    """
    said = json.dumps({"folder": str(folder), "faults": asdict(faults or Faults()), **how})
    # Run as a file: the package takes seconds to import, and the server needs nothing of it.
    with subprocess.Popen([sys.executable, __file__, said], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        log = Server(process.stdout.readline().decode().strip())
        try:
            yield log
        finally:
            requests, counts = json.loads(process.communicate()[0])
            log.requests += [Request(*request) for request in requests]
            log.faults |= counts


def _serve(said: dict[str, Any]) -> None:
    """The body of that process: until its input ends."""
    with range_server(said.pop("folder"), faults=Faults(**said.pop("faults")), **said) as log:
        sys.stdout.write(f"{log.url}\n")
        sys.stdout.flush()
        sys.stdin.read()
    sys.stdout.write(json.dumps([[[r.method, r.path, r.status] for r in log.requests], log.faults]))


class _ProxyHandler(_Handler):
    port: int

    def do_GET(self) -> None:
        """Pass the request on, unless it is to fail."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        failure = self.planned_failure()
        if failure:
            self.answer(failure)
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(self.command, self.path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            kind = response.getheader("Content-Type") or "application/json"
            self.answer(response.status, response.read(), {"Content-Type": kind})
        finally:
            connection.close()

    do_POST = do_GET

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """Send the answer with its length, which `Content-Type` alone would leave out."""
        super().answer(status, body, {**(headers or {}), "Content-Length": str(len(body))})


@contextlib.contextmanager
def stac_server(
    items: Iterable[pystac.Item], *, missing: Collection[str] = (), fail_first: int = 0, timeout: float = 60.0
) -> Iterator[Server]:
    """A real STAC API (rustac, in memory) over some items, behind a proxy that logs and fails as told.

    Parameters
    ----------
    items : iterable of pystac.Item
        With a `collection`; collections are made from them.
    missing, fail_first : as in `range_server`
    timeout : float
        Seconds to wait for the start.

    Yields
    ------
    Server

    Raises
    ------
    RuntimeError
        The server does not start; carries its output.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        features = [item.to_dict(include_self_link=False, transform_hrefs=False) for item in items]
        (folder / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
        (port,) = free_ports(1)
        log = Server("")
        faults = {"missing": frozenset(missing), "fail_first": fail_first}
        log.url = stack.enter_context(_running(_handler(_ProxyHandler, server_log=log, port=port, **faults)))
        # The server writes the proxy's address into its links, so that the next page passes it too.
        command = [_rustac(), "serve", "items.json", "--create-collections", "-a", log.url, "-b", f"127.0.0.1:{port}"]
        output = stack.enter_context((folder / "log").open("w+b"))
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        stack.callback(_stop, process)
        _wait(process, port, timeout, folder / "log")
        yield log


def _rustac() -> str:
    found = shutil.which("rustac", path=str(Path(sys.executable).parent)) or shutil.which("rustac")
    if not found:
        raise RuntimeError('rustac is not installed: pip install "ogive[search]"')
    return found


def free_ports(count: int) -> list[int]:
    """Different ports of 127.0.0.1 that nobody listens on.

    They lie below those that the system gives to connections, so that none is taken before it is used.
    """
    ports: list[int] = []
    with contextlib.ExitStack() as held:
        while len(ports) < count:
            probe, port = held.enter_context(socket.socket()), 20000 + secrets.randbelow(12000)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                ports.append(port)
    return ports


def _wait(process: "subprocess.Popen[bytes]", port: int, timeout: float, log: Path) -> None:
    end = time.monotonic() + timeout
    while time.monotonic() < end and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.05)
        finally:
            connection.close()
    raise RuntimeError(f"rustac did not start: {log.read_text()}")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
