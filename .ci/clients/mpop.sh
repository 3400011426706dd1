#!/bin/sh
# mpop writes mechanisms in lower case.  The lines of its configuration are too short for tokens.
set -eu
echo "$POP3_PASSWORD" >"$HOME/password"
mkdir -p "$INBOX/new" "$INBOX/cur" "$INBOX/tmp"
tls="tls off"
[ -z "$POP3_CA" ] || tls="tls on
tls_starttls off
tls_trust_file $POP3_CA"
[ -z "$POP3_CERTIFICATE" ] || tls="$tls
tls_cert_file $POP3_CERTIFICATE
tls_key_file $POP3_CERTIFICATE"
cat >"$HOME/mpoprc" <<END
account popart
host localhost
port $POP3_PORT
timeout 30
user alice
passwordeval "cat $HOME/password"
auth $(echo "${POP3_AUTH:-user}" | tr A-Z a-z)
$tls
keep $([ "$POP3_ACTION" = keep ] && echo on || echo off)
uidls_file $HOME/unique-ids
received_header off
delivery maildir $INBOX
END
chmod 600 "$HOME/mpoprc"
mpop --file="$HOME/mpoprc" --quiet popart
