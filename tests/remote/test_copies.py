"""Copies of addresses: what is fetched, what is uploaded in which order, and what a kill leaves."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from iisan.errors import MissingExtraError, RemoteError
from iisan.files import write_json
from iisan.remote import copies, opening, system
from iisan.remote.address import Address, cache_folder
from iisan.remote.opening import addressed, local, output


@pytest.fixture
def sent(monkeypatch):
    """Names that are fetched or uploaded, in order."""
    names = []
    for action in ("_fetch", "_send_open"):
        original = getattr(copies.Copy, action)

        def noted(self, name, *rest, original=original):
            names.append(name)
            return original(self, name, *rest)

        monkeypatch.setattr(copies.Copy, action, noted)
    return names


def write(folder, **files):
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_json", ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_fetched_once_and_then_only_what_changed(bucket, sent):
    bucket.put("data/a", b"one")
    bucket.put("data/deep/b", b"")
    folder = local(bucket.at("data/"))
    assert folder == cache_folder() / "s3" / bucket.name / "data"
    assert contents(folder) == {"a": "one", "deep/b": ""}
    assert sorted(sent) == ["a", "deep/b"]
    local(bucket.at("data"))
    assert len(sent) == 2
    bucket.put("data/a", b"other")
    bucket.client.delete_object(Bucket=bucket.name, Key="data/deep/b")
    assert contents(local(bucket.at("data"))) == {"a": "other"}
    assert sent[2:] == ["a"]
    # A whole bucket, and a single object.
    assert contents(local(bucket.at("")))["data/a"] == "other"
    assert local(bucket.at("data/a")).read_text() == "other"


def test_a_damaged_or_interrupted_copy_is_fetched_again(bucket, monkeypatch, sent):
    for name in "abcd":
        bucket.put(f"data/{name}", name.encode())
    folder = local(bucket.at("data"))
    (folder / "b").write_text("x")
    (folder / "c").unlink()
    (folder / ".d.1234.part").write_text("remains of a killed process")
    local(bucket.at("data"))
    assert sorted(sent[4:]) == ["b", "c"]
    assert contents(folder) == {name: name for name in "abcd"}


def test_processes_that_fetch_the_same_address_wait_for_each_other(bucket, sent):
    for number in range(20):
        bucket.put(f"data/{number}", b"x")
    threads = [threading.Thread(target=local, args=[bucket.at("data")]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sent) == 20


def test_manifests_are_uploaded_after_the_files_that_they_name(bucket, sent, move):
    with output(bucket.at("out")) as folder:
        write(folder, manifest_json="1", z="z", sub__early_json="2")
        os.utime(folder / "manifest.json", ns=(2 * 10**18, 2 * 10**18))
    assert sent == ["z", "sub/early.json", "manifest.json"]
    move("elsewhere")
    assert contents(local(bucket.at("out"))) == {"manifest.json": "1", "z": "z", "sub/early.json": "2"}


def test_the_next_command_uploads_only_what_it_changed(bucket, sent, move):
    with output(bucket.at("out")) as folder:
        write(folder, a="a", b="b", gone="gone", manifest_json="1")
    move("elsewhere")
    with output(bucket.at("out")) as folder:
        assert len(contents(folder)) == 4
        del sent[:]
        write(folder, new="new", manifest_json="2")
        (folder / "gone").unlink()
        write(folder, **{".lock": "", ".b.part": ""})
    assert sent == ["new", "manifest.json"]
    assert bucket.keys("out") == ["out/a", "out/b", "out/manifest.json", "out/new"]
    assert local(bucket.at("out")) == folder, "nothing is pending"


def test_a_file_is_uploaded_by_itself(bucket):
    with output(bucket.at("lists.csv")) as path:
        write(path.parent, **{"lists.csv": "lists", ".lists.csv.shards__1": "hidden", "other": "other"})
    assert bucket.keys() == ["lists.csv"]
    assert bucket["lists.csv"] == b"lists"


def rewrite(address):
    with output(address) as folder:
        (folder / "old").unlink(missing_ok=True)
        write(folder, a="new", b="new", manifest_json="new")


def rewrite_and_die(address, actions):
    """In a process of its own: die before an action on the bucket."""

    def dying(original):
        def action(*arguments):
            nonlocal actions
            if actions == 0:
                os._exit(9)
            actions -= 1
            return original(*arguments)

        return action

    copies._THREADS = 0
    copies.Copy._send_open, copies.Copy._delete = dying(copies.Copy._send_open), dying(copies.Copy._delete)
    rewrite(address)


@pytest.mark.parametrize("actions", range(6))
def test_a_killed_upload_looks_unfinished_and_the_same_command_resumes(bucket, move, actions):
    """Deleted in turn: the old manifest; written: a, b, manifest; deleted: old."""
    for name in ("a", "b", "old", "manifest.json"):
        bucket.put(f"out/{name}", b"before")
    code = "\n".join(
        [
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})",
            f"from test_copies import rewrite_and_die; rewrite_and_die({bucket.at('out')!r}, {actions})",
        ]
    )
    died = subprocess.run([sys.executable, "-c", code], check=False).returncode
    assert died == (9 if actions < 5 else 0)
    found = {key: bucket[key] for key in bucket.keys("out")}
    assert ("out/manifest.json" in found) == (actions in (0, 4, 5))
    expected = {0: b"before", 4: b"new", 5: b"new"}.get(actions)
    if expected:
        assert {found[f"out/{name}"] for name in ("a", "b", "manifest.json")} == {expected}
    if actions < 5:
        with pytest.raises(RemoteError, match="is being written from this machine, or that was interrupted"):
            local(bucket.at("out"))
    rewrite(bucket.at("out"))
    move("elsewhere")
    assert contents(local(bucket.at("out"))) == dict.fromkeys(["a", "b", "manifest.json"], "new")


def test_an_interrupted_upload_is_not_repeated(bucket, monkeypatch, sent):
    monkeypatch.setattr(copies, "_THREADS", 0)

    def broken(self, name):
        if name == "c":
            raise RemoteError("the network", "one", "wait")
        return original(self, name)

    original = copies.Copy._send

    def command():
        with output(bucket.at("out")) as folder:
            write(folder, a="a", b="b", c="c", manifest_json="1")

    with monkeypatch.context() as patch:
        patch.setattr(copies.Copy, "_send", broken)
        with pytest.raises(RemoteError, match="the network"):
            command()
    before = set(sent)
    assert "manifest.json" not in before
    with output(bucket.at("out")) as folder:
        assert len(contents(folder)) == 4, "the work is kept"
    assert sorted(sent) == ["a", "b", "c", "manifest.json"]


def test_what_a_running_command_finished_is_uploaded_before_its_end(bucket, monkeypatch):
    monkeypatch.setattr(opening, "_INTERVAL", 0.02)
    with output(bucket.at("out")) as folder:
        for shard in range(3):
            write(folder, **{f"shard-{shard}": "s" * shard})
            write_json(folder / "manifest.json", {"shards": shard + 1})
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                keys = bucket.keys("out")
                named = json.loads(bucket["out/manifest.json"])["shards"] if "out/manifest.json" in keys else 0
                # Whatever the moment, a manifest names what is there.
                assert {f"out/shard-{number}" for number in range(named)} <= set(bucket.keys("out"))
                if named == shard + 1:
                    break
            assert named == shard + 1


def test_a_command_that_wrote_nothing_leaves_nothing_pending(bucket):
    bucket.put("out/a", b"a")
    with pytest.raises(ValueError, match="bad input"), output(bucket.at("out")):
        raise ValueError("bad input")
    assert contents(local(bucket.at("out"))) == {"a": "a"}


def test_what_another_machine_wrote_is_not_written_over(bucket):
    bucket.put("out/a", b"a")
    folder = Address.parse(bucket.at("out")).copy

    def command():
        with output(bucket.at("out")):
            write(folder, a="mine")
            bucket.put("out/a", b"theirs")

    with pytest.raises(RemoteError) as stop:
        command()
    assert "was written elsewhere in the meantime; expected one writer at a time: delete" in str(stop.value)
    assert bucket["out/a"] == b"theirs"
    with pytest.raises(RemoteError, match="or that was interrupted"):
        local(bucket.at("out"))
    shutil.rmtree(folder)
    for _ in range(2):
        assert contents(local(bucket.at("out"))) == {"a": "theirs"}
    with output(bucket.at("out")) as folder:
        assert contents(folder) == {"a": "theirs"}


def test_one_process_writes_at_a_time(bucket):
    with (
        output(bucket.at("out")),
        pytest.raises(RemoteError, match="is being written by another process"),
        output(bucket.at("out")),
    ):
        pass


def test_other_processes_of_a_training_do_not_upload(bucket, monkeypatch):
    bucket.put("out/a", b"a")
    monkeypatch.setenv("RANK", "1")
    with output(bucket.at("out")) as folder:
        assert contents(folder) == {"a": "a"}
        write(folder, a="changed")
    assert bucket["out/a"] == b"a"


@pytest.mark.parametrize("key", ["data/../../evil", "data//evil", "data/./evil", "data/c:evil", "data/..\\evil"])
def test_no_key_is_written_outside_of_the_copy(bucket, key, tmp_path):
    bucket.put("data/good", b"good")
    bucket.put(key, b"evil")
    with pytest.raises(RemoteError, match="expected plain names between single slashes"):
        local(bucket.at("data"))
    assert not any(path.name.endswith("evil") for path in tmp_path.rglob("*"))


def test_a_download_that_does_not_fit_is_refused_before_it_begins(bucket, monkeypatch, capsys):
    bucket.put("data/a", b"x" * 1000)
    monkeypatch.setattr(copies, "_LARGE", 999)
    local(bucket.at("data"))
    assert capsys.readouterr().err == f"fetching 1 files, 0.00 GB, from {bucket.at('data')}\n"
    monkeypatch.setattr(copies.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    bucket.put("data/a", b"y" * 1001)
    with pytest.raises(RemoteError, match="expected enough space: free some, or set IISAN_CACHE"):
        local(bucket.at("data"))


@pytest.mark.parametrize(
    "text",
    [
        "s3://",
        "s3:///key",
        "s3://..",
        "s3://bucket/../other",
        "s3://bucket//key",
        "s3://key:secret@bucket/data",
        "s3://secret@bucket",
        "s3://bucket/data?access_key=secret",
        "http://host/secret",
        "file:///secret",
        "S3://bucket/secret",
    ],
)
def test_other_addresses_are_refused_without_what_may_be_secret(text):
    with pytest.raises(RemoteError) as stop:
        Address.parse(text)
    assert "s3://BUCKET/PREFIX" in str(stop.value)
    assert "secret" not in str(stop.value)


def test_bad_access_is_one_sentence(bucket, monkeypatch):
    def message(place):
        started = time.monotonic()
        with pytest.raises(RemoteError) as stop:
            local(place)
        assert time.monotonic() - started < 15
        assert "\n" not in str(stop.value)
        return str(stop.value)

    assert message(bucket.at("nothing")).startswith(f"there is nothing at '{bucket.at('nothing')}'")
    missing = "s3://no-such-bucket/data"
    assert message(missing).startswith(f"the bucket of '{missing}' does not exist")
    with pytest.raises(RemoteError, match="does not exist"), output(missing):
        pass
    bucket.check_credentials(after=0)
    try:
        assert "is denied to the credentials" in message(bucket.at("data"))
    finally:
        bucket.check_credentials(after=10**9)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert "cannot be reached; expected an object store that answers" in message(bucket.at("data"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://no host")
    assert message(bucket.at("data"))


def test_without_credentials_the_variables_are_named(bucket, monkeypatch):
    """As S3 answers requests without a signature; moto's server fails at them."""

    class Denying(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(403)
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with ThreadingHTTPServer(("127.0.0.1", 0), Denying) as server:
        threading.Thread(target=server.serve_forever).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(RemoteError, match=r"is denied .* or there are none; .* set AWS_ACCESS_KEY_ID and"):
            local(bucket.at("data"))
        server.shutdown()


def test_a_server_that_does_not_answer_is_given_up(bucket, monkeypatch):
    monkeypatch.setattr(system, "_ANSWER", 1)
    monkeypatch.setattr(system, "_ATTEMPTS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(RemoteError, match="cannot be reached"):
            local(bucket.at("data"))


def test_without_pyarrow_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("IISAN_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r'pip install "iisan\[cloud\]"'):
        local("s3://bucket/data")


def test_only_strings_are_addresses_and_other_arguments_stay(bucket):
    @addressed("source", out="out")
    def copy(source, out, *, times=1):
        Path(out).mkdir(parents=True, exist_ok=True)
        (Path(out) / "copy").write_text(Path(source).read_text() * times)
        return source, out

    bucket.put("a", b"a")
    source, out = copy(bucket.at("a"), out=bucket.at("out"), times=2)
    assert bucket["out/copy"] == b"aa"
    assert source.read_text() == "a"
    assert local(Path("s3://bucket/data")) == Path("s3:/bucket/data")
    again = Path(out).parent / "again"
    assert copy(str(source), again) == (str(source), again)
