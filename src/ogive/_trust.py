"""What comes from others: which addresses an item may name, what YAML may hold, and texts without their secrets.

SECURITY.md says who is trusted with what; these are the few rules that several modules share. `rasterio` reads far more
than images of scenes: archives inside archives, addresses of other services, documents that name other files. So an
address is a plain path, `file:`, `http(s):`, `s3:` or `gs:`, and a scene is opened as a GeoTIFF or JPEG 2000 only.
"""

import logging
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyproj
import pystac
import rasterio
import requests
import shapely
import yaml
import zarr

from .errors import ItemError, OgiveError, StoreError

CODECS = frozenset(
    [
        "adler32",
        "astype",
        "bitround",
        "blosc",
        "bytes",
        "bz2",
        "crc32",
        "crc32c",
        "delta",
        "endian",
        "fixedscaleoffset",
        "fletcher32",
        "gzip",
        "lz4",
        "lzma",
        "packbits",
        "quantize",
        "sharding_indexed",
        "shuffle",
        "transpose",
        "vlen-bytes",
        "vlen-utf8",
        "zlib",
        "zstd",
    ]
)
"""Zarr codecs that turn bytes into numbers or texts; others unpickle, or are whatever happens to be installed."""
WEB = ("http", "https", "s3", "gs")
"""Schemes of addresses elsewhere."""
STUMBLES = (
    TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError, RecursionError, MemoryError,
    NotImplementedError, struct.error, pystac.STACError, pystac.STACTypeError, pyproj.exceptions.ProjError,
    shapely.errors.ShapelyError,
)  # fmt: skip
"""What code raises that takes a document for what it should be."""
# Of S3, Google Cloud, CloudFront and Azure, and the usual names of keys.
_SIGNATURE = re.compile(
    r"x-(?:amz|goog)-.*|sig(?:nature)?|s[epvrt]|sk(?:oid|tid|[test]|v)|expires|policy|key-pair-id|awsaccesskeyid|"
    r"googleaccessid|(?:access_?|auth_?)?token|api_?key|(?:subscription-)?key|password",
    re.IGNORECASE,
)
_opened: set[str] = set()
"""Addresses, without queries, of the scenes that are known to be images."""
_SECRETS = (
    (re.compile(r"(\w://)[^/\s'\"@]*@"), r"\1"),  # user:password@
    (re.compile(r"((?:https?|s3|gs)://[^\s'\"<>?]*)\?[^\s'\"<>]*"), r"\1"),
    (re.compile(r"\?[\w.~%+-]+=[^\s'\"<>]*"), ""),  # libraries print the path of an address without its host
    (re.compile(r"(authorization\W+)(?:(?:basic|bearer)\s+)?[^\s'\",}]+", re.IGNORECASE), r"\1..."),
)


def without_secrets(text: str) -> str:
    """A text whose addresses have lost their queries, users and passwords, to be shown or kept.

    Examples
    --------
    >>> without_secrets("GET https://me:pw@host.org/a.tif?sig=abc failed (url: /a.tif?sig=abc)")
    'GET https://host.org/a.tif failed (url: /a.tif'
    """
    for pattern, shown in _SECRETS:
        text = pattern.sub(shown, text)
    return text


def unsigned(href: str) -> str:
    """An address without user, password and the parameters of a signature; it can be signed again.

    Examples
    --------
    >>> unsigned("https://host.org/get?id=5&X-Amz-Signature=abc&X-Amz-Expires=60")
    'https://host.org/get?id=5'
    """
    address, question, query = href.partition("?")
    if is_web(href):
        address = _SECRETS[0][0].sub(_SECRETS[0][1], address)
    kept = "&".join(part for part in query.split("&") if not _SIGNATURE.fullmatch(part.partition("=")[0]))
    return address + (question and kept and "?") + kept


def redact(record: logging.LogRecord) -> bool:
    """A filter for the loggers of libraries that print the addresses they ask."""
    record.msg, record.args = without_secrets(record.getMessage()), None
    return True


@contextmanager
def understood(what: str, kind: type[OgiveError] = ItemError) -> Iterator[None]:
    """Turn whatever a document of others makes the code stumble over into a clear error: the document is at fault.

    Examples
    --------
    >>> with understood("item 'S2A_1'"):
    ...     float("many")
    Traceback (most recent call last):
        ...
    ogive.errors.ItemError: item 'S2A_1': holds what cannot be understood (found ValueError: could not convert ...
    """
    try:
        yield
    except (OgiveError, requests.RequestException):
        raise
    except STUMBLES as error:
        if isinstance(error.__cause__, OgiveError):  # pystac puts a refusal of ours into words of its own
            raise error.__cause__ from None
        told = f"{type(error).__name__}: {error}"
        shown = without_secrets(told)
        raise kind(
            what, rule="holds what cannot be understood", value=" ".join(shown.split())[:300],
            fix="correct what is named, or leave it out",
        ) from (error if shown == told else None)  # fmt: skip


