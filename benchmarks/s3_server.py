"""An S3 server on this machine, for tests and benchmarks: localbucket's, or whichever ``AWS_ENDPOINT_URL`` names."""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

BUCKET = "placerank-trial"
_STARTED = 30.0  # seconds
# It writes head and body apart, which costs 40 ms an answer where the one waits for the other's acknowledgement.
_SERVER = "import localbucket as s; s.S3Handler.disable_nagle_algorithm = True; s.main()"


@contextmanager
def s3_server() -> Iterator[str]:
    """The URL of a bucket. Its server is in the environment of this process, and of those that it starts.

    Raises:
        ModuleNotFoundError: there is neither localbucket nor a server.
    """
    if (endpoint := os.environ.get("AWS_ENDPOINT_URL")) is not None:
        _make_bucket(endpoint)
        yield f"s3://{BUCKET}"
        return
    import localbucket  # noqa: F401

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="s3-") as folder:
        command = [sys.executable, "-c", _SERVER, "--port", str(port), folder]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        settings = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_REGION": "us-east-1",
        }
        try:
            _make_bucket(settings["AWS_ENDPOINT_URL"])
            with mock.patch.dict(os.environ, settings):
                yield f"s3://{BUCKET}"
        finally:
            server.kill()
            server.wait()


def _make_bucket(endpoint: str) -> None:
    until = time.monotonic() + _STARTED
    while True:
        try:
            urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")).close()
            return
        except OSError as error:
            if getattr(error, "code", None) == 409:  # it is there
                return
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
