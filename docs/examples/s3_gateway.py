"""Mail in an S3 bucket, by POP3: each user has a prefix, each message is an object, as
Amazon SES leaves it::

    POP3_USERS='alice:secret' python3 docs/examples/s3_gateway.py my-bucket

It needs boto3: pip install -e '.[gateways]'.  boto3 finds its credentials by itself.
They must allow listing the bucket, and getting, putting and deleting objects.  Alice's
messages are my-bucket/alice/KEY, where KEY holds no control characters: requests to
delete are XML.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, IncompleteReadError
from gateway import (
    TIMEOUT,
    OwnUsersHandler,
    PieceReader,
    Users,
    make_parser,
    read_users,
    serve,
    short_id,
    twice,
)

import popart

BATCH = 1000
"""Keys that one DeleteObjects takes."""

DELETING = ".deleting/"
"""Below a user's prefix.  Objects here are commits: they have the keys and the ETags of
messages that are deleted, or soon will be."""

NO_MAIL = ("", "AMAZON_SES_SETUP_NOTIFICATION")
"""Names below a prefix that are not messages: a folder's marker, and what SES leaves
once."""


Object = dict[str, Any]
"""What S3 lists of an object: Key, ETag, Size, LastModified."""


class S3Handler(OwnUsersHandler):
    def __init__(self, s3: Any, bucket: str, users: Users) -> None:
        super().__init__(users)
        # One client for all sessions: threads may share boto3's clients.
        self._s3 = s3
        self._bucket = bucket
        self._objects: list[Object] = []

    # Reading.

    def list_messages(self) -> list[tuple[int, str]]:
        prefix = f"{self.username}/"
        found = self._find(prefix)
        for key in list(found):
            if key.startswith(prefix + DELETING) and key != prefix + DELETING:
                for name in self._finish_deletion(key, self._read_commit(key), found):
                    del found[name]
        names = {key: key.removeprefix(prefix) for key in found}
        mail = [
            item
            for key, item in found.items()
            if "/" not in names[key] and names[key] not in NO_MAIL
        ]
        self._objects = sorted(
            mail, key=lambda item: (item["LastModified"], item["Key"])
        )
        # Stored octets are never more than the octets on the wire.  A key may be too
        # long for an id, and may hold spaces; a key with other content is another
        # message.
        return [
            (item["Size"], short_id(item["Key"], item["ETag"]))
            for item in self._objects
        ]

    def _find(self, prefix: str) -> dict[str, Object]:
        pages = self._s3.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=prefix
        )
        return {
            item["Key"]: item
            for page in pages  # of 1,000 keys at most
            for item in page.get("Contents", ())
        }

    def get_message_reader(self, number: int) -> popart.MessageReader:
        item = self._objects[number - 1]

        def fetch(offset: int, count: int) -> bytes:
            count = min(count, item["Size"] - offset)
            # boto3 repeats a request, but not one whose answer breaks off in its body.
            return (
                twice(lambda: self._get(item, offset, count), BotoCoreError)
                if count
                else b""
            )

        return PieceReader(fetch)

    def _get(self, item: dict[str, Any], offset: int, count: int) -> bytes:
        where = f"bytes={offset}-{offset + count - 1}"
        try:
            answer = self._s3.get_object(
                Bucket=self._bucket, Key=item["Key"], IfMatch=item["ETag"], Range=where
            )
            octets: bytes = answer["Body"].read()
        except ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "PreconditionFailed"):
                raise popart.ReportableError(
                    "the message is gone, another program has deleted it"
                ) from None
            raise
        # An answer that broke off within its header announced no length.
        if len(octets) != count:
            raise IncompleteReadError(actual_bytes=len(octets), expected_bytes=count)
        return octets

    # Leaving.

    def delete_messages(self, numbers: Sequence[int]) -> None:
        """Delete all or none: one object that names them is the commit.  What it names
        is listed no more."""
        chosen = [self._objects[number - 1] for number in numbers]
        doomed = {item["Key"]: item["ETag"] for item in chosen}
        # Listed again, because a receiver may have put new mail under an old key.
        found = self._find(f"{self.username}/")
        commit = f"{self.username}/{DELETING}{uuid.uuid4()}"
        self._s3.put_object(
            Bucket=self._bucket, Key=commit, Body=json.dumps(doomed).encode()
        )
        self._finish_deletion(commit, doomed, found)

    def _read_commit(self, key: str) -> dict[str, str]:
        try:
            answer = self._s3.get_object(Bucket=self._bucket, Key=key)
            doomed: dict[str, str] = json.loads(answer["Body"].read())
        except ClientError as error:
            if error.response["Error"]["Code"] == "NoSuchKey":
                return {}  # another process has finished that deletion
            raise
        return doomed

    def _finish_deletion(
        self, commit: str, doomed: dict[str, str], found: dict[str, Object]
    ) -> list[str]:
        """Delete what the commit names, and return the keys, but not of what is gone or
        has other content by now.

        If it fails, the next session goes on with it: so it may happen twice.
        """
        keys = [
            key
            for key, etag in doomed.items()
            if key in found and found[key]["ETag"] == etag
        ]
        try:
            for start in range(0, len(keys), BATCH):
                some = [{"Key": key} for key in keys[start : start + BATCH]]
                answer = self._s3.delete_objects(
                    Bucket=self._bucket, Delete={"Objects": some, "Quiet": True}
                )
                if errors := answer.get("Errors"):  # there is no exception for these
                    raise RuntimeError(
                        f"{len(errors)} objects were not deleted: {errors[0]}"
                    )
            self._s3.delete_object(Bucket=self._bucket, Key=commit)
        except (BotoCoreError, ClientError, RuntimeError) as error:
            self.handle_session_error(error)
        return keys


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("bucket", help="the bucket's name")
    parser.add_argument("--endpoint", help="the address of another S3 than Amazon's")
    options = parser.parse_args()
    # boto3 tries twice, and the gateway tries twice to read a piece.
    limits = Config(
        connect_timeout=TIMEOUT / 2,
        read_timeout=TIMEOUT / 2,
        retries={"total_max_attempts": 2},
        max_pool_connections=50,
    )
    s3 = boto3.client("s3", endpoint_url=options.endpoint, config=limits)
    users = read_users()
    serve(options, lambda peer: S3Handler(s3, options.bucket, users))


if __name__ == "__main__":
    main()
