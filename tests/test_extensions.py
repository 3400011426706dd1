"""UTF8 and LANG (RFC 6856), the capabilities with arguments and response codes of RFC 2449, and APOP's digest."""

from __future__ import annotations

import enum
import hashlib
import hmac
import re
import unicodedata
from base64 import b64encode
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import popart
from popart.errors import HandlerError, ReportableError
from popart.session import Session

from .conftest import Mail, MemoryHandler, make_session
from .test_sasl import CERTIFICATE, AbleHandler
from .test_session import (
    APOP,
    BANNER,
    BROKEN,
    CALLS,
    INTERNAL,
    KINDS,
    SIGN_IN,
    TWO,
    altered,
    begin,
    each,
    goes_on,
    is_refusal,
    kinds,
    raising,
    returning,
)

LANGUAGES = {"en": "English", "de-AT": "Deutsch (Österreich)", "es": "español", "zh-Hant": "繁體中文", "ar": "العربية"}
LISTING = "".join(f"{tag} {name}\r\n" for tag, name in LANGUAGES.items()).encode() + b".\r\n"

both_states = pytest.mark.parametrize("start", [make_session, begin], ids=["before sign-in", "after"])


class UTF8Handler(MemoryHandler):
    """Has messages with UTF-8 in their headers."""

    def enable_utf8(self) -> None:
        self.mail.calls.append(("enable_utf8",))


class LanguagesHandler(MemoryHandler):
    """Can refuse in several languages."""

    languages: Any = LANGUAGES

    def get_languages(self) -> Any:
        return self.languages

    def set_language(self, tag: str) -> None:
        self.mail.calls.append(("set_language", tag))


class WorldlyHandler(UTF8Handler, LanguagesHandler):
    """Can do both, and knows two more figures for CAPA."""

    delay: Any = 300
    days: Any = 60

    def get_login_delay(self) -> Any:
        return self.delay

    def get_expire(self) -> Any:
        self.mail.calls.append(("get_expire",))
        return self.days


def ask(session: Session, *lines: bytes) -> list[bytes]:
    """Give a session some lines and return its replies as they stand on the wire, checked to be UTF-8 in lines."""
    replies = []
    for line in lines:
        reply = session.respond(line)
        assert reply.status[:4] in (b"+OK ", b"-ERR")
        assert is_line(reply.status)
        if not line.startswith((b"RETR", b"TOP")):
            assert all(map(is_line, (reply.lines or b"").splitlines(keepends=True)))
        octets = reply.head()
        if reply.message is not None:
            with closing(reply.message) as pieces:
                octets += b"".join(pieces)
        replies.append(octets)
    return replies


def is_line(octets: bytes) -> bool:
    """Tell whether octets are one line of at most 512, its text UTF-8 without any control or line separator."""
    text = octets.decode()
    return len(octets) <= 512 and text.endswith("\r\n") and not any(map(is_control, text[:-2]))


def is_control(character: str) -> bool:
    """Tell whether it is a control, a line or paragraph separator (U+2028, U+2029), or half of a pair."""
    return unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs")


def capabilities(session: Session) -> list[str]:
    """Return the lines of CAPA's list."""
    (reply,) = ask(session, b"CAPA")
    status, *lines, dot, nothing = reply.decode("ascii").split("\r\n")
    assert status.startswith("+OK ") and (dot, nothing) == (".", "")
    return lines


def refuse(session: Session, handler: MemoryHandler, text: str, code: str | None = None) -> bytes:
    """Return the reply to a RETR that the handler refuses."""
    handler.get_message_reader = raising(ReportableError(text, code=code))  # type: ignore[method-assign]
    (reply,) = ask(session, b"RETR 1")
    return reply


