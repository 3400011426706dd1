import io
import signal
import uuid
from datetime import timedelta

from django.contrib.auth import authenticate
from django.core.management.base import BaseCommand
from django.db import connection, transaction
from django.utils import timezone

import popart
from inbox.models import MaildropLock, Message

LEASE = timedelta(minutes=15)


class DjangoHandler(popart.BaseHandler, popart.SupportsClose):
    def __init__(self):
        self.user = None
        self.messages = []
        self.holder = uuid.uuid4()

    # Signing in.

    def authenticate_pass(self, username, password):
        self.user = authenticate(username=username, password=password)
        if self.user is None:
            raise popart.ReportableError("wrong name or password")

    def lock_maildrop(self):
        now = timezone.now()
        MaildropLock.objects.get_or_create(owner=self.user, defaults={"expires": now})
        free = MaildropLock.objects.filter(owner=self.user, expires__lte=now)
        if not free.update(holder=self.holder, expires=now + LEASE):
            raise popart.ReportableError("another session has the maildrop")

    def renew_lock(self):
        lock = MaildropLock.objects.filter(owner=self.user, holder=self.holder)
        if not lock.update(expires=timezone.now() + LEASE):
            raise popart.ReportableError(
                "the lock has expired, sign in again", code="SYS/TEMP"
            )

    # Reading.

    def list_messages(self):
        messages = Message.objects.filter(owner=self.user).order_by("pk")
        self.messages = list(messages.values_list("pk", "size", "uid"))
        return [(size, uid.hex) for _, size, uid in self.messages]

    def get_message_reader(self, number):
        self.renew_lock()
        message = Message.objects.filter(pk=self.messages[number - 1][0]).first()
        if message is None:
            raise popart.ReportableError("the message is gone", code="SYS/PERM")
        return io.BytesIO(message.octets)

    # Leaving.

    def delete_messages(self, numbers):
        keys = [self.messages[number - 1][0] for number in numbers]
        with transaction.atomic():
            self.renew_lock()
            # Databases limit a query's parameters.
            for start in range(0, len(keys), 500):
                Message.objects.filter(pk__in=keys[start : start + 500]).delete()

    def unlock_maildrop(self):
        lock = MaildropLock.objects.filter(owner=self.user, holder=self.holder)
        lock.update(expires=timezone.now())

    def handle_session_error(self, error):
        print("session error:", repr(error))

    def close(self):
        connection.close()  # this thread's connection


class Command(BaseCommand):
    help = "Serve the users' messages by POP3."

    def add_arguments(self, parser):
        parser.add_argument("--port", type=int, default=1100)

    def handle(self, *args, port, **options):
        with popart.Server(("127.0.0.1", port), lambda peer: DjangoHandler()) as server:
            signal.signal(signal.SIGTERM, lambda *_: server.server_close())
            self.stdout.write(f"POP3 on port {server.server_address[1]}")
            self.stdout.flush()
            server.serve_forever()
