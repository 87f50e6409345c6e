// Drives OpenAI's own client for Node, and prints what it saw.
import { createRequire } from "node:module";
import { join } from "node:path";

// The package lies in the folder that this runs in.
const require = createRequire(join(process.cwd(), "package.json"));
const { OpenAI, toFile } = require("openai");
const { VERSION } = require("openai/version");

const GPT = "gpt-5-mini";
const EMBEDDING = "text-embedding-3-small";
const CHAT = "/v1/chat/completions";
const ENDS = ["completed", "failed", "expired", "cancelled"];
const SECONDS = 60;
const client = new OpenAI({ timeout: SECONDS * 1000 });

const turns = (text) => [{ role: "user", content: text }];

function input(count) {
  const rows = [];
  for (let number = 0; number < count; number++) {
    const body = { model: GPT, messages: turns(`Say ${number}.`) };
    rows.push({ custom_id: `c${number}`, method: "POST", url: CHAT, body });
  }
  return rows.map((row) => JSON.stringify(row)).join("\n");
}

async function until(look, ends) {
  const deadline = Date.now() + SECONDS * 1000;
  let seen = await look();
  while (!ends.includes(seen.status) && Date.now() < deadline) {
    await new Promise((wake) => setTimeout(wake, 100));
    seen = await look();
  }
  return seen;
}

async function begin(count) {
  const file = await client.files.create({
    file: await toFile(Buffer.from(input(count)), "in.jsonl"),
    purpose: "batch",
    expires_after: { anchor: "created_at", seconds: 3600 },
  });
  await client.files.waitForProcessing(file.id, { pollInterval: 100, maxWait: SECONDS * 1000 });
  return client.batches.create({
    input_file_id: file.id,
    endpoint: CHAT,
    completion_window: "24h",
    metadata: { from: "node" },
  });
}

const PARTS = {
  async files() {
    const ids = [];
    for (const text of ["one", "two"]) {
      const file = await toFile(Buffer.from(text), `${text}.txt`);
      ids.push((await client.files.create({ file, purpose: "user_data" })).id);
    }
    const listed = [];
    for await (const file of client.files.list({ limit: 1 })) {
      if (ids.includes(file.id)) listed.push(file.id);
    }
    const content = await (await client.files.content(ids[1])).text();
    const deleted = await client.files.delete(ids[0]);
    const gone = await client.files.retrieve(ids[0]).catch((error) => error.status);
    const newest_first = listed.join() === [ids[1], ids[0]].join();
    return { newest_first, content, deleted: deleted.deleted, gone };
  },

  async batches() {
    const batch = await begin(3);
    const ended = await until(() => client.batches.retrieve(batch.id), ENDS);
    const text = await (await client.files.content(ended.output_file_id)).text();
    const rows = text.trim().split("\n").map((line) => JSON.parse(line));
    const other = await begin(1);
    const listed = [];
    for await (const one of client.batches.list({ limit: 1 })) {
      if ([batch.id, other.id].includes(one.id)) listed.push(one.id);
    }
    return {
      status: ended.status,
      counts: ended.request_counts,
      metadata: ended.metadata,
      ids: rows.map((row) => row.custom_id).sort(),
      newest_first: listed.join() === [other.id, batch.id].join(),
    };
  },

  async embeddings() {
    const packed = await client.embeddings.create({ model: EMBEDDING, input: ["Hi", "Ho"] });
    const plain = await client.embeddings.create({
      model: EMBEDDING,
      input: "Hi",
      encoding_format: "float",
    });
    const [one, other] = [packed.data[0].embedding, plain.data[0].embedding];
    const same = one.every((number, index) => Math.abs(number - other[index]) < 1e-6);
    return { count: packed.data.length, dimensions: one.length, same };
  },

  async chat() {
    const answer = await client.chat.completions.create({ model: GPT, messages: turns("Say 1.") });
    const stream = await client.chat.completions.create({
      model: GPT,
      messages: turns("Say 1."),
      stream: true,
    });
    let streamed = "";
    for await (const chunk of stream) streamed += chunk.choices[0]?.delta?.content ?? "";
    const text = answer.choices[0].message.content;
    return { text, streamed: streamed === text };
  },

  async responses() {
    const answer = await client.responses.create({ model: GPT, input: "Say 1." });
    let streamed = "";
    const stream = await client.responses.create({ model: GPT, input: "Say 1.", stream: true });
    for await (const event of stream) {
      if (event.type === "response.output_text.delta") streamed += event.delta;
    }
    return { text: answer.output_text, status: answer.status, streamed: streamed !== "" };
  },

  async background() {
    const begun = await client.responses.create({ model: GPT, input: "Say 1.", background: true });
    const ended = await until(() => client.responses.retrieve(begun.id), ["completed", "failed"]);
    const numbers = [];
    let last = null;
    const events = await client.responses.retrieve(begun.id, { stream: true, starting_after: 0 });
    for await (const event of events) {
      numbers.push(event.sequence_number);
      last = event.type;
    }
    return { status: ended.status, text: ended.output_text, after: Math.min(...numbers) > 0, last };
  },
};

const seen = { version: VERSION, node: process.version };
for (const name of process.argv.length > 2 ? process.argv.slice(2) : Object.keys(PARTS)) {
  seen[name] = await PARTS[name]().catch((error) => String(error));
}
console.log(JSON.stringify(seen, null, 1));