class TestUTF8:
    """The command UTF8 (RFC 6856 section 2)."""

    @each(("kind", "announced"), [(UTF8Handler, ["UTF8 USER"]), (LanguagesHandler, []), (MemoryHandler, [])])
    @both_states
    def test_announced(self, start: Any, kind: type[MemoryHandler], announced: list[str]) -> None:
        """UTF8 is in CAPA in both states, with USER, and only if the handler can do it (RFC 6856 section 2)."""
        assert [line for line in capabilities(start(kind(Mail()))) if "UTF8" in line] == announced

    @each("line", [b"UTF8", b"utf8", b"Utf8 "])
    def test_accepted(self, line: bytes) -> None:
        """UTF8 is +OK in the AUTHORIZATION state, and the handler is told (RFC 6856 section 2.1)."""
        handler = UTF8Handler(Mail(*TWO))
        session = make_session(handler)
        assert ask(session, line)[0].startswith(b"+OK")
        assert handler.mail.calls == [("enable_utf8",)] and not handler.mail.errors
        assert ask(session, *SIGN_IN, b"STAT")[-1] == b"+OK 2 54\r\n"

    def test_twice(self) -> None:
        """A client may say so twice, and the handler hears so twice."""
        handler = UTF8Handler(Mail(*TWO))
        session = make_session(handler)
        assert all(reply.startswith(b"+OK") for reply in ask(session, b"UTF8", b"UTF8", *SIGN_IN))
        assert handler.mail.count("enable_utf8") == 2

    def test_between_user_and_pass(self) -> None:
        """A name may come before UTF8, its password after (RFC 6856 section 2.2)."""
        session = make_session(UTF8Handler(Mail()))
        assert all(reply.startswith(b"+OK") for reply in ask(session, SIGN_IN[0], b"UTF8", SIGN_IN[1]))

    @each(("start", "kind", "line"), [
        (make_session, MemoryHandler, b"UTF8"),
        (make_session, LanguagesHandler, b"UTF8"),
        (begin, UTF8Handler, b"UTF8"),
        (begin, MemoryHandler, b"UTF8"),
        (make_session, UTF8Handler, b"UTF8 USER"),
        (make_session, UTF8Handler, b"UTF8  "),
        (make_session, UTF8Handler, "UTF8 é".encode()),
        (make_session, UTF8Handler, b"UTF8 \xff"),
        (make_session, UTF8Handler, b"UTF-8"),
    ])  # fmt: skip
    def test_refused(self, start: Any, kind: type[MemoryHandler], line: bytes) -> None:
        """It is for handlers that can do it, takes no argument, and is for before sign-in (RFC 6856 section 2)."""
        handler = kind(Mail())
        session = start(handler)
        assert is_refusal(ask(session, line)[0]) and goes_on(session)
        assert not handler.mail.count("enable_utf8") and not handler.mail.errors

    @each(("action", "status", "reports"), [
        (raising(ReportableError("café is closed", code="SYS/TEMP")), b"-ERR [SYS/TEMP] caf? is closed\r\n", []),
        (raising(ReportableError("no")), b"-ERR no\r\n", []),
        (raising(OSError("hidden")), INTERNAL, [OSError]),
        (raising(KeyboardInterrupt()), INTERNAL, [KeyboardInterrupt]),
        (returning(False), BROKEN, [HandlerError]),
        (returning(True), BROKEN, [HandlerError]),
    ])  # fmt: skip
    def test_handler_fails(self, action: Any, status: bytes, reports: list[type]) -> None:
        """An enable_utf8 that fails is -ERR; the session goes on, without UTF-8 (RFC 6856 section 2.1)."""
        handler = altered(UTF8Handler, enable_utf8=action)
        session = make_session(handler)
        assert ask(session, b"UTF8") == [status]
        assert kinds(handler.mail.errors) == reports and goes_on(session)
        assert ask(session, *SIGN_IN)[-1].startswith(b"+OK")
        assert refuse(session, handler, "é") == b"-ERR ?\r\n"

    def test_failed_later(self) -> None:
        """What the client was once promised stays so when a second UTF8 fails."""
        results = iter([returning(None), raising(OSError())])
        handler = altered(UTF8Handler, enable_utf8=lambda: next(results)())
        session = make_session(handler)
        assert ask(session, b"UTF8", b"UTF8", *SIGN_IN)[1] == INTERNAL
        assert refuse(session, handler, "é") == "-ERR é\r\n".encode()

    def test_coroutine(self) -> None:
        """An ``async def`` enables nothing, and Python has no reason to print that it was never awaited."""

        async def enable_utf8() -> None: ...

        handler = altered(UTF8Handler, enable_utf8=enable_utf8)
        assert ask(make_session(handler), b"UTF8") == [BROKEN]

    @each("line", [b"RETR 1", b"TOP 1 9"])
    @each("before", [[], [b"UTF8"]])
    def test_messages_pass_untouched(self, before: list[bytes], line: bytes) -> None:
        """Each octet of a reader passes as it is, whether the client asked for UTF-8 or not.

        Not to hand out such messages unasked, as RFC 6856 section 2.1 demands, is the handler's part.
        """
        message = "Subject: Grüße \x85\u2028\r\n\r\n".encode() + b"\xff\xfe\0\x80\r\n"
        session = make_session(UTF8Handler(Mail(message)))
        assert ask(session, *before, *SIGN_IN, line)[-1].partition(b"\r\n")[2] == message + b".\r\n"

    @each(("method", "line"), [
        ("get_message_reader", b"RETR 1"),
        ("get_message_reader", b"TOP 1 0"),
        ("get_top_reader", b"TOP 1 0"),
    ])  # fmt: skip
    def test_response_code(self, method: str, line: bytes) -> None:
        """A handler may refuse a message for which the client has not asked UTF-8: [UTF8] (RFC 6856 section 5)."""
        handler = altered(UTF8Handler, **{method: raising(ReportableError("say UTF8 first", code="UTF8"))})
        session = begin(handler)
        assert ask(session, line) == [b"-ERR [UTF8] say UTF8 first\r\n"]
        assert goes_on(session) and not handler.mail.errors


MORE_CALLS = {
    "authenticate_token": [b"AUTH XOAUTH2 " + b64encode(b"user=alice\x01auth=Bearer ya29\x01\x01"), b""],
    "authenticate_certificate": [b"AUTH EXTERNAL ="],
    "authenticate_pass over AUTH": [b"AUTH PLAIN " + b64encode(b"\0alice\0secret")],
}
TOLD = [*CALLS, *MORE_CALLS]
"""Methods whose refusal is the answer to the last of some lines."""


