<?php // Run: php test_fetcher.php
function fetch(int $port): array { // the program under test
    $socket = fsockopen("127.0.0.1", $port, $code, $text, 10);
    $get = fn() => fgets($socket) ?: throw new Exception("the connection ended");
    $read = fn() => rtrim($get(), "\r\n");
    $ask = function (string $command = "") use ($socket, $read) {
        if ($command !== "") fwrite($socket, "$command\r\n");
        $line = $read();
        return str_starts_with($line, "+OK") ? $line : throw new Exception($line);
    };
    $messages = [];
    foreach (["", "USER alice", "PASS secret"] as $command) $ask($command);
    $count = (int) explode(" ", $ask("STAT"))[1];
    for ($number = 1; $number <= $count; $number++) {
        $ask("RETR $number");
        for ($text = ""; ($line = $read()) !== "."; ) {
            $text .= preg_replace("/^\./", "", $line) . "\r\n";
        }
        $messages[] = $text;
        $ask("DELE $number");
    }
    $ask("QUIT");
    return $messages;
}

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