def is_web(href: str) -> bool:
    """Whether an address lies elsewhere and not on this machine.

    Examples
    --------
    >>> is_web("s3://bucket/a.tif"), is_web("a.tif"), is_web("file:///a.tif")
    (True, False, False)
    """
    return href.partition("://")[0].lower() in WEB


def local_path(href: str) -> Path:
    """The path that an address on this machine names."""
    return Path(unquote(urlsplit(href).path) if href[:5].lower() == "file:" else href)


def check_href(href: Any, what: str) -> str:
    """Refuse an address that GDAL would take for more than a file or an object.

    Raises
    ------
    ItemError
        Another scheme, a driver prefix, a `/vsi` chain, a document instead of an address, or a password in it.

    Examples
    --------
    >>> check_href("https://host.org/a.tif?sig=1", "asset")
    'https://host.org/a.tif?sig=1'
    >>> check_href("/vsizip//vsicurl/http://host.org/a.zip", "asset")
    Traceback (most recent call last):
        ...
    ogive.errors.ItemError: asset: must be a path or an address of a file ... (found '/vsizip//vsicurl/http://host.org/a.zip')...
    """
    text = href if isinstance(href, str) else ""
    scheme, colon, _ = text.partition("/")[0].partition(":")
    plain = bool(text) and not re.search(r"[\x00-\x1f<>\"]", text) and not re.match(r"/+vsi", text, re.IGNORECASE)
    if plain and is_web(text):
        try:
            address = urlsplit(text)
            plain = bool(address.hostname)
            password = "@" in address.netloc
        except ValueError:
            plain = password = False
        if password:
            raise ItemError(
                what, rule="its address must not hold a user or a password", value=without_secrets(text),
                fix="leave them out and pass sign=, or set GDAL_HTTP_USERPWD",
            )  # fmt: skip
    else:
        # A letter before the colon is a drive.
        plain = plain and (not colon or len(scheme) == 1 or scheme.lower() == "file")
    if not plain:
        raise ItemError(
            what, rule="must be a path or an address of a file (http, https, s3, gs, file)",
            value=repr(without_secrets(str(href))[:200]), fix="correct the item",
        )  # fmt: skip
    return text


def assert_image(href: str) -> None:
    """Open a scene as GeoTIFF or JPEG 2000, once in a process, so that nothing else is opened under its name.

    Whatever GDAL finds inside decides what it does, not the name: a virtual dataset called `.tif` would fetch other
    files and addresses.

    Raises
    ------
    rasterio.errors.RasterioIOError
        It is neither, or cannot be read.
    """
    url = href.partition("?")[0]
    if url not in _opened:
        with rasterio.open(href, driver="JP2OpenJPEG" if url.lower().endswith((".jp2", ".j2k")) else "GTiff"):
            _opened.add(url)


def assert_codecs(group: zarr.Group, name: str) -> None:
    """Refuse a Zarr store that would be decoded by a codec outside `CODECS`; reads metadata only.

    Raises
    ------
    StoreError
        Names the array and the codec.
    """
    for key, array in group.arrays():
        parts = array.metadata.to_dict()
        for codec in _names([parts.get("codecs"), parts.get("filters"), parts.get("compressor")]):
            if codec.removeprefix("numcodecs.") not in CODECS:
                raise StoreError(
                    f"{name}/{key}", rule=f"must be encoded by {', '.join(sorted(CODECS))}", value=codec,
                    fix="do not open this store: such a codec can run code",
                )  # fmt: skip


def _names(node: Any) -> Iterator[str]:
    """The codecs of an array, those inside of others included."""
    if isinstance(node, list | tuple):
        for part in node:
            yield from _names(part)
    elif isinstance(node, dict):
        yield str(node.get("id") or node.get("name"))
        configuration = node.get("configuration") or {}
        yield from _names([configuration.get("codecs"), configuration.get("index_codecs")])
    elif node is not None:
        yield str(node.codec_id if hasattr(node, "codec_id") else node)


def plain_yaml(text: str) -> Any:
    """YAML as data: no tags that make objects, no aliases, which multiply a few lines to more than memory holds.

    Raises
    ------
    ValueError
        Not YAML, or more than that.

    Examples
    --------
    >>> plain_yaml("a: [1, 2]")
    {'a': [1, 2]}
    """
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError("aliases (*name) are not read; write the value out")
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except RecursionError:
        raise ValueError("nested too deeply") from None