def refused_by(name: str, text: str, *before: bytes) -> bytes:
    """Return the answer when a method refuses with a text, without the response code."""
    method = name.partition(" ")[0]
    refusal = raising(ReportableError(text))
    abilities = {"enable_utf8": returning(None), "get_languages": returning(LANGUAGES), "set_language": returning(None)}
    handler = altered(KINDS.get(method, MemoryHandler), **abilities, **{method: refusal})
    session = make_session(handler, banner=BANNER, certificate=CERTIFICATE)
    replies = [session.respond(line).head() for line in [*before, *CALLS.get(name, []), *MORE_CALLS.get(name, [])]]
    assert is_line(replies[-1])
    return re.sub(rb"^-ERR (\[[^]]*\] )?", b"", replies[-1])


class TestTexts:
    """The texts of ReportableErrors."""

    @each("method", TOLD)
    @each(("before", "shown"), [
        ([], b"caf? ??\r\n"),
        ([b"LANG"], b"caf? ??\r\n"),
        ([b"LANG fr"], b"caf? ??\r\n"),
        ([b"UTF8"], "café €∞\r\n".encode()),
        ([b"LANG en"], "café €∞\r\n".encode()),
        ([b"LANG *"], "café €∞\r\n".encode()),
    ])  # fmt: skip
    def test_everywhere(self, method: str, before: list[bytes], shown: bytes) -> None:
        """Whichever method refuses, before, at or after sign-in: the text is in UTF-8 for a client that said UTF8 or
        chose a language, in ASCII for others (RFC 6856 sections 2.1 and 3.2).
        """
        assert refused_by(method, "café €∞", *before) == shown

    @each(("text", "plain", "utf8"), [
        ("plain", "plain", "plain"),
        ("Grüße, 你好", "Gr??e, ??", "Grüße, 你好"),
        ("e\u0301 \U0001f4a5 العربية", "e? ? ???????", "e\u0301 \U0001f4a5 العربية"),
        ("no\r\n+OK yes\r\n.\r\n", "no  +OK yes  .  ", "no  +OK yes  .  "),
        ("a\0b\tc\x7fd\x1be", "a b c d e", "a b c d e"),
        ("a\x85b\u2028c\u2029d\x9be", "a?b?c?d?e", "a b c d e"),
        ("a\u202eb\u2066c", "a?b?c", "a b c"),
        ("a\ud800b\udcffc", "a?b?c", "a b c"),
        ("[AUTH] a lie", "AUTH] a lie", "AUTH] a lie"),
        ("\x85[AUTH] a lie", "?[AUTH] a lie", "AUTH] a lie"),
        ("é[AUTH]", "?[AUTH]", "é[AUTH]"),
        ("", "", ""),
    ])  # fmt: skip
    def test_characters(self, text: str, plain: str, utf8: str) -> None:
        """A control, a separator of lines, half of a pair or a change of direction is a space in UTF-8; in ASCII, what
        is beyond it is a question mark.  None of it is a second line or a code (promise 5, RFC 2449 section 8).
        """
        for before, shown in (([], plain), ([b"UTF8"], utf8)):
            handler = UTF8Handler(Mail(*TWO))
            session = make_session(handler)
            ask(session, *before, *SIGN_IN)
            assert refuse(session, handler, text) == f"-ERR {shown}\r\n".encode()

    @each("character", ["é", "€", "\U0001f4a5"])
    @each("start", range(4))
    def test_no_character_is_cut(self, character: str, start: int) -> None:
        """A long text ends with its last character that fits into 512 octets, whole (RFC 1939 section 3)."""
        handler = UTF8Handler(Mail(*TWO))
        session = make_session(handler)
        ask(session, b"UTF8", *SIGN_IN)
        text = refuse(session, handler, "x" * start + character * 512, "IN-USE").decode()
        fits = (512 - len("-ERR [IN-USE] \r\n") - start) // len(character.encode())
        assert text == f"-ERR [IN-USE] {'x' * start}{character * fits}\r\n"

    @given(text=st.text(st.characters(), max_size=300), code=st.sampled_from(["IN-USE", "SYS/TEMP", "X" * 64]))
    def test_any_text_in_utf8(self, text: str, code: str) -> None:
        """Any text becomes one line of UTF-8, its characters in their places, as many as fit (RFC 6856 section 3.2)."""
        handler = UTF8Handler(Mail(*TWO))
        session = make_session(handler)
        ask(session, b"UTF8", *SIGN_IN)
        octets = refuse(session, handler, text, code)
        head, shown = f"-ERR [{code}] ", octets.decode()[:-2]
        assert shown.startswith(head)
        shown = shown.removeprefix(head)
        assert len(shown) <= len(text)
        for character, original in zip(shown, text, strict=False):
            assert character == original or (character == " " and unicodedata.category(original)[0] in "CZ")
        assert len(shown) == len(text) or len(octets) + 4 > 512

    @given(text=st.text(st.characters(), max_size=600))
    def test_any_text_in_ascii(self, text: str) -> None:
        """For a client that did not ask, any text becomes one line of ASCII (RFC 1939 section 3)."""
        handler = UTF8Handler(Mail(*TWO))
        shown = refuse(begin(handler), handler, text, "IN-USE")
        assert re.fullmatch(rb"-ERR \[IN-USE\] [ -~]*\r\n", shown)
        assert len(shown) == min(512, len("-ERR [IN-USE] \r\n") + len(text))

    def test_own_texts(self) -> None:
        """popart's own texts are ASCII in any mode."""
        session = make_session(WorldlyHandler(Mail(*TWO)))
        lines = [b"UTF8", b"LANG de", b"XYZZY", b"LANG fr", *SIGN_IN, b"RETR 9", b"UTF8", b"DELE", b"QUIT"]
        assert all(reply.isascii() for reply in ask(session, *lines) if b"Deutsch" not in reply)


