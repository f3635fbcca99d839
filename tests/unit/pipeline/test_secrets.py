"""Which settings are URLs with credentials in them."""

from __future__ import annotations

import pytest

from pipeline.config.secrets import has_credentials, settings_with_credentials


@pytest.mark.parametrize(
    "url",
    [
        "https://me:word@host/a.tar",
        "https://token@host/a.tar",
        "postgresql://me:word@host/db",
        "https://host/a.tar?X-Amz-Signature=abc",
        "https://host/a.tar?sig=abc&se=2026",
        "https://host/hook?key=abc",
        "https://host/?x=1&access_token=abc",
    ],
)
def test_credentials_are_seen(url: str) -> None:
    assert has_credentials(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me@host/db",
        "s3://bucket/train-{000..009}.tar",
        "https://host/a.tar?version=3&keyboard=no",
        "data/train@2.tar",
        "sqlite:///runs/mlflow.db",
        "a password: not a URL",
    ],
)
def test_what_is_none_may_stay(url: str) -> None:
    assert not has_credentials(url)


def test_every_place_is_named_by_its_setting() -> None:
    plain = {"a": {"b": ["x", "https://u:p@h/"]}, "c": "https://h/?token=1", "d": 3}
    assert list(settings_with_credentials(plain)) == ["a.b.1", "c"]
