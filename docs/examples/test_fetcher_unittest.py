import poplib
import unittest

from fetcher import fetch

from popart.testing import MailServer


class FetchTest(unittest.TestCase):
    server: MailServer

    @classmethod
    def setUpClass(cls) -> None:
        cls.server = MailServer(users={"alice": "secret"}).start()
        cls.addClassCleanup(cls.server.stop)

    def setUp(self) -> None:
        self.server.reset()

    def test_all_mail_is_fetched(self) -> None:
        self.server.deliver("alice", "Subject: one\n\nfirst\n")
        fetch(self.server.host, self.server.port, "alice", "secret")
        self.assertEqual(self.server.messages("alice"), [])

    def test_mail_stays_if_the_connection_breaks(self) -> None:
        self.server.deliver("alice", "Subject: one\n\nfirst\n")
        self.server.hang_up("RETR")
        with self.assertRaises(poplib.error_proto):
            fetch(self.server.host, self.server.port, "alice", "secret")
        self.server.wait_for_session_end()
        self.assertEqual(
            len(self.server.messages("alice")), 1, self.server.transcript()
        )
        self.assertEqual(self.server.pending_faults, [])
