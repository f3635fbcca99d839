"""Tells people and programs what became of a round: webhooks, commands, and a ping that ticks still come.

One JSON object for each occasion. A receiver that is away, slow or wrong is logged and never changes what
was decided. URLs and keys come from the environment by the names in the settings, so that no file and no
log holds them. `format: slack` wraps the sentence as {"text": …}.

Signature, with a key: header X-Vitline-Signature = HMAC-SHA256 over TIMESTAMP + "." + BODY, hex;
X-Vitline-Timestamp = TIMESTAMP, Unix seconds.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import logging
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from pipeline.config import NotifySettings

logger = logging.getLogger(__name__)

_TIMEOUT_S = 5.0
_TRIES = 3
_COMMAND_TIMEOUT_S = 60.0


def notify(receivers: Sequence[NotifySettings], occasion: str, body: Mapping[str, Any]) -> None:
    """Send `body` to all receivers that asked for the occasion; raises nothing that is foreseen."""
    text = json.dumps({"schema": 1, "event": occasion, **body}, sort_keys=True)
    for receiver in receivers:
        if occasion not in receiver.on:
            continue
        try:
            if receiver.command:
                _run(receiver.command, text)
            else:
                _post(receiver, text, str(body.get("summary", occasion)))
        # A URL may hold a token, so messages name the variable and never what it holds.
        except (OSError, ValueError, subprocess.SubprocessError, urllib.error.URLError) as error:
            name = receiver.url_env or receiver.command[0]
            logger.warning("notifying %s of %s failed: %s", name, occasion, _harmless(error))


def ping(variable: str) -> None:
    """Ask for the URL that the environment variable holds, so that its owner hears of this tick."""
    url = os.environ.get(variable, "")
    try:
        _check(url)
        _send(urllib.request.Request(url))
    except (OSError, ValueError) as error:
        logger.warning("the ping to %s failed: %s", variable, _harmless(error))


def _harmless(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP status {error.code}"
    if isinstance(error, urllib.error.URLError):
        return type(error.reason).__name__
    return str(error) if isinstance(error, _Refused) else type(error).__name__


class _Refused(ValueError):
    """An address that is not used; its text holds no part of it."""


def _run(command: Sequence[str], text: str) -> None:
    subprocess.run(list(command), input=text.encode(), timeout=_COMMAND_TIMEOUT_S, check=True)


def _post(receiver: NotifySettings, text: str, summary: str) -> None:
    url = os.environ.get(str(receiver.url_env), "")
    _check(url)
    data = (json.dumps({"text": summary}) if receiver.format == "slack" else text).encode()
    stamp = str(round(time.time()))
    headers = {"Content-Type": "application/json", "X-Vitline-Timestamp": stamp}
    if receiver.key_env is not None:
        key = os.environ.get(receiver.key_env, "")
        if not key:
            raise _Refused(f"the variable {receiver.key_env} is empty")
        signature = hmac.new(key.encode(), f"{stamp}.".encode() + data, hashlib.sha256)
        headers["X-Vitline-Signature"] = signature.hexdigest()
    _send(urllib.request.Request(url, data, headers))


def _send(request: urllib.request.Request) -> None:
    opener = urllib.request.build_opener(_NoRedirect)
    for left in reversed(range(_TRIES)):
        try:
            opener.open(request, timeout=_TIMEOUT_S).close()
            return
        except urllib.error.HTTPError as error:
            # 4xx will not change by asking again.
            if error.code < 500 or not left:
                raise
        except (urllib.error.URLError, OSError):
            if not left:
                raise
        time.sleep(0.5 * (_TRIES - left))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **named: Any) -> None:
        return None


def _check(url: str) -> None:
    """Refuse what would send a body in clear, or to a machine's own metadata service."""
    parts = urlsplit(url)
    if not parts.hostname:
        raise _Refused("the variable holds no URL")
    addresses = {
        ipaddress.ip_address(str(info[4][0]).split("%")[0])
        for info in socket.getaddrinfo(parts.hostname, None)
    }
    if any(address.is_link_local for address in addresses):
        raise _Refused("it leads to a link-local address")
    if parts.scheme != "https" and not (
        parts.scheme == "http" and all(address.is_loopback for address in addresses)
    ):
        raise _Refused("it is neither https nor http to this machine")
