#!/bin/sh
# getmail's own Maildir delivery refuses to run as root.
set -eu
retriever=SimplePOP3Retriever
[ -z "$POP3_CA" ] || retriever=SimplePOP3SSLRetriever
cat >"$HOME/getmailrc" <<END
[retriever]
type = $retriever
server = localhost
port = $POP3_PORT
username = alice
password = $POP3_PASSWORD
use_apop = $([ "$POP3_AUTH" = APOP ] && echo true || echo false)
timeout = 30
${POP3_CA:+ca_certs = $POP3_CA}
[destination]
type = MDA_external
path = /bin/sh
arguments = ("-c", "cat >\$(mktemp $INBOX/XXXXXX)")
allow_root_commands = true
[options]
read_all = false
delete = $([ "$POP3_ACTION" = delete ] && echo true || echo false)
delivered_to = false
received = false
END
getmail --quiet --getmaildir="$HOME" --rcfile="$HOME/getmailrc"
