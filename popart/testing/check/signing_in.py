"""The checks of who is let in, and of what is printed."""

from __future__ import annotations

import secrets
from contextlib import suppress
from dataclasses import replace
from itertools import permutations

from popart.sasl import BUILT_IN
from popart.testing.check.bench import Bench, Snapshot, Visitor
from popart.testing.check.client import Credentials, StopError
from popart.testing.check.report import in_brackets
from popart.testing.check.second_user import second_user

_TOKENS = ("XOAUTH2", "OAUTHBEARER")
_SECRETS = {"PASS": "password", "APOP": "digest", "SCRAM-SHA-256": "password"}


def check_sign_in(bench: Bench) -> None:
    """Try wrong secrets, and names that nobody has."""
    if bench.options.any_secret:
        bench.report.note("Without --password and --token anybody is let in, so no wrong password has been tried.")
        return
    right, marker = bench.credentials, bench.output.marker
    what = _SECRETS.get(right.way, "token")
    nobody = f"nobody-{secrets.token_hex(4)}"
    with bench.serving():
        refusals = [
            _try(bench, replace(right, secret=wrong), f"A wrong {what} is taken", name)
            for name, wrong in _wrong(right, marker, what).items()
        ]
        stranger = _try(bench, replace(right, user=nobody), "An unknown user is let in", f"the {what} of another one")
        for pattern in ("'OR''='", "%", "*"):
            _try(bench, replace(right, user=pattern), "An unknown user is let in", f"the {what} of another one")
        bench.last_end = "a refused sign-in"
        with bench.session() as visitor:
            visitor.quit()
    if any(marker in refusal for refusal in refusals):
        bench.report.add(
            f"The refusal repeats the {what}",
            "it can be read on a screen, and in the client's log",
            "Say the same words to everybody",
        )
    elif refusals[0] != stranger.replace(nobody, right.user) and not (
        refusals[0].startswith("+OK") or stranger.startswith("+OK")
    ):
        bench.report.add(
            f"An unknown user is told apart from a wrong {what}, by {stranger}",
            "an attacker finds out which users exist, and guesses only their secrets",
            "Raise ReportableError with the same text for both",
        )


def _wrong(right: Credentials, marker: str, what: str) -> dict[str, str]:
    """Return secrets that are nearly right, and some that are often taken by mistake, by what a report calls them.

    The report must not show them: whoever sees what was changed knows the right secret.
    """
    secret = right.secret
    found = {
        f"a random {what}": marker,
        f"the {what} with an x after it": f"{secret}x",
        f"the {what} without its last character": secret[:-1],
        f"the {what} with its letters in the other case": secret.swapcase(),
        f"the {what} with a space after it": f"{secret} ",
        f"the {what} with a space before it": f" {secret}",
        "a piece of SQL": "' OR ''='",
    }
    if right.way == "PASS":
        found |= {f"a {what} that is not ASCII": "pässwörd", f"a {what} of 900 characters": "x" * 900}
    if right.way in _TOKENS:
        found = {name: wrong for name, wrong in found.items() if wrong.isprintable() and " " not in wrong}
    return {name: wrong for name, wrong in found.items() if wrong.strip() and wrong != secret}


def _try(bench: Bench, wrong: Credentials, what: str, secret: str) -> str:
    """Sign in, which must fail, and return the answer.  *secret* says what the wrong secret is."""
    events = bench.report.events
    with bench.visitor() as visitor:
        answer = visitor.sign_in(wrong)
        visitor.part()
    if answer.startswith("+OK"):
        _explain_taken(bench, what, f"{secret}, for {wrong.user}")
    elif not answer.startswith("-ERR [AUTH]") and bench.report.events == events:
        raise StopError(f"a wrong sign-in was answered {answer}")
    return answer


def _explain_taken(bench: Bench, what: str, how: str) -> None:
    bench.report.add(
        f"{what}: {how}",
        "anybody can read and delete the user's mail",
        "Compare the whole secret with that of this very user, by hmac.compare_digest, and raise ReportableError",
        kind=what,
    )


def check_other_ways(bench: Bench) -> None:
    """Try wrong secrets in the ways that the check does not sign in by."""
    if bench.options.any_secret:
        return
    right = bench.credentials
    for name in bench.mechanisms:
        if name not in BUILT_IN:
            bench.report.note(f"{name} is a mechanism of your own, and has not been tried: test it yourself.")
    tokens = [name for name in _TOKENS if name in bench.mechanisms and right.way not in _TOKENS][:1]
    passwords = ["PASS"] * bench.takes_user + ["SCRAM-SHA-256"] * ("SCRAM-SHA-256" in bench.mechanisms)
    with bench.serving():
        for way in [*tokens, *passwords]:
            if way != right.way:
                _try_other_way(bench, replace(right, way=way))


