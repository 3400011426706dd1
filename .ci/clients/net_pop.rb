# net/pop, a gem that comes with Ruby.
require 'net/pop'
require 'openssl'

client = Net::POP3.new('localhost', ENV['POP3_PORT'].to_i, ENV['POP3_AUTH'] == 'APOP')
client.read_timeout = 30
client.enable_ssl(OpenSSL::SSL::VERIFY_PEER, ENV['POP3_CA']) unless ENV['POP3_CA'].empty?
client.start('alice', ENV['POP3_PASSWORD']) do
  client.mails.each do |message|
    name = File.join(ENV['INBOX'], message.unique_id)
    File.binwrite(name, message.pop)
    File.binwrite("#{name}.top", message.top(0))
    message.delete if ENV['POP3_ACTION'] == 'delete'
  end
end
