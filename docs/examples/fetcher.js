const net = require("node:net");
const { createInterface } = require("node:readline");

/** Fetch all messages, and delete them from the server. */
exports.fetchMail = async (port) => {
  const socket = net.connect(port, "127.0.0.1");
  const lines = createInterface({ input: socket })[Symbol.asyncIterator]();

  async function read() {
    const { value, done } = await lines.next();
    if (done) throw new Error("the connection ended");
    return value;
  }

  async function ask(command) {
    if (command) socket.write(`${command}\r\n`);
    const line = await read();
    if (!line.startsWith("+OK")) throw new Error(line);
    return line;
  }

  try {
    for (const command of ["", "USER alice", "PASS secret"]) await ask(command);
    const count = Number((await ask("STAT")).split(" ")[1]);
    const messages = [];
    for (let number = 1; number <= count; number++) {
      await ask(`RETR ${number}`);
      let message = "";
      for (let line = await read(); line !== "."; line = await read()) {
        message += line.replace(/^\./, "") + "\r\n";
      }
      messages.push(message);
      await ask(`DELE ${number}`);
    }
    await ask("QUIT");
    return messages;
  } finally {
    socket.destroy();
  }
};