class Lang(str, enum.Enum):
    """As an application may well keep its languages."""

    GERMAN = "de"


class Name(str):
    """Looks one way to a check and another way to a format."""

    def __str__(self) -> str:
        return "x\r\n.\r\n+OK"

    def __format__(self, spec: str) -> str:
        return str(self)


NO_MAPPING = [None, 5, "de", ["de", "en"], [("de", "Deutsch")], {"de", "en"}]
BAD_NAMES = [
    *(None, 5, b"Deutsch", ["Deutsch"], "Deutsch\r\n", "Deutsch\r\n.\r\n+OK", "a\nb", "a\rb", "a\0b", "a\tb", "a\x7f"),
    *("a\x85b", "a\u2028b", "a\u2029b", "a\u202eb", "a\ud800b", "x" * 65, "é" * 500),
]
BAD_TAGS = [
    *(None, 5, b"de", "", " ", "de AT", " de", "de ", "de\n", "de\r\n+OK", "de_AT", "dé", "ｄｅ", "de-", "-de"),
    *("de--AT", "*", ".", "1de", "deutscher", "de-oesterreich", "-".join(["de"] * 200)),
]
BAD_LANGUAGES = [
    *NO_MAPPING,
    *({"en": "English", "fr": name} for name in BAD_NAMES),
    *({"en": "English", tag: "x"} for tag in BAD_TAGS),
]


