// node-pop3, from npm.
const fs = require('fs');
const path = require('path');
const Pop3Command = require('node-pop3');

const { INBOX, POP3_ACTION, POP3_CA, POP3_PASSWORD, POP3_PORT } = process.env;

async function read(client, ...command) {
  const [, stream] = await client.command(...command);
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  // The methods RETR and TOP decode all mail as UTF-8. Neither they nor command() remove stuffed dots or keep the last
  // line end.
  const text = Buffer.concat(chunks).toString('latin1').replace(/(^|\n)\.\./g, '$1.') + '\r\n';
  return Buffer.from(text, 'latin1');
}

async function main() {
  const client = new Pop3Command({
    user: 'alice',
    password: POP3_PASSWORD,
    host: 'localhost',
    port: Number(POP3_PORT),
    timeout: 30000,
    tls: POP3_CA !== '',
    tlsOptions: POP3_CA ? { ca: fs.readFileSync(POP3_CA) } : {},
  });
  for (const [number, uniqueId] of await client.UIDL()) {
    fs.writeFileSync(path.join(INBOX, uniqueId), await read(client, 'RETR', number));
    fs.writeFileSync(path.join(INBOX, `${uniqueId}.top`), await read(client, 'TOP', number, 0));
    if (POP3_ACTION === 'delete') await client.DELE(number);
  }
  await client.QUIT();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
