#!/bin/sh
# Without "sslproto ''" fetchmail would demand STLS.  Without "no rewrite" and --invisible it would change headers.
set -eu
tls="sslproto ''"
[ -z "$POP3_CA" ] || tls="ssl sslcertck sslcertfile '$POP3_CA'"
protocol=pop3
auth=any
case $POP3_AUTH in
    APOP) protocol=apop ;;
    CRAM-MD5) auth=cram-md5 ;;
esac
keep=keep
[ "$POP3_ACTION" = keep ] || keep=nokeep
cat >"$HOME/fetchmailrc" <<END
set no syslog
poll localhost service $POP3_PORT protocol $protocol auth $auth uidl timeout 30
    user alice password $POP3_PASSWORD $tls
    mda "/bin/sh -c 'cat >\$(mktemp $INBOX/XXXXXX)'"
    $keep no rewrite
END
chmod 600 "$HOME/fetchmailrc"
FETCHMAILHOME=$HOME fetchmail --fetchmailrc "$HOME/fetchmailrc" --invisible --silent ||
    [ $? -eq 1 ]  # there was no mail
