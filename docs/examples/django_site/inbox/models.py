import uuid
from email.message import EmailMessage

from django.conf import settings
from django.db import models

import popart


class Message(models.Model):
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    uid = models.UUIDField(default=uuid.uuid4, unique=True)
    size = models.PositiveIntegerField()
    octets = models.BinaryField()

    @classmethod
    def deliver(cls, owner, message: EmailMessage):
        # Store the message as POP3 sends it: its length is then the size to announce.
        octets = popart.wire_form(message.as_bytes())
        return cls.objects.create(owner=owner, size=len(octets), octets=octets)


class MaildropLock(models.Model):
    owner = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    holder = models.UUIDField(null=True)
    expires = models.DateTimeField()
