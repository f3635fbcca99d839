"""What stores say of remote files without sending them: enough to tell that a file was replaced.

    s3, gs    one listing for the files of a directory, where they are many; else one question each
    http(s)   one HEAD each

A stamp is the size and the store's word for the content: a checksum, an ETag, or the time of the last
change, the first of them that it gives. A process asks once, so that all it plans has one state before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import groupby
from os.path import commonprefix
from typing import Any

from pipeline.data.remote import GaveUp, ask_store, filesystem, scheme_of
from pipeline.errors import ReadError

Stamp = tuple[str, int | None, str]
"""URL, bytes (None if the server does not say), and the store's word for the content, or ''."""

TRIES = 3  # planning does not wait for a store as training does
_AT_ONCE = 32
_MANY = 50  # files of a directory from which a listing is cheaper: 1,000 of them come in one answer
_LISTED = ("s3", "gs")
# Checksums before ETags before times: a file that was copied anew with the same content stays the same.
_WORDS = ("crc32c", "md5Hash", "Content-MD5", "ETag", "etag", "Last-Modified", "LastModified", "updated")


@cache
def stamps(urls: tuple[str, ...]) -> tuple[Stamp, ...]:
    """The stamps of those files that exist, in the order given.

    Raises:
        ReadError: the store does not answer, or this account may not look.
    """
    found: dict[str, Stamp] = {}
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="stamps") as pool:
        asked = [pool.submit(question) for question in _questions(urls)]
        for answer in asked:
            found |= answer.result()
    return tuple(found[url] for url in urls if url in found)


def _questions(urls: Sequence[str]) -> list[partial[dict[str, Stamp]]]:
    questions: list[partial[dict[str, Stamp]]] = []
    for parent, group in groupby(sorted(set(urls)), lambda url: url.rpartition("/")[0]):
        here = list(group)
        if len(here) >= _MANY and scheme_of(parent) in _LISTED:
            questions.append(partial(_list, parent, here))
        else:
            questions += [partial(_ask, url) for url in here]
    return questions


def _ask(url: str) -> dict[str, Stamp]:
    files = filesystem(scheme_of(url))
    try:
        return {url: _stamp(url, _answer(url, partial(files.info, url)))}
    except FileNotFoundError:  # the job that reads it says so
        return {}


def _list(parent: str, urls: Sequence[str]) -> dict[str, Stamp]:
    """The same for many files of one directory: what begins as their names do is listed."""
    files = filesystem(scheme_of(parent))
    # By characters, as stores list: train-000 of train-0000.tar … train-0009.tar.
    begin = commonprefix([url.removeprefix(f"{parent}/") for url in urls])  # noqa: RUF071
    try:
        listed = _answer(parent, partial(files.find, parent, prefix=begin, detail=True))
    except FileNotFoundError:
        return {}
    names = {url: files._strip_protocol(url) for url in urls}
    return {url: _stamp(url, listed[name]) for url, name in names.items() if name in listed}


def _stamp(url: str, info: dict[str, Any]) -> Stamp:
    word = next((str(info[name]) for name in _WORDS if info.get(name)), "")
    return url, info.get("size"), word


def _answer(url: str, ask: partial[Any]) -> Any:
    try:
        return ask_store(ask, TRIES)
    except (PermissionError, GaveUp) as last:
        raise ReadError(
            f"no answer about {url} (last: {last})",
            "a store that says whether its shards have changed since they were prepared",
            "check the network and the rights of this account, or, for shards that never change, "
            "set `frozen: true` of the dataset",
        ) from None
