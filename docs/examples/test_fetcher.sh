#!/bin/sh
# Run: sh test_fetcher.sh
set -eu

fetch() {  # the program under test: it fetches message 1, and deletes it
    curl -s --output fetched "$server/1" &&
        curl -s --request 'DELE 1' --head "$server" >/dev/null
}

control() {  # METHOD PATH [JSON]
    curl -s --fail-with-body -X "$1" \
        -H "Authorization: Bearer $token" -H 'Content-Type: application/json' \
        ${3:+--data "$3"} "$url$2"
}

cd "$(mktemp -d)"
token=any-word
mkfifo first
python3 -m popart.testing --control --token "$token" --exit-with-parent >first &
read -r line <first
url=$(printf '%s' "$line" | sed 's/.*"control": "\([^"]*\)".*/\1/')
address=$(printf '%s' "$line" | sed 's/.*"url": "pop3:\/\/\([^"]*\)".*/\1/')
server=pop3://alice:secret@$address

control POST /messages/alice '{"message": "Subject: one\n\nfirst\n"}'
control POST /faults '{"fault": "drop", "command": "RETR", "after": 10, "how": "reset"}'

if fetch; then echo 'the loss of the connection went unnoticed'; exit 1; fi
control POST /wait '{"since_last_call": true}'
control GET /messages/alice | grep -q unique_id ||
    { echo 'the message is lost'; exit 1; }

fetch
control POST /wait '{"since_last_call": true}'
[ "$(control GET /messages/alice)" = '[]' ] || { control GET /transcript; exit 1; }
[ "$(control GET /faults)" = '[]' ]
grep -q first fetched
control POST /stop
wait
