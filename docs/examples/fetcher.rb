require "net/pop"

# Fetch all messages, and delete them from the server.
def fetch(port)
  Net::POP3.delete_all("127.0.0.1", port, "alice", "secret") do |message|
    yield message.pop
  end
end
