// Drives `ai` with `@ai-sdk/openai`: texts, streams, objects, vectors and batches.
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

// The packages lie in the folder that this runs in.
const require = createRequire(join(process.cwd(), "package.json"));
const load = (name) => import(pathToFileURL(require.resolve(name)));
const { createOpenAI } = await load("@ai-sdk/openai");
const ai = await load("ai");

const GPT = "gpt-5-mini";
const SECONDS = 60;
const provider = createOpenAI({ baseURL: process.env.OPENAI_BASE_URL });

async function until(batch, end) {
  const deadline = Date.now() + SECONDS * 1000;
  let state;
  do {
    state = await ai.experimental_getBatchStatus({ provider, batch });
    if (end(state.status)) break;
    await new Promise((wake) => setTimeout(wake, 200));
  } while (Date.now() < deadline);
  return state;
}

function begin(count) {
  const requests = [];
  for (let number = 0; number < count; number++) {
    requests.push({ id: `c${number}`, type: "text", model: GPT, prompt: `Say ${number}.` });
  }
  return ai.experimental_startBatch({ provider, requests });
}

const isOver = (status) => !["pending", "processing", "in_progress", "queued"].includes(status);

async function results(batch) {
  const rows = [];
  for await (const row of ai.experimental_getBatchResults({ provider, batch })) rows.push(row);
  return rows;
}

const PARTS = {
  async texts() {
    const answer = await ai.generateText({ model: provider(GPT), prompt: "Say 1." });
    let streamed = "";
    const stream = ai.streamText({ model: provider(GPT), prompt: "Say 1." });
    for await (const piece of stream.textStream) streamed += piece;
    const chat = await ai.generateText({ model: provider.chat(GPT), prompt: "Say 1." });
    return { text: answer.text, streamed: streamed !== "", chat: chat.text };
  },

  async vectors() {
    const model = provider.embedding("text-embedding-3-small");
    const { embeddings } = await ai.embedMany({ model, values: ["Hi", "Ho"] });
    return { dimensions: embeddings.map((vector) => vector.length) };
  },

  async batches() {
    const batch = await begin(3);
    const state = await until(batch, isOver);
    const rows = await results(batch);
    await begin(1);
    const page = await ai.experimental_listBatches({ provider, limit: 1 });
    const next = await ai.experimental_listBatches({ provider, limit: 1, cursor: page.nextCursor });
    return {
      status: state.status,
      ids: rows.map((row) => row.id).sort(),
      statuses: [...new Set(rows.map((row) => row.status))],
      texts: rows.map((row) => row.text).sort(),
      second_page: next.batches.map((one) => one.id ?? one.batchId).includes(batch.id ?? batch.batchId),
    };
  },

  async cancelled_batches() {
    const batch = await begin(200);
    await ai.experimental_cancelBatch({ provider, batch });
    const state = await until(batch, isOver);
    const rows = await results(batch);
    return {
      status: state.status,
      lines: new Set(rows.map((row) => row.id)).size,
      statuses: [...new Set(rows.map((row) => row.status))].sort(),
    };
  },
};

const seen = {
  version: require("ai/package.json").version,
  provider: require("@ai-sdk/openai/package.json").version,
};
for (const name of process.argv.length > 2 ? process.argv.slice(2) : Object.keys(PARTS)) {
  seen[name] = await PARTS[name]().catch((error) => String(error?.stack ?? error));
}
console.log(JSON.stringify(seen, null, 1));
