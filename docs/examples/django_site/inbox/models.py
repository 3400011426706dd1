import uuid
from email.message import EmailMessage
from email.policy import SMTP

from django.conf import settings
from django.db import models


class Message(models.Model):
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    uid = models.UUIDField(default=uuid.uuid4, unique=True)
    size = models.PositiveIntegerField()
    octets = models.BinaryField()

    @classmethod
    def deliver(cls, owner, message: EmailMessage):
        # With CRLF line ends, so that the length is the size that POP3 wants.
        octets = message.as_bytes(policy=SMTP)
        return cls.objects.create(owner=owner, size=len(octets), octets=octets)


class MaildropLock(models.Model):
    owner = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    holder = models.UUIDField(null=True)
    expires = models.DateTimeField()
