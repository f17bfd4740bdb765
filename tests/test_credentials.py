from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.credentials import secrets_of, shown, without_secrets_of

SECRET = "s3cr3t-T0ken"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (f"http://me:{SECRET}@mlflow.example:5000/x", "http://me:***@mlflow.example:5000/x"),
        (f"https://{SECRET}@mlflow.example", "https://***@mlflow.example"),
        (f"postgresql://me:{SECRET}@host/db?sslmode=require", "postgresql://me:***@host/db?sslmode=require"),
        (f"postgresql://host/db?user=me&password={SECRET}", "postgresql://host/db?user=me&password=***"),
        (f"https://x.blob.net/d/t-*.tar?sv=1&sig={SECRET}%3D", "https://x.blob.net/d/t-*.tar?sv=1&sig=***"),
        (f"s3://bucket/d?X-Amz-Signature={SECRET}", "s3://bucket/d?X-Amz-Signature=***"),
        (f"http://a:p@{SECRET}@host/x", "http://a:***@host/x"),
    ],
)
def test_credentials_are_hidden(url: str, expected: str) -> None:
    assert shown(url) == expected
    [secret] = secrets_of(url)
    assert SECRET not in without_secrets_of(url, f"cannot open {url} with {secret}")


@pytest.mark.parametrize(
    "url",
    [
        "data/train-{000..010}@2.tar",
        "/a:b@c/x",
        "s3://bucket/a@b:c/train-*.tar",
        "postgresql://me@host/db",
        "sqlite:////runs/a?mode=ro",
        "https://host/x?design=token",
        "http://[::1",
    ],
)
def test_what_is_no_secret_stays(url: str) -> None:
    assert (shown(url), secrets_of(url)) == (url, [])


@given(st.text(max_size=60))
def test_no_text_is_too_odd(text: str) -> None:
    assert not secrets_of(shown(text)) or "***" in shown(text)
