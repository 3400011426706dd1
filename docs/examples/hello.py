import io

import popart

MAIL = [
    b"Subject: Hello\r\n\r\nIt works.\r\n",
    b"Subject: Second\r\n\r\n.. and so do dots.\r\n",
]


class Hello(popart.BaseHandler):
    def authenticate_pass(self, username, password):
        if (username, password) != ("alice", "secret"):
            raise popart.ReportableError("wrong name or password")

    def lock_maildrop(self): ...

    def list_messages(self):
        return [(len(octets), f"message-{n}") for n, octets in enumerate(MAIL, 1)]

    def get_message_reader(self, number):
        return io.BytesIO(MAIL[number - 1])

    def delete_messages(self, numbers):
        print("to be deleted:", numbers)

    def unlock_maildrop(self): ...

    def handle_session_error(self, error):
        print("failed:", error)


with popart.Server(("127.0.0.1", 1100), lambda peer: Hello()) as server:
    print("POP3 on port", server.server_address[1])
    server.serve_forever()
