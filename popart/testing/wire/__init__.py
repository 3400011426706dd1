"""The wire suite: tests of POP3 on the wire, for any server.

    python3 -m popart.testing.wire localhost:1100 --pop3-user alice --pop3-password secret

It knows nothing of popart.  It needs pytest, which popart's extra ``testing`` brings.  `popart.testing.wire.messages`
writes mail that is hard to carry.
"""