class TestLang:
    """The command LANG (RFC 6856 section 3)."""

    @each(("kind", "announced"), [(LanguagesHandler, ["LANG"]), (UTF8Handler, []), (MemoryHandler, [])])
    @both_states
    def test_announced(self, start: Any, kind: type[MemoryHandler], announced: list[str]) -> None:
        """LANG is in CAPA in both states, and only if the handler can do it (RFC 6856 section 3.1)."""
        assert [line for line in capabilities(start(kind(Mail()))) if "LANG" in line] == announced

    @each("method", ["get_languages", "set_language"])
    def test_half_of_it(self, method: str) -> None:
        """A handler that has one of the two methods cannot do it: nothing is announced, nothing called."""
        handler = altered(**{method: returning(LANGUAGES)})
        session = make_session(handler)
        assert "LANG" not in capabilities(session)
        assert all(map(is_refusal, ask(session, b"LANG", b"LANG en"))) and not handler.mail.calls

    @each("line", [b"LANG", b"LANG en", b"LANG *"])
    @both_states
    def test_not_offered(self, start: Any, line: bytes) -> None:
        """Without the ability LANG is -ERR, and the session goes on."""
        handler = UTF8Handler(Mail())
        session = start(handler)
        assert is_refusal(ask(session, line)[0]) and goes_on(session) and not handler.mail.errors

    @each("line", [b"LANG", b"lang", b"LANG "])
    @both_states
    def test_listing(self, start: Any, line: bytes) -> None:
        """Without an argument each language has a line, its name in UTF-8; none is chosen (RFC 6856 section 3.2)."""
        handler = LanguagesHandler(Mail(*TWO))
        session = start(handler)
        status, _, lines = ask(session, line)[0].partition(b"\r\n")
        assert status.startswith(b"+OK ") and lines == LISTING
        assert not handler.mail.count("set_language") and goes_on(session)

    @each(("argument", "tag"), [
        ("en", "en"), ("EN", "en"), ("eN", "en"),
        ("de-AT", "de-AT"), ("de-at", "de-AT"), ("DE-AT", "de-AT"), ("de", "de-AT"), ("DE", "de-AT"),
        ("zh-hANT", "zh-Hant"), ("zh", "zh-Hant"), ("ar", "ar"), ("*", "en"),
    ])  # fmt: skip
    @both_states
    def test_chosen(self, start: Any, argument: str, tag: str) -> None:
        """A tag, or a range of tags by its first subtags, is chosen in any case of letters; ``*`` is the first of all.

        The handler and the client are told the exact tag (RFC 6856 section 3.2, RFC 4647 section 3.3.1).
        """
        handler = LanguagesHandler(Mail(*TWO))
        session = start(handler)
        assert ask(session, b"LANG " + argument.encode()) == [f"+OK {tag} {LANGUAGES[tag]}\r\n".encode()]
        assert handler.mail.calls[-1] == ("set_language", tag) and handler.mail.count("set_language") == 1
        assert goes_on(session)

    @each("tags", [["de", "de-AT"], ["de-AT", "de"], ["de-AT-1996", "DE", "de-AT"]])
    def test_exact_tag_comes_first(self, tags: list[str]) -> None:
        """A client that names a tag of the listing gets that language, wherever it stands (RFC 6856 section 3.2)."""
        handler = LanguagesHandler(Mail())
        handler.languages = dict.fromkeys(tags, "Deutsch")
        session = make_session(handler)
        for tag in tags:
            assert ask(session, b"LANG " + tag.encode()) == [f"+OK {tag} Deutsch\r\n".encode()]

    @each(("argument", "tag"), [("de", "de-CH-1996"), ("DE-ch", "de-CH"), ("fr", "fr"), ("fr-CA", "fr-CA-x-y")])
    def test_first_of_several(self, argument: str, tag: str) -> None:
        """A range that is no tag itself chooses the first of those that it begins: the order is the application's."""
        handler = LanguagesHandler(Mail())
        handler.languages = dict.fromkeys(
            ["de-CH-1996", "de-AT", "de-CH", "fr-CA-x-y", "fr-CA-x", "fr", "fr-BE"], "a name"
        )
        assert ask(make_session(handler), b"LANG " + argument.encode()) == [f"+OK {tag} a name\r\n".encode()]

    @each("argument", [
        "fr", "d", "e", "de-", "de-A", "de-AT-1996", "de_AT", "en-", "-", "**", "*-AT", "en *", "en de", " en", "en ",
        "english", "English", "ｅｎ", "e\u0301n", "ar\u200f", "MUL", "x" * 900, "i", ".", "en\r",
    ])  # fmt: skip
    @both_states
    def test_unknown(self, start: Any, argument: str) -> None:
        """What matches no tag is -ERR, and the language stays as it was (RFC 6856 section 3.2)."""
        handler = LanguagesHandler(Mail(*TWO))
        session = start(handler)
        line = b"LANG " + argument.encode()
        first, chosen, second = ask(session, line, b"LANG es", line)
        assert is_refusal(first) and chosen.startswith(b"+OK es ") and is_refusal(second)
        assert [call for call in handler.mail.calls if call[0] == "set_language"] == [("set_language", "es")]
        assert goes_on(session) and not handler.mail.errors

    def test_only_ascii_matches(self) -> None:
        """Letters are compared as ASCII has them: the Kelvin sign is no K (RFC 4647 section 2)."""
        handler = LanguagesHandler(Mail())
        handler.languages = {"ko": "한국어"}
        assert is_refusal(ask(make_session(handler), "LANG \u212ao".encode())[0])
        assert not handler.mail.count("set_language")

    @each("line", [b"LANG e\rn", b"LANG en\r", b"LANG \r", b"LANG e\nn", b"LANG *\r", b"LANG e\0n"])
    @both_states
    def test_no_line_ends(self, start: Any, line: bytes) -> None:
        """A command's arguments hold no NUL, CR or LF: such a line is -ERR, and the handler is not asked."""
        handler = LanguagesHandler(Mail())
        handler.get_languages = raising(AssertionError("asked"))  # type: ignore[method-assign]
        session = start(handler)
        assert is_refusal(ask(session, line)[0]) and goes_on(session) and not handler.mail.errors

    def test_texts_after_an_unknown_one(self) -> None:
        """After a LANG that failed, texts go on as before it: ASCII, or UTF-8 (RFC 6856 section 3.2)."""
        handler = LanguagesHandler(Mail(*TWO))
        session = begin(handler)
        ask(session, b"LANG fr")
        assert refuse(session, handler, "é") == b"-ERR ?\r\n"
        ask(session, b"LANG es", b"LANG fr")
        assert refuse(session, handler, "é") == "-ERR é\r\n".encode()

    def test_again(self) -> None:
        """A client may change its mind; the languages are those of the moment."""
        handler = LanguagesHandler(Mail())
        session = make_session(handler)
        assert ask(session, b"LANG en", b"LANG es")[1].startswith(b"+OK es ")
        handler.languages = {"fi": "suomi"}
        assert ask(session, *SIGN_IN, b"LANG *")[-1] == b"+OK fi suomi\r\n"
        assert is_refusal(ask(session, b"LANG en")[0])

    def test_no_languages(self) -> None:
        """With none to choose from the listing is empty and every choice fails."""
        handler = LanguagesHandler(Mail())
        handler.languages = {}
        listing, any_of_them, english = ask(make_session(handler), b"LANG", b"LANG *", b"LANG en")
        assert listing.endswith(b"\r\n.\r\n") and listing.count(b"\n") == 2
        assert is_refusal(any_of_them) and is_refusal(english) and not handler.mail.errors

    def test_between_user_and_pass(self) -> None:
        """LANG, and one that fails, do not stand between USER and PASS."""
        session = make_session(LanguagesHandler(Mail()))
        assert ask(session, SIGN_IN[0], b"LANG es", b"LANG fr", SIGN_IN[1])[-1].startswith(b"+OK")

    @each(("action", "status", "reports"), [
        (raising(ReportableError("no: é", code="SYS/TEMP")), b"-ERR [SYS/TEMP] no: ?\r\n", []),
        (raising(OSError("hidden")), INTERNAL, [OSError]),
        (raising(SystemExit()), INTERNAL, [SystemExit]),
        (returning("en"), BROKEN, [HandlerError]),
    ])  # fmt: skip
    @both_states
    def test_set_language_fails(self, start: Any, action: Any, status: bytes, reports: list[type]) -> None:
        """A set_language that fails is -ERR; the session goes on, and its texts stay as they were."""
        handler = altered(LanguagesHandler, set_language=action)
        session = start(handler)
        assert ask(session, b"LANG en", b"LANG en") == [status] * 2
        assert kinds(handler.mail.errors) == reports * 2 and goes_on(session)
        ask(session, *SIGN_IN)
        assert refuse(session, handler, "é") == b"-ERR ?\r\n"

    @each("line", [b"LANG", b"LANG en", b"LANG *"])
    @each(("action", "status", "reports"), [
        (raising(ReportableError("none today")), b"-ERR none today\r\n", []),
        (raising(LookupError("hidden")), INTERNAL, [LookupError]),
        (raising(KeyboardInterrupt()), INTERNAL, [KeyboardInterrupt]),
    ])  # fmt: skip
    def test_get_languages_fails(self, action: Any, status: bytes, reports: list[type], line: bytes) -> None:
        """A listing, or a choice from it, may fail (RFC 6856 section 3.3); the session goes on."""
        handler = altered(LanguagesHandler, get_languages=action)
        session = begin(handler)
        assert ask(session, line) == [status]
        assert kinds(handler.mail.errors) == reports and goes_on(session)
        assert not handler.mail.count("set_language")

    @each("line", [b"LANG", b"LANG en", b"LANG *", b"LANG fr"])
    @each("languages", BAD_LANGUAGES)
    def test_bad_mapping(self, languages: Any, line: bytes) -> None:
        """What is no mapping of tags (RFC 5646 section 2.1) to one-line names is [SYS/PERM], reported, and set nowhere.

        The session goes on.
        """
        handler = LanguagesHandler(Mail())
        handler.languages = languages
        session = make_session(handler)
        assert ask(session, line) == [BROKEN]
        assert kinds(handler.mail.errors) == [HandlerError] and goes_on(session)
        assert not handler.mail.count("set_language")

    @each(
        ("languages", "report"),
        [
            (["de"], "get_languages returned list, not a mapping of tags to names"),
            ({None: "x"}, "a language tag has ASCII letters, digits and hyphens: NoneType"),
            ({"d e": "x"}, "a language tag has ASCII letters, digits and hyphens: 'd e'"),
            ({"de": b"x"}, "the name of language 'de' has at most 64 printable characters: bytes"),
        ],
    )
    def test_report(self, languages: Any, report: str) -> None:
        """The handler is told what is wrong, and beside it the rule."""
        handler = LanguagesHandler(Mail())
        handler.languages = languages
        ask(make_session(handler), b"LANG")
        assert list(map(str, handler.mail.errors)) == [report]

    @each("languages", [{Lang.GERMAN: "Deutsch"}, {"de": Name("Deutsch")}, {Name("de"): "Deutsch"}])
    def test_subclass_of_str(self, languages: Any) -> None:
        """What was checked is what is sent: a subclass of str cannot look another way on the wire (promise 5)."""
        handler = LanguagesHandler(Mail())
        handler.languages = languages
        listing, chosen = ask(make_session(handler), b"LANG", b"LANG de")
        assert listing.endswith(b"\r\nde Deutsch\r\n.\r\n") and chosen == b"+OK de Deutsch\r\n"

    def test_longest(self) -> None:
        """The longest tag with the longest name still fits into a line of 512 octets (RFC 2449 section 4)."""
        tag, name = "-".join(["abcdefgh"] * 8), "\U0001f4a5" * 64
        handler = LanguagesHandler(Mail())
        handler.languages = {tag: name}
        listing, chosen = ask(make_session(handler), b"LANG", b"LANG *")
        assert listing.endswith(f"\r\n{tag} {name}\r\n.\r\n".encode()) and chosen == f"+OK {tag} {name}\r\n".encode()

    @given(st.dictionaries(st.text(max_size=20) | st.sampled_from(["de", "en", "de-AT"]), st.text(max_size=70)))
    def test_any_mapping(self, languages: dict[str, str]) -> None:
        """Whatever the names, the listing is refused or has a line for each and a final dot (promise 5)."""
        handler = LanguagesHandler(Mail())
        handler.languages = languages
        (reply,) = ask(make_session(handler), b"LANG")
        lines = [f"{tag} {name}".encode("utf-8", "replace") for tag, name in languages.items()]
        assert reply == BROKEN or reply.split(b"\r\n")[1:] == [*lines, b".", b""]


