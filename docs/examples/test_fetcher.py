import poplib

import pytest
from fetcher import fetch, fetch_patiently

from popart.testing import MailServer


def test_all_mail_is_fetched_and_deleted(pop3_server: MailServer) -> None:
    pop3_server.deliver("alice", "Subject: one\n\nfirst\n")
    pop3_server.deliver("alice", "Subject: two\n\n.second\n")
    one, two = fetch(pop3_server.host, pop3_server.port, "alice", "secret")
    assert one == b"Subject: one\r\n\r\nfirst\r\n"
    assert two == b"Subject: two\r\n\r\n.second\r\n"
    assert pop3_server.messages("alice") == []


def test_a_lost_connection_loses_no_mail(pop3_server: MailServer) -> None:
    pop3_server.deliver("alice", "Subject: one\n\nfirst\n")
    pop3_server.drop("RETR", after=10)  # once, after ten octets of the message
    messages = fetch_patiently(pop3_server.host, pop3_server.port, "alice", "secret")
    assert messages == [b"Subject: one\r\n\r\nfirst\r\n"]


def test_a_wrong_password_is_tried_once(pop3_server: MailServer) -> None:
    with pytest.raises(poplib.error_proto):
        fetch(pop3_server.host, pop3_server.port, "alice", "wrong")
    assert pop3_server.commands == [("", "USER", "alice"), ("alice", "PASS", "***")]


@pytest.mark.pop3(users={"bob": "hunter2"}, timeout=5)
def test_mail_stays_if_the_server_cannot_delete_it(pop3_server: MailServer) -> None:
    pop3_server.deliver("bob", "Subject: one\n\nfirst\n")
    pop3_server.fail_commit()
    with pytest.raises(poplib.error_proto):
        fetch(pop3_server.host, pop3_server.port, "bob", "hunter2")
    assert len(pop3_server.messages("bob")) == 1
