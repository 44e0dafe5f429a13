"""The right to read: signers, and the settings of S3.

A signer is a callable, bare address -> readable address, called for every attempt to read; it may have `settings`,
options of GDAL that hold while the address is read. `catalogs/stac.yaml` names those of the known archives, so that
scenes found there can be opened by `open_cube` without another word. Nothing secret is kept but in memory.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pandas as pd
import requests

from . import catalog, options
from .errors import ParameterError

Sign = Callable[[str], str]
"""Turns a bare address into one that may be read, at read time."""
PROPERTY = "ogive:signer"
"""Of an item: the signer of the archive in which `search` found it."""
_MARGIN = 60.0
"""Seconds before its end from which a token is not used any more: a read may take that long."""
_tokens: dict[str, tuple[str, float]] = {}
_lock = threading.Lock()


@dataclass(frozen=True)
class TokenSigner:
    """Addresses of an object store with a token of the container, as Planetary Computer hands them out.

    Parameters
    ----------
    url : str
        `{url}/{account}/{container}` answers with JSON: `token`, a query, and `msft:expiry`, its end.
    host : str
        How the hosts end whose addresses are signed; others stay as they are.
    """

    url: str
    host: str

    def __call__(self, href: str) -> str:
        """The address with a token that lives a while longer."""
        parts = urlsplit(href)
        name = parts.hostname or ""
        if not name.endswith(self.host):
            return href
        address = f"{self.url}/{name.split('.')[0]}/{parts.path.split('/')[1]}"
        with _lock:
            token, end = _tokens.get(address, ("", 0.0))
            if end - _MARGIN < time.time():
                token, end = _tokens[address] = _new_token(address)
        return f"{href}{'&' if parts.query else '?'}{token}"


def _new_token(address: str) -> tuple[str, float]:
    response = requests.get(address, timeout=options.current().timeout)
    response.raise_for_status()
    try:
        answer = response.json()
        return str(answer["token"]), pd.Timestamp(answer["msft:expiry"]).timestamp()
    except (ValueError, KeyError, TypeError):
        # An endpoint in trouble answers with a page: as passing a fault as a status of 5xx. The text may hold a token.
        raise ConnectionError(f"{address} answered without token and msft:expiry") from None


@dataclass(frozen=True)
class S3Signer:
    """Buckets that are read with one's own credentials.

    Parameters
    ----------
    endpoint : str
        Address of the object store; "" = that of the environment, else AWS.
    requester_pays : bool
        Agree to pay for the transfer.
    replace : (str, str)
        How an address of the web begins, and what stands for it in S3.

    Examples
    --------
    >>> S3Signer(replace=("https://example.org/data/", "s3://bucket/"))("https://example.org/data/a.tif")
    's3://bucket/a.tif'
    """

    endpoint: str = ""
    requester_pays: bool = False
    replace: tuple[str, str] = ("", "")

    def __call__(self, href: str) -> str:
        """The address in S3."""
        web, bucket = self.replace
        return bucket + href.removeprefix(web) if web and href.startswith(web) else href

    @property
    def settings(self) -> dict[str, str]:
        """Options of GDAL."""
        return s3_settings(self.endpoint) | ({"AWS_REQUEST_PAYER": "requester"} if self.requester_pays else {})


def s3_settings(endpoint: str = "") -> dict[str, str]:
    """GDAL's options for an S3 endpoint, by default that which the environment names for all tools of AWS.

    Examples
    --------
    >>> s3_settings("http://127.0.0.1:9000")
    {'AWS_S3_ENDPOINT': '127.0.0.1:9000', 'AWS_HTTPS': 'NO', 'AWS_VIRTUAL_HOSTING': 'FALSE'}
    """
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_S3_ENDPOINT")
    endpoint = endpoint or next((os.environ[name] for name in names if os.environ.get(name)), "")
    if not endpoint:
        return {}
    scheme, _, host = endpoint.rstrip("/").rpartition("://")
    said = {"AWS_HTTPS": "NO" if scheme == "http" else "YES", "AWS_VIRTUAL_HOSTING": "FALSE"}
    return {"AWS_S3_ENDPOINT": host, **{name: os.environ.get(name, value) for name, value in said.items()}}


_KINDS: dict[str, Callable[..., Sign]] = {"token": TokenSigner, "s3": S3Signer}


def signer(name: str) -> Sign | None:
    """The signer of a name in `catalogs/stac.yaml`; None for "none".

    Raises
    ------
    ParameterError
        No such signer.

    Examples
    --------
    >>> signer("aws-requester-pays").settings["AWS_REQUEST_PAYER"], signer("none")
    ('requester', None)
    """
    known: Mapping[str, Mapping[str, Any]] = catalog.signers()
    if name == "none":
        return None
    if name not in known:
        raise ParameterError(
            "sign",
            rule=f"must be a callable or one of none, {', '.join(known)}",
            value=repr(name),
            fix="see reading.md",
        )
    parts = {key: tuple(value) if isinstance(value, list) else value for key, value in known[name].items()}
    kind = _KINDS[str(parts.pop("kind"))]
    return kind(**parts)
