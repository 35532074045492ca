import logging
import urllib.request
from dataclasses import dataclass
from typing import Any

import pytest


@dataclass(frozen=True)
class Store:
    """A bucket of an S3-compatible server in this process, and the machine that uses it."""

    name: str
    client: Any
    endpoint: str

    def __getitem__(self, key):
        return self.client.get_object(Bucket=self.name, Key=key)["Body"].read()

    def put(self, key, body):
        self.client.put_object(Bucket=self.name, Key=key, Body=body)

    def keys(self, prefix=""):
        found = self.client.list_objects_v2(Bucket=self.name, Prefix=prefix)
        # pyarrow keeps a folder whose last object is deleted, as an object with a slash at its end.
        return [each["Key"] for each in found.get("Contents", ()) if not each["Key"].endswith("/")]

    def at(self, key):
        return f"s3://{self.name}/{key}"

    def check_credentials(self, after):
        """Check the credentials of all requests after a number of them."""
        request = urllib.request.Request(
            f"{self.endpoint}/moto-api/reset-auth", str(after).encode(), {"Content-Type": "text/plain"}
        )
        urllib.request.urlopen(request).close()


@pytest.fixture(scope="session")
def endpoint():
    for library in ("moto", "flask", "flask_cors", "boto3", "pyarrow"):
        pytest.importorskip(library, reason="an S3-compatible server needs moto[s3], flask and flask-cors")
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def move(monkeypatch, tmp_path):
    """Go on as another machine, whose cache is empty."""
    return lambda name: monkeypatch.setenv("IISAN_CACHE", str(tmp_path / name))


@pytest.fixture
def bucket(endpoint, monkeypatch, move, request):
    import boto3

    settings = {
        "ACCESS_KEY_ID": "key",
        "SECRET_ACCESS_KEY": "secret",
        "REGION": "us-east-1",
        "ENDPOINT_URL": endpoint,
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    move("here")
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    name = f"bucket-{abs(hash(request.node.nodeid))}"
    client.create_bucket(Bucket=name)
    return Store(name, client, endpoint)
