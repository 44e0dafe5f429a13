"""Object stores on 127.0.0.1 for tests: a real S3 API (moto), to read scenes from and to write stores to."""

import contextlib
import logging
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def s3_server(folder: str | Path, bucket: str) -> Iterator[str]:
    """An object store (moto) on 127.0.0.1 that holds the files of a folder.

    Parameters
    ----------
    folder : str or Path
    bucket : str

    Yields
    ------
    str
        Its endpoint.
    """
    import boto3

    access = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    with _moto() as endpoint:
        client = boto3.client("s3", endpoint_url=endpoint, **access)
        client.create_bucket(Bucket=bucket)
        for path in Path(folder).iterdir():
            client.put_object(Bucket=bucket, Key=path.name, Body=path.read_bytes())
        client.close()
        yield endpoint


@contextlib.contextmanager
def bucket_server(bucket: str = "glaciers") -> Iterator[str]:
    """A real S3 API (moto) with one empty bucket; endpoint and credentials are in the environment meanwhile.

    Yields
    ------
    str
        The bucket's URL, `s3://...`.
    """
    with _moto() as endpoint:
        settings = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "test-key",
            "AWS_SECRET_ACCESS_KEY": "planted-secret-of-the-bucket",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        before = {name: os.environ.get(name) for name in settings}
        os.environ.update(settings)
        try:
            made = urllib.request.Request(f"{endpoint}/{bucket}", method="PUT")
            with urllib.request.urlopen(made, timeout=30):
                yield f"s3://{bucket}"
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name)
                else:
                    os.environ[name] = value


@contextlib.contextmanager
def _moto() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()
