#!/bin/sh
# curl does not remember what it has fetched: it does what you tell it.
set -eu
url="${POP3_CA:+pop3s}"
url="${url:-pop3}://localhost:$POP3_PORT/"
user="alice:$POP3_PASSWORD"
options="${POP3_AUTH:+--login-options AUTH=$POP3_AUTH} ${POP3_INITIAL:+--sasl-ir}"
case $POP3_AUTH in
    APOP)
        options="--login-options AUTH=+APOP"
        ;;
    OAUTHBEARER | XOAUTH2)
        user=alice:
        options="$options --oauth2-bearer $POP3_PASSWORD"
        ;;
    EXTERNAL)
        user=alice:
        options="$options --cert $POP3_CERTIFICATE"
        ;;
esac
ask() {
    curl --silent --show-error --max-time 30 --user "$user" $options ${POP3_CA:+--cacert "$POP3_CA"} "$@"
}

# curl turns an empty listing into an empty line.
ask "$url" >"$HOME/listing"
count=$(grep -c '^[0-9]' "$HOME/listing" || true)
[ "$count" -eq 0 ] || ask "$url[1-$count]" --output "$INBOX/#1"
ask --request UIDL "$url" >"$HOME/unique-ids"
if [ "$POP3_ACTION" = delete ]; then
    for number in $(seq "$count" -1 1); do
        ask --head --request "DELE $number" "$url"
    done
fi
