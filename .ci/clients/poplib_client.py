"""poplib, from Python's standard library."""

import base64
import os
import poplib
import ssl
from pathlib import Path

inbox = Path(os.environ["INBOX"])
port = int(os.environ["POP3_PORT"])
authority = os.environ["POP3_CA"]
mechanism = os.environ["POP3_AUTH"]
password = os.environ["POP3_PASSWORD"]
if authority:
    client = poplib.POP3_SSL("localhost", port, timeout=30, context=ssl.create_default_context(cafile=authority))
else:
    client = poplib.POP3("localhost", port, timeout=30)
client.capa()
if mechanism == "APOP":
    client.apop("alice", password)
elif mechanism:
    # poplib has no AUTH.  Programs that need it use two private lines of poplib, like this.
    responses = {"PLAIN": f"\0alice\0{password}", "XOAUTH2": f"user=alice\1auth=Bearer {password}\1\1"}
    client._shortcmd(f"AUTH {mechanism}")
    client._shortcmd(base64.b64encode(responses[mechanism].encode()).decode())
else:
    client.user("alice")
    client.pass_(password)
for line in client.uidl()[1]:
    number, unique_id = line.decode().split()
    for name, lines in ((unique_id, client.retr(number)[1]), (unique_id + ".top", client.top(number, 0)[1])):
        (inbox / name).write_bytes(b"".join([line + b"\n" for line in lines]))
    if os.environ["POP3_ACTION"] == "delete":
        client.dele(number)
client.quit()