class TestCapabilities:
    """CAPA's arguments (RFC 2449 section 6), and the response code that belongs to one of them."""

    def test_all(self) -> None:
        """What all abilities together bring, before and after sign-in: a line of ASCII each (RFC 2449 section 5)."""
        session = make_session(WorldlyHandler(Mail()), expire="30", implementation="x" * 400)
        common = ["TOP", "UIDL", "USER", "PIPELINING", "RESP-CODES", "AUTH-RESP-CODE", "SASL PLAIN"]
        common += ["UTF8 USER", "LANG"]
        last = "IMPLEMENTATION " + "x" * 400
        assert capabilities(session) == [*common, "LOGIN-DELAY 300 USER", "EXPIRE 30 USER", last]
        ask(session, *SIGN_IN)
        assert capabilities(session) == [*common, "LOGIN-DELAY 300", "EXPIRE 60", last]

    @each("seconds", [0, 1, 900, 2**63 - 1])
    def test_login_delay(self, seconds: int) -> None:
        """LOGIN-DELAY has USER before sign-in, as it may differ then, and not after (RFC 2449 section 6.5)."""
        handler = altered(get_login_delay=returning(seconds))
        session = make_session(handler)
        assert f"LOGIN-DELAY {seconds} USER" in capabilities(session)
        ask(session, *SIGN_IN)
        assert f"LOGIN-DELAY {seconds}" in capabilities(session)

    def test_of_the_moment(self) -> None:
        """Each CAPA says what holds when it is asked."""
        handler = WorldlyHandler(Mail())
        session = begin(handler)
        for handler.delay, handler.days, shown in (
            (5, 7, "7"),
            (0, 0, "0"),
            (900, None, "NEVER"),
            (7, 9**9, str(9**9)),
        ):
            assert {f"LOGIN-DELAY {handler.delay}", f"EXPIRE {shown}"} < set(capabilities(session))

    @each("expire", ["NEVER", "0", "30", "NEVER USER", "0 USER", "30 USER"])
    @each(("days", "shown"), [(0, "0"), (60, "60"), (None, "NEVER")])
    def test_expire(self, expire: str, days: int | None, shown: str) -> None:
        """EXPIRE is the server's with USER, once, before sign-in; after it the user's own (RFC 2449 section 6.7)."""
        handler = WorldlyHandler(Mail())
        handler.days = days
        session = make_session(handler, expire=expire)
        assert [line for line in capabilities(session) if line.startswith("EXPIRE")] == [
            f"EXPIRE {expire.removesuffix(' USER')} USER"
        ]
        assert not handler.mail.count("get_expire")  # there is no user yet
        ask(session, *SIGN_IN)
        assert [line for line in capabilities(session) if line.startswith("EXPIRE")] == [f"EXPIRE {shown}"]

    @both_states
    def test_not_announced(self, start: Any) -> None:
        """A handler that can do none of it announces none of it; EXPIRE is then the server's (RFC 2449 section 5)."""
        session = start(MemoryHandler(Mail()), expire="30")
        assert [line.split()[0] for line in capabilities(session)[7:]] == ["EXPIRE", "IMPLEMENTATION"]
        assert "EXPIRE 30" in capabilities(session)

    @each("method", ["get_login_delay", "get_expire"])
    @each("value", ["300", b"300", 1.5, -1, 2**63, [3], "NEVER", object()])
    def test_wrong_value(self, method: str, value: object) -> None:
        """What is no number of seconds or days is [SYS/PERM] and reported; the session goes on."""
        handler = altered(**{method: returning(value)})
        session = begin(handler)
        assert ask(session, b"CAPA") == [BROKEN]
        assert kinds(handler.mail.errors) == [HandlerError] and goes_on(session)

    def test_no_login_delay(self) -> None:
        """None is no number of seconds: a handler that wants no delay does without the method, or says 0."""
        handler = altered(get_login_delay=returning(None))
        assert ask(make_session(handler), b"CAPA") == [BROKEN]
        assert kinds(handler.mail.errors) == [HandlerError]

    @each("method", ["get_login_delay", "get_expire"])
    @each(("error", "status", "reports"), [
        (ReportableError("ask later", code="SYS/TEMP"), b"-ERR [SYS/TEMP] ask later\r\n", []),
        (OSError("hidden"), INTERNAL, [OSError]),
        (SystemExit(), INTERNAL, [SystemExit]),
    ])  # fmt: skip
    def test_raises(self, method: str, error: BaseException, status: bytes, reports: list[type]) -> None:
        """A capability that cannot be told makes CAPA fail, not the session."""
        handler = altered(**{method: raising(error)})
        session = begin(handler)
        assert ask(session, b"CAPA") == [status]
        assert kinds(handler.mail.errors) == reports and goes_on(session)

    @each("implementation", ["popart", "Shlemazle-Plotz-v302", "x y z", "x"])
    @both_states
    def test_implementation(self, start: Any, implementation: str) -> None:
        """IMPLEMENTATION is what was configured, and no other reply names the software (RFC 2449 section 6.9)."""
        session = start(MemoryHandler(Mail()), implementation=implementation)
        *others, last = capabilities(session)
        assert last == f"IMPLEMENTATION {implementation}"
        shown = session.greet().head() + "".join(others).encode() + b"".join(ask(session, b"X", b"NOOP", b"QUIT"))
        assert b"popart" not in shown.lower() and popart.__version__.encode() not in shown

    @each(("method", "lines"), [
        ("authenticate_pass", SIGN_IN),
        ("authenticate_apop", [APOP]),
        ("lock_maildrop", SIGN_IN),
        ("get_message_count", SIGN_IN),
        ("get_scram_credentials", [b"AUTH SCRAM-SHA-256 " + b64encode(b"n,,n=alice,r=abc")]),
        *((name.partition(" ")[0], lines) for name, lines in MORE_CALLS.items()),
    ])  # fmt: skip
    def test_login_delay_is_enforced(self, method: str, lines: list[bytes]) -> None:
        """A user who comes too soon reads [LOGIN-DELAY] at PASS, APOP or AUTH, and may come again (RFC 2449 section 8).

        Nothing is left locked, and nothing reported.
        """
        mail = Mail(*TWO)
        handler = AbleHandler(mail)
        setattr(handler, method, raising(ReportableError("once in 15 minutes", code="LOGIN-DELAY")))
        session = make_session(handler, banner=BANNER, certificate=CERTIFICATE)
        assert [session.respond(line).head() for line in lines][-1] == b"-ERR [LOGIN-DELAY] once in 15 minutes\r\n"
        assert goes_on(session) and not mail.locked and not mail.errors
        delattr(handler, method)
        assert ask(session, *SIGN_IN, b"STAT")[-1] == b"+OK 2 54\r\n"


