"""The gateway to S3: pages, failures within an answer, and deletions that another session finishes."""

from __future__ import annotations

import importlib
import io
import json
import poplib
from typing import Any

import pytest
from backends import S3
from conftest import EXAMPLES, Gateway
from door import Door
from test_each_gateway import SMALL, delete, fetch, fetch_all

pytestmark = pytest.mark.parametrize("backend", ["s3"], indirect=True)


def test_more_than_a_page(backend: S3, gateway: Gateway) -> None:
    """All of 1,201 messages are listed, and 1,101 deleted: one answer holds 1,000, one request deletes 1,000."""
    backend.deliver(*(b"Subject: %d\r\n\r\n" % number for number in range(1201)))
    with gateway.client() as client:
        assert client.stat()[0] == 1201
        delete(client, *range(51, 1152))
        client.quit()
    assert len(backend.keys()) == 100
    with gateway.client() as client:
        assert fetch(client, 51) == b"Subject: 1151\r\n\r\n"
        client.quit()


def test_what_is_no_message(backend: S3, gateway: Gateway) -> None:
    """What a receiver or a console leaves beside the messages is not served, nor are the folders of other users."""
    names = ("alice/", "alice/AMAZON_SES_SETUP_NOTIFICATION", "alice/archive/1", "alice2/1", "1")
    for name in names:
        backend.client.put_object(Bucket="mail", Key=name, Body=b"Subject: no mail\r\n\r\n")
    backend.deliver(SMALL[0])
    with gateway.client() as client:
        assert fetch_all(client) == [SMALL[0]]
        delete(client, 1)
        client.quit()
    assert sorted(backend.keys()) == sorted(names)


def test_errors_within_the_answer(backend: S3, gateway: Gateway) -> None:
    """Where DeleteObjects fails for a key, the message is deleted for POP3; a later session removes the object."""
    backend.deliver(*SMALL)
    key = backend.keys()[0]
    statement = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:DeleteObject",
        "Resource": f"arn:aws:s3:::mail/{key}",
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    backend.client.put_bucket_policy(Bucket="mail", Policy=policy)
    with gateway.client() as client:
        delete(client, 1, 3)
        client.quit()
    assert "1 objects were not deleted" in gateway.log()
    assert key in backend.keys()
    for _ in range(2):
        with gateway.client() as client:
            assert fetch_all(client) == [SMALL[1], SMALL[3], SMALL[4]]
            client.quit()
        backend.client.delete_bucket_policy(Bucket="mail")
    assert len(backend.keys()) == 3


def test_a_backend_that_dies_after_the_commit(backend: S3, door: Door, gateway: Gateway) -> None:
    """The deletion counts, and the next session finishes it."""
    backend.deliver(*SMALL)
    with gateway.client() as client:
        delete(client, 1, 3)
        door.shut_at(b"POST /mail?delete", stays_shut=True)
        client.quit()
    assert backend.mail() == SMALL
    door.open()
    with gateway.client() as client:
        assert fetch_all(client) == [SMALL[1], SMALL[3], SMALL[4]]
        client.quit()
    assert len(backend.keys()) == 3


def test_a_message_that_vanished(backend: S3, gateway: Gateway) -> None:
    """RETR of an object that is gone is refused, and deleting it is no error."""
    backend.deliver(*SMALL)
    with gateway.client() as client:
        backend.client.delete_object(Bucket="mail", Key=backend.keys()[0])
        with pytest.raises(poplib.error_proto, match="-ERR the message is gone"):
            client.retr(1)
        delete(client, 1, 2)
        client.quit()
    assert backend.mail() == SMALL[2:]


def test_a_key_that_is_used_twice(backend: S3, gateway: Gateway) -> None:
    """The new object is another message: it has another id, and is not taken for the old one."""
    backend.deliver(*SMALL)
    with gateway.client() as client:
        before = client.uidl()[1]
        backend.client.put_object(Bucket="mail", Key=backend.keys()[0], Body=b"Subject: another\r\n\r\n")
        with pytest.raises(poplib.error_proto, match="-ERR the message is gone"):
            client.retr(1)
        client.quit()
    with gateway.client() as client:
        ids = {line.split()[1] for line in client.uidl()[1]}
        assert len(ids - {line.split()[1] for line in before}) == 1
        client.quit()


def test_new_mail_under_an_old_key_is_not_deleted(backend: S3, door: Door, gateway: Gateway) -> None:
    """Neither QUIT deletes it, nor a session that finishes an older deletion."""
    backend.deliver(*SMALL)
    new = b"Subject: another\r\n\r\n"
    first, second = backend.keys()[:2]
    with gateway.client() as client:
        delete(client, 1, 2)
        backend.client.put_object(Bucket="mail", Key=first, Body=new)
        door.shut_at(b"POST /mail?delete", stays_shut=True)
        client.quit()
    backend.client.put_object(Bucket="mail", Key=second, Body=new)
    door.open()
    with gateway.client() as client:
        served = fetch_all(client)
        assert sorted(served) == sorted([*SMALL[2:], new, new])
        delete(client, served.index(SMALL[2]) + 1)
        backend.client.put_object(Bucket="mail", Key=backend.keys()[2], Body=new)
        client.quit()
    assert backend.mail() == [new, new, new, *SMALL[3:]]
    assert len(backend.keys()) == 5


def test_what_is_no_commit(backend: S3, gateway: Gateway) -> None:
    """A folder's marker among the commits is none, and a commit can name no other user's mail."""
    backend.deliver(*SMALL)
    others = backend.client.put_object(Bucket="mail", Key="bob/1", Body=SMALL[0])
    commit = json.dumps({"bob/1": others["ETag"]}).encode()
    for name, body in (("alice/.deleting/", b""), ("alice/.deleting/1", commit)):
        backend.client.put_object(Bucket="mail", Key=name, Body=body)
    with gateway.client() as client:
        assert fetch_all(client) == SMALL
        client.quit()
    assert [key for key in backend.keys() if not key.startswith("alice/0")] == ["alice/.deleting/", "bob/1"]


@pytest.fixture
def handler(backend: S3, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A handler without a server."""
    monkeypatch.syspath_prepend(EXAMPLES)
    module = importlib.import_module("s3_gateway")
    return module.S3Handler(backend.client, "mail", module.Users("alice:secret"))


def test_no_more_keys_than_a_request_takes(backend: S3, handler: Any) -> None:
    """DeleteObjects takes 1,000 keys: Amazon's refuses more, and moto's does not."""
    counts = []
    backend.client.meta.events.register(
        "before-parameter-build.s3.DeleteObjects", lambda params, **_: counts.append(len(params["Delete"]["Objects"]))
    )
    doomed = {f"alice/{number}": "1" for number in range(1101)}
    handler._finish_deletion("alice/.deleting/1", doomed, {key: {"ETag": "1"} for key in doomed})
    assert counts == [1000, 101]


def test_an_answer_without_its_length(backend: S3, handler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that breaks off in its header has no length, and seems to be whole: it is too short all the same."""
    from botocore.exceptions import IncompleteReadError
    from botocore.response import StreamingBody

    body = StreamingBody(io.BytesIO(b"Subject"), None)
    monkeypatch.setattr(backend.client, "get_object", lambda **_: {"Body": body})
    with pytest.raises(IncompleteReadError):
        handler._get({"Key": "alice/1", "ETag": "1"}, 0, 100)


def test_a_commit_that_another_process_has_finished(handler: Any) -> None:
    """It may be gone between the list and the question for it."""
    assert handler._read_commit("alice/.deleting/1") == {}
