"""From the URL of a bucket to a client for it: S3, GCS or Azure, by way of obstore.

Credentials and endpoint come from the environment that the clouds' own tools read (`AWS_ACCESS_KEY_ID`,
`AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_ENDPOINT_URL`, `AWS_WEB_IDENTITY_TOKEN_FILE` and what
instances and containers are given; `GOOGLE_SERVICE_ACCOUNT`, `GOOGLE_APPLICATION_CREDENTIALS`;
`AZURE_STORAGE_ACCOUNT_NAME`, `AZURE_STORAGE_ACCOUNT_KEY`, …). A plain-http endpoint needs `AWS_ALLOW_HTTP=true`
(`GOOGLE_…`, `AZURE_…`). What is asked of the bucket lies in `objects`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, S3Store, from_url

CONNECT_SECONDS = 1.0

Store = S3Store | GCSStore | AzureStore


class BucketUnusable(Exception):
    """The URL or the environment does not name a bucket that can be used; the message says what is wrong."""


def connect(url: str, environment: Mapping[str, str], idle_seconds: float, answer_seconds: float) -> Store:
    """Make a client whose requests fail when nothing is received for `idle_seconds`; what is sent does not count.

    One that fails within `answer_seconds` is tried once more. Raises BucketUnusable.
    """
    plain = any(
        environment.get(f"{cloud}_ALLOW_HTTP", "").lower() in ("1", "true") for cloud in ("AWS", "GOOGLE", "AZURE")
    )
    try:
        store = from_url(
            url,
            client_options={
                "allow_http": plain,
                "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
                "read_timeout": timedelta(seconds=idle_seconds),
                "timeout": timedelta(days=1),
            },
            retry_config={"max_retries": 1, "retry_timeout": timedelta(seconds=answer_seconds)},
        )
    except (BaseError, ValueError, OSError) as error:
        kind = type(error).__name__
        raise BucketUnusable(
            f"the store {url.partition('?')[0]} cannot be used ({kind}): "
            "see the URL, and the variables of the environment that give credentials and endpoint"
        ) from None
    if not isinstance(store, S3Store | GCSStore | AzureStore):
        raise BucketUnusable(f"the store {url.partition('?')[0]} is no bucket: give s3://, gs:// or az://")
    return store
