<?php
/** Fetch all messages, and delete them from the server. */
function fetch(int $port): array {
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
