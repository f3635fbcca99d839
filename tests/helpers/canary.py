"""A secret that commands under test have in their environment, and that nothing they write may hold."""

from __future__ import annotations

from pathlib import Path

CANARY = "canary-7f3a91c2e8"
SECRETS = {
    name: CANARY
    for name in (
        "AWS_SECRET_ACCESS_KEY",
        "HF_TOKEN",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "VITLINE_WEBHOOK_URL",
    )
}


def files_with(text: str, *roots: Path) -> list[str]:
    """Files below `roots` that hold `text`; databases and logs too, as bytes."""
    needle = text.encode()
    every = [file for root in roots for file in root.rglob("*") if file.is_file()]
    return [str(file) for file in every if needle in file.read_bytes()]
