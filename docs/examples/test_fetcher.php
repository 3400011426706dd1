<?php // Run: php test_fetcher.php
function fetch(int $port): array { // the program under test
    $socket = fsockopen("127.0.0.1", $port, $code, $text, 10);
    $read = fn() => rtrim(fgets($socket) ?: throw new Exception("the connection ended"), "\r\n");
    $ask = function (string $command = "") use ($socket, $read) {
        if ($command !== "") fwrite($socket, "$command\r\n");
        return str_starts_with($line = $read(), "+OK") ? $line : throw new Exception($line);
    };
    $messages = [];
    foreach (["", "USER alice", "PASS secret"] as $command) $ask($command);
    $count = (int) explode(" ", $ask("STAT"))[1];
    for ($number = 1; $number <= $count; $number++) {
        $ask("RETR $number");
        for ($text = ""; ($line = $read()) !== "."; ) $text .= preg_replace("/^\./", "", $line) . "\r\n";
        $messages[] = $text;
        $ask("DELE $number");
    }
    $ask("QUIT");
    return $messages;
}

$process = proc_open("exec python3 -m popart.testing --control --exit-with-parent", [1 => ["pipe", "w"]], $pipes);
$server = json_decode(fgets($pipes[1]));
function control(string $method, string $path, mixed $body = null): array {
    global $server;
    $header = ["Authorization: Bearer $server->token", "Content-Type: application/json"];
    $http = ["method" => $method, "header" => $header, "content" => $body === null ? "" : json_encode($body)];
    return json_decode(file_get_contents($server->control . $path, false, stream_context_create(["http" => $http])), true);
}

control("POST", "/messages/alice", ["message" => "Subject: one\n\nfirst\n"]);
control("POST", "/faults", ["fault" => "drop", "command" => "RETR", "after" => 10]);
try { $broken = fetch($server->port); } catch (Exception) { $broken = null; }
control("POST", "/wait", ["since_last_call" => true]);
$left = control("GET", "/messages/alice");
$messages = fetch($server->port);
control("POST", "/wait", ["since_last_call" => true]);
$end = [control("GET", "/messages/alice"), control("GET", "/faults")];
if ([$broken, count($left), $messages, $end] !== [null, 1, ["Subject: one\r\n\r\nfirst\r\n"], [[], []]]) exit(1);
