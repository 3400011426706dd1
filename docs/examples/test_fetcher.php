<?php // Run: php test_fetcher.php
require __DIR__ . "/fetcher.php"; // the program under test

$command = "exec python3 -m popart.testing --control --exit-with-parent";
$process = proc_open($command, [1 => ["pipe", "w"]], $pipes);
$server = json_decode(fgets($pipes[1]));
function control(string $method, string $path, mixed $body = null): array {
    global $server;
    $sign = "Authorization: Bearer $server->token";
    $header = [$sign, "Content-Type: application/json"];
    $content = $body === null ? "" : json_encode($body);
    $http = ["method" => $method, "header" => $header, "content" => $content];
    $context = stream_context_create(["http" => $http]);
    $answer = file_get_contents($server->control . $path, false, $context);
    return json_decode($answer, true);
}

control("POST", "/messages/alice", ["message" => "Subject: one\n\nfirst\n"]);
control("POST", "/faults", ["fault" => "drop", "command" => "RETR", "after" => 10]);
try { $broken = fetch($server->port); } catch (Exception) { $broken = null; }
control("POST", "/wait", ["since_last_call" => true]);
$left = control("GET", "/messages/alice");
$messages = fetch($server->port);
control("POST", "/wait", ["since_last_call" => true]);
$end = [control("GET", "/messages/alice"), control("GET", "/faults")];
$expected = [null, 1, ["Subject: one\r\n\r\nfirst\r\n"], [[], []]];
if ([$broken, count($left), $messages, $end] !== $expected) exit(1);
