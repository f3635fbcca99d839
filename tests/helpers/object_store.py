"""Servers of object stores for a test, each in a process of its own: moto's for s3, an emulator's for gs."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import fsspec
import pytest

from pipeline.data import remote


@contextmanager
def s3_server() -> Iterator[str]:
    """Its URL, while inside."""
    with _server("moto.server", ("-H", "127.0.0.1"), "-p") as url:
        yield url


@contextmanager
def gs_server() -> Iterator[str]:
    """Its URL, while inside; what it holds lies in its memory."""
    with _server("gcp_storage_emulator", ("start", "-H", "127.0.0.1", "--in-memory"), "--port") as url:
        yield url


@contextmanager
def _server(module: str, arguments: Sequence[str], port_option: str) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", module, *arguments, port_option, str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(url, timeout=1).close()
                break
            except urllib.error.HTTPError:
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


def use_s3(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Have s3:// lead to the server, for this test and the processes that it starts."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    _forget("s3")


def empty_bucket(monkeypatch: pytest.MonkeyPatch, url: str, name: str) -> Any:
    """Make s3://`name` anew at the server and have s3:// lead there; fsspec's file system of it."""
    use_s3(monkeypatch, url)
    files = fsspec.filesystem("s3", use_listings_cache=False)
    if files.exists(name):
        files.rm(name, recursive=True)
    files.mkdir(name)
    return files


def use_gs(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Have gs:// lead to the server, for this test and the processes that it starts, without an account."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
    # gcsfs asks for the kind of a bucket by gRPC, which the emulator does not speak.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    monkeypatch.setenv("FSSPEC_GCS_TOKEN", "anon")
    monkeypatch.setitem(fsspec.config.conf, "gcs", {"token": "anon"})
    _forget("gs")


def _forget(scheme: str) -> None:
    """Filesystems that lead to an earlier test's server."""
    remote._filesystem.cache_clear()
    fsspec.get_filesystem_class(scheme).clear_instance_cache()
