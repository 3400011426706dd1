import poplib

client = poplib.POP3("127.0.0.1", 1100)
client.user("alice")
client.pass_("secret")
count, octets = client.stat()
print(count, "messages,", octets, "octets")
for number in range(1, count + 1):
    answer, lines, octets = client.retr(number)
    print(b"\n".join(lines).decode())
    print("-" * 20)
client.quit()