class ApopHandler(MemoryHandler):
    """Keeps mrose's secret, as RFC 1939's example has it, and compares as the manual says."""

    banner = ""

    def set_banner(self, banner: str) -> None:
        self.banner = banner

    def authenticate_apop(self, username: str, hexdigest: str) -> None:
        if username != "mrose" or not hmac.compare_digest(popart.apop_digest(self.banner, "tanstaaf"), hexdigest):
            raise ReportableError("wrong name or password")


class TestApopDigest:
    """What an application needs for APOP (RFC 1939 section 7)."""

    def test_rfc_1939_example(self) -> None:
        """The example of RFC 1939 section 7."""
        digest = popart.apop_digest("<1896.697170952@dbc.mtview.ca.us>", "tanstaaf")
        assert digest == "c4c9334bac560ecc979e58001b3e22fb"

    def test_secret_in_utf8(self) -> None:
        """A secret beyond ASCII is digested in UTF-8 (RFC 6856 section 2.2)."""
        expected = hashlib.md5(b"<1.2@x>" + "pässwörd €".encode()).hexdigest()
        assert popart.apop_digest("<1.2@x>", "pässwörd €") == expected

    @each("case", [str.lower, str.upper])
    def test_exchange(self, case: Any) -> None:
        """The whole exchange: the client digests the timestamp of the greeting with the secret (RFC 1939 section 7)."""
        session = make_session(ApopHandler(Mail(*TWO)), banner="<1896.697170952@dbc.mtview.ca.us>")
        found = re.search(rb"<[^>]*>", session.greet().head())
        assert found is not None
        digest = case(hashlib.md5(found[0] + b"tanstaaf").hexdigest())
        apop, stat = ask(session, b"APOP mrose " + digest.encode(), b"STAT")
        assert apop.startswith(b"+OK") and stat == b"+OK 2 54\r\n"

    @each(("name", "banner", "secret"), [
        ("mrose", "<1896.697170952@dbc.mtview.ca.us>", "tanstaag"),
        ("mrose", "<1896.697170953@dbc.mtview.ca.us>", "tanstaaf"),
        ("mrose", "1896.697170952@dbc.mtview.ca.us", "tanstaaf"),
        ("nobody", "<1896.697170952@dbc.mtview.ca.us>", "tanstaaf"),
    ])  # fmt: skip
    def test_wrong_digest(self, name: str, banner: str, secret: str) -> None:
        """Another secret, timestamp or name, or one without its angle brackets, is refused, and the session goes on."""
        session = make_session(ApopHandler(Mail()), banner="<1896.697170952@dbc.mtview.ca.us>")
        session.greet()
        line = f"APOP {name} {popart.apop_digest(banner, secret)}".encode()
        assert ask(session, line)[0].startswith(b"-ERR [AUTH] ") and goes_on(session)


