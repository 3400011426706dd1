#!/bin/sh
# mutt opens the maildrop as a folder and copies all messages.  To delete, it fetches them into its spool.  It also does
# so if the sign-in may fail, because then it forgets the keys that were pushed.  Python gives it a terminal, which must
# have a size.
set -eu
url="${POP3_CA:+pops}"
url="${url:-pop}://localhost:$POP3_PORT/"
folder="$INBOX/mail"
mkdir "$folder" "$folder/new" "$folder/cur" "$folder/tmp"
echo "$POP3_PASSWORD" >"$HOME/password"
mechanism=
[ -z "$POP3_AUTH" ] ||
    mechanism="set pop_authenticators=$POP3_AUTH pop_oauth_refresh_command='cat $HOME/password'"
cat >"$HOME/muttrc" <<END
set pop_host="$url" pop_user=alice pop_last=no
set pop_delete=$([ "$POP3_ACTION" = keep ] && echo no || echo yes)
set pop_pass='$POP3_PASSWORD'
$mechanism
set ssl_starttls=no ssl_force_tls=no certificate_file="$HOME/certificates"
${POP3_CERTIFICATE:+set ssl_client_cert=$POP3_CERTIFICATE}
set folder="$HOME" spoolfile="$folder" mbox_type=Maildir header_cache="$HOME/headers" message_cachedir=""
set confirmappend=no confirmcreate=no move=no quit=yes sleep_time=0 wait_key=no
${POP3_CA:+set ssl_ca_certificates_file=$POP3_CA}
END
if [ "$POP3_ACTION$POP3_AUTH" = keep ]; then
    opened=$url
    keys="<tag-pattern>~A<enter><tag-prefix><copy-message>$folder<enter><quit>"
else
    opened=$folder
    keys="<fetch-mail><quit>"
fi
timeout 40 python3 -c 'import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))' \
    sh -c 'stty rows 24 cols 80; exec "$@"' sh mutt -n -F "$HOME/muttrc" -f "$opened" -e "push '$keys'"
