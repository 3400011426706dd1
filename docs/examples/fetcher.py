import poplib


def fetch(host: str, port: int, username: str, password: str) -> list[bytes]:
    """Fetch all messages, and delete them from the server."""
    client = poplib.POP3(host, port, timeout=10)
    try:
        client.user(username)
        client.pass_(password)
        messages = []
        for number in range(1, client.stat()[0] + 1):
            _, lines, _ = client.retr(number)
            messages.append(b"\r\n".join(lines) + b"\r\n")
            client.dele(number)
        client.quit()
        return messages
    finally:
        client.close()


def fetch_patiently(host: str, port: int, username: str, password: str) -> list[bytes]:
    """Try once more if the connection is lost."""
    try:
        return fetch(host, port, username, password)
    except (OSError, poplib.error_proto):
        return fetch(host, port, username, password)
