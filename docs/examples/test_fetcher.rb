# Run: ruby test_fetcher.rb
require "json"
require "minitest/autorun"
require "net/http"
require_relative "fetcher" # the program under test

class FetchTest < Minitest::Test
  def setup
    @output = IO.popen(%w[python3 -m popart.testing --control --exit-with-parent])
    @server = JSON.parse(@output.gets)
  end

  def teardown
    control("POST", "/stop")
    @output.close
  end

  def control(method, path, body = nil)
    headers = { "Authorization" => "Bearer #{@server["token"]}",
                "Content-Type" => "application/json" }
    url = URI(@server["control"])
    answer = Net::HTTP.start(url.host, url.port) do |http|
      http.send_request(method, path, body&.to_json, headers)
    end
    answer.is_a?(Net::HTTPSuccess) ? JSON.parse(answer.body) : flunk(answer.body)
  end

  def test_a_lost_connection_loses_no_mail
    control("POST", "/messages/alice", { message: "Subject: one\n\nfirst\n" })
    control("POST", "/faults", { fault: "drop", command: "RETR", after: 10 })
    assert_raises(EOFError) { fetch(@server["port"]) {} }
    control("POST", "/wait", { since_last_call: true })
    assert_equal 1, control("GET", "/messages/alice").size
    fetch(@server["port"]) { |mail| assert_equal "Subject: one\r\n\r\nfirst\r\n", mail }
    control("POST", "/wait", { since_last_call: true })
    assert_empty control("GET", "/messages/alice") + control("GET", "/faults")
  end
end
