import hashlib
import hmac
import secrets
import sqlite3
from email.message import EmailMessage

import popart

SCHEMA = """
CREATE TABLE IF NOT EXISTS user (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    salt BLOB NOT NULL,
    digest BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS message (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used again for another message
    user_id INTEGER NOT NULL REFERENCES user,
    uid TEXT NOT NULL UNIQUE,
    size INTEGER NOT NULL,
    octets BLOB NOT NULL
);
"""


def connect() -> sqlite3.Connection:
    db = sqlite3.connect("mail.db")
    db.executescript(SCHEMA)
    return db


def add_user(db: sqlite3.Connection, name: str, password: str) -> int:
    salt = secrets.token_bytes(16)
    query = "INSERT INTO user (name, salt, digest) VALUES (?, ?, ?)"
    values = (name, salt, hash_password(password, salt))
    with db:
        user_id = db.execute(query, values).lastrowid
    assert user_id is not None
    return user_id


def find_user(db: sqlite3.Connection, name: str, password: str) -> int | None:
    """Return the user's id if the password is right.

    Unknown users take as long as others.
    """
    query = "SELECT id, salt, digest FROM user WHERE name = ?"
    nobody = (None, b"a salt", b"a digest")
    user_id, salt, digest = db.execute(query, (name,)).fetchone() or nobody
    is_right = hmac.compare_digest(hash_password(password, salt), digest)
    return user_id if is_right else None


def hash_password(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=1)


def deliver(db: sqlite3.Connection, user_id: int, message: EmailMessage) -> None:
    # Store the message as POP3 sends it: its length is then the size to announce.
    octets = popart.wire_form(message.as_bytes())
    query = "INSERT INTO message (user_id, uid, size, octets) VALUES (?, ?, ?, ?)"
    with db:
        db.execute(query, (user_id, secrets.token_hex(16), len(octets), octets))


if __name__ == "__main__":
    db = connect()
    alice = add_user(db, "alice", "secret")
    for subject in ("Lunch?", "Invoice 17", "Holidays"):
        message = EmailMessage()
        message["From"] = "bob@example.org"
        message["Subject"] = subject
        message.set_content("See the subject.\n")
        deliver(db, alice, message)
    db.close()
    print("alice has mail")