def pairs(name: str) -> bytes:
    return b64encode(f"user={name}\x01auth=Bearer x\x01\x01".encode())


class TestDeviations:
    """What docs/protocol.rst lists, as far as no other test holds it."""

    def test_login_timeout(self) -> None:
        """The AUTHORIZATION state has 180 seconds, not the ten minutes of RFC 1939 section 3; these come after it."""
        assert (popart.Server.login_timeout, popart.Server.minimum_timeout) == (180, 600)

    @each("name", ["zoe\u0308", "\u2168", "al\xadice", "a\u00a0b", "\u212b", "\U0001f600", "GRO\u1e9e", "\ue000"])
    @each(("method", "lines"), [
        ("authenticate_pass", lambda name: [f"USER {name}".encode(), f"PASS {name}".encode()]),
        ("authenticate_apop", lambda name: [APOP.replace(b"alice", name.encode())]),
        ("authenticate_pass", lambda name: [b"AUTH PLAIN " + b64encode(f"\0{name}\0{name}".encode())]),
        ("authenticate_pass", lambda name: [b"AUTH LOGIN", b64encode(name.encode()), b64encode(name.encode())]),
        ("authenticate_token", lambda name: [b"AUTH XOAUTH2 " + pairs(name)]),
        ("authenticate_token", lambda name: [
            b"AUTH OAUTHBEARER " + b64encode(f"n,a={name},\x01auth=Bearer x\x01\x01".encode())
        ]),
        ("authenticate_certificate", lambda name: [b"AUTH EXTERNAL " + b64encode(name.encode())]),
    ])  # fmt: skip
    def test_without_saslprep(self, method: str, lines: Any, name: str) -> None:
        """Names and passwords reach the handler as they were sent, by every way but SCRAM (RFC 6856 section 2.2)."""
        handler = AbleHandler(Mail(*TWO))
        handler.authenticate_apop = lambda *call: handler.decide("authenticate_apop", *call)  # type: ignore[method-assign]
        session = make_session(handler, banner=BANNER, certificate=CERTIFICATE)
        assert [*map(session.respond, lines(name))][-1].status.startswith(b"+OK")
        call = handler.mail.calls[0]
        assert call[:2] == (method, name) and (method != "authenticate_pass" or call[2] == name)

    def test_own_texts_stay_english(self) -> None:
        """After LANG popart's own texts are what they were before (RFC 6856 section 3.2)."""
        plain, german = (make_session(LanguagesHandler(Mail(*TWO))) for _ in range(2))
        ask(german, b"LANG de")
        lines = [b"XYZZY", b"STAT", b"PASS x", *SIGN_IN, b"RETR 9", b"DELE 1", b"QUIT"]
        assert ask(plain, *lines) == ask(german, *lines)