def _try_other_way(bench: Bench, right: Credentials) -> None:
    """Try a wrong secret in another way and, if the right one is known, that one as an unknown user."""
    what = "token" if right.way in _TOKENS else "password"
    known = what == "password" and not bench.options.is_token
    tries = {f"A wrong {what} is taken": replace(right, secret=bench.output.marker)}
    if known:
        tries["An unknown user is let in"] = replace(right, user=f"nobody-{secrets.token_hex(4)}")
    else:
        way = "USER" if right.way == "PASS" else right.way
        bench.report.note(f"{way} is offered, and has been tried with a wrong {what} alone: see --{what}.")
    for kind, wrong in tries.items():
        with bench.recorder.excusing() as failures, bench.visitor() as visitor:
            answer = visitor.sign_in(wrong)  # the service that checks a token may be out of reach
            visitor.part()
        if answer.startswith("+OK"):
            _explain_taken(bench, kind, f"by {right.way}, for {wrong.user}")
        elif not answer.startswith("-ERR [AUTH]"):
            bench.report.note(f"A wrong {what}, by {right.way}, was answered {answer}{in_brackets(failures)}.")


def check_retry(bench: Bench) -> None:
    """Try a wrong name and secret, and then, on the same connection, the right ones."""
    if bench.options.any_secret:
        return
    other = bench.options.other
    names = [f"nobody-{secrets.token_hex(4)}"] + ([] if other is None else [other.user])
    with bench.serving():
        earlier, before = bench.look_into(1), bench.look_into(1)
        if not _holds(earlier, before):
            return  # check_again has reported what each session changes
        for name in names:
            with bench.visitor() as visitor:
                wrong = visitor.sign_in(replace(bench.credentials, user=name, secret=bench.output.marker))
                if not wrong.startswith("-ERR [AUTH]"):
                    return  # that is found elsewhere
                _retry(bench, visitor, before)
                visitor.part()


def _retry(bench: Bench, visitor: Visitor, before: Snapshot) -> None:
    answer = visitor.sign_in(bench.credentials)
    now = visitor.look_into(1) if answer.startswith("+OK") else Snapshot()
    if not answer.startswith("+OK") or not _holds(before, now):
        bench.report.add(
            "A client that has tried a wrong name first does not get its mail by the right one: " + answer,
            "users who mistype have to restart their program, or see the mail of somebody else",
            "Keep of an attempt only what was right, and forget the rest",
        )


def _holds(before: Snapshot, now: Snapshot) -> bool:
    """Return whether all messages are still what they were."""
    return set(before.ids) <= set(now.ids) and not before.differing(now)


def check_two_secrets(bench: Bench) -> None:
    """Try each user's secret for the other one, and to act as the other by an authorization identity."""
    other = bench.options.other
    if other is None or bench.options.any_secret:
        return
    users = bench.credentials, second_user(bench, other)
    with bench.serving():
        if users[0].secret != users[1].secret:
            for own, foreign in permutations(users):
                wrong = replace(own, secret=foreign.secret)
                _try(bench, wrong, "Another user's secret is taken", f"that of {foreign.user}")
        if bench.credentials.way == "PASS" and "PLAIN" in bench.mechanisms:
            taken = [own.user for own, foreign in permutations(users) if _acts_as(bench, own, foreign.user)]
            _explain_identities(bench, taken)


def _acts_as(bench: Bench, own: Credentials, identity: str) -> bool:
    """Return whether a user may act as another one (RFC 4616)."""
    with bench.visitor() as visitor:
        answer = visitor.sign_in_as(own, identity)
        visitor.part()
    return answer.startswith("+OK")


def _explain_identities(bench: Bench, taken: list[str]) -> None:
    if len(taken) == 1:
        bench.report.note(f"{taken[0]} may act as the other user, by AUTH PLAIN: check that this is intended.")
    elif taken:
        bench.report.add(
            f"{taken[0]} may act as {taken[1]}, and {taken[1]} as {taken[0]}, by AUTH PLAIN",
            "each user reads, and deletes, what belongs to another one",
            "Let authorize raise ReportableError, unless this very user may act as that one",
        )


def check_output(bench: Bench) -> None:
    """Hold a session while nothing can be printed."""
    with bench.serving(), suppress(StopError), bench.nobody_reads_output(), bench.session() as visitor:
        for command in ("LIST", "UIDL") + ("RETR 1", "TOP 1 0") * bool(bench.first.sizes):
            visitor.data(command)
        visitor.quit()
