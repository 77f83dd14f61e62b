// The official OpenAI SDK before `confide proxy`, where one byte of the first answer is altered on the way to it. One test a
// proxy: after its first failure it sends nothing more.

import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";

import { EMBEDDING_MODEL, HELLO, KEY, MODEL, SERVICE, thrown, thrownAfter } from "./service.mjs";

const client = new OpenAI({ baseURL: `${SERVICE}/v1`, apiKey: KEY, timeout: 20_000 });
const chat = { model: MODEL, messages: HELLO, max_tokens: 4 };
const completion = { model: MODEL, prompt: "Once upon", max_tokens: 4 };
const response = { model: MODEL, input: "Say hello.", max_output_tokens: 16 };

function assertRefused(error) {
  assert.ok(error instanceof OpenAI.InternalServerError);
  assert.match(error.message, /receipt-4/);
}

function assertBroken({ error, found }) {
  assert.ok(error instanceof OpenAI.APIError);
  assert.match(error.message, /receipt-4/);
  assert.ok(found.length > 0);
  assert.ok(!found.some((event) => ["response.completed", "response.incomplete"].includes(event.type)));
}

test("an altered chat", async () => assertRefused(await thrown(client.chat.completions.create(chat))));

test("an altered stream of a chat", async () =>
  assertBroken(await thrownAfter(await client.chat.completions.create({ ...chat, stream: true }))));

test("an altered completion", async () => assertRefused(await thrown(client.completions.create(completion))));

test("an altered stream of a completion", async () =>
  assertBroken(await thrownAfter(await client.completions.create({ ...completion, stream: true }))));

test("an altered response", async () => assertRefused(await thrown(client.responses.create(response))));

test("an altered stream of a response", async () =>
  assertBroken(await thrownAfter(await client.responses.create({ ...response, stream: true }))));

test("an altered response of the streaming helper", async () => {
  const error = await thrown(client.responses.stream(response).finalResponse());
  assert.ok(error instanceof OpenAI.APIError);
  assert.match(error.message, /receipt-4/);
});

test("an altered embedding", async () =>
  assertRefused(await thrown(client.embeddings.create({ model: EMBEDDING_MODEL, input: "One text." }))));
