// Run: node --test test_fetcher.js
const assert = require("node:assert");
const { spawn } = require("node:child_process");
const { once } = require("node:events");
const { createInterface } = require("node:readline");
const { after, before, beforeEach, test } = require("node:test");
const { fetchMail } = require("./fetcher.js"); // the program under test

let server;

async function control(method, path, body) {
  const headers = {
    Authorization: `Bearer ${server.token}`,
    "Content-Type": "application/json",
  };
  const request = { method, headers, body: body && JSON.stringify(body) };
  const answer = await fetch(server.control + path, request);
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

before(async () => {
  const command = ["-m", "popart.testing", "--control", "--exit-with-parent"];
  const child = spawn("python3", command, { stdio: ["ignore", "pipe", "inherit"] });
  server = JSON.parse(await once(createInterface(child.stdout), "line"));
});
beforeEach(() => control("POST", "/reset"));
after(() => control("POST", "/stop"));

test("a lost connection loses no mail", async () => {
  await control("POST", "/messages/alice", { message: "Subject: one\n\nfirst\n" });
  await control("POST", "/faults", { fault: "drop", command: "RETR", after: 10 });
  await assert.rejects(fetchMail(server.port));
  await control("POST", "/wait", { since_last_call: true });
  assert.equal((await control("GET", "/messages/alice")).length, 1);
  assert.deepEqual(await fetchMail(server.port), ["Subject: one\r\n\r\nfirst\r\n"]);
  await control("POST", "/wait", { since_last_call: true });
  assert.deepEqual(await control("GET", "/messages/alice"), []);
});
