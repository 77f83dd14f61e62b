// Which class of the official OpenAI SDK each failure becomes. The service serves one request at a time, keeps none
// waiting, takes small bodies, and its engine breaks off half-way, then hangs.

import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";

import { HELLO, KEY, MODEL, SERVICE, thrown, thrownAfter } from "./service.mjs";

const options = { baseURL: `${SERVICE}/v1`, maxRetries: 0, timeout: 20_000 };
const client = new OpenAI({ ...options, apiKey: KEY });
const asked = { model: MODEL, messages: HELLO };

test("what is asked wrongly is a bad request that names the member", async () => {
  const error = await thrown(client.chat.completions.create({ ...asked, temperature: 9 }));
  assert.ok(error instanceof OpenAI.BadRequestError);
  assert.deepEqual([error.status, error.param, error.type], [400, "temperature", "invalid_request_error"]);
});

test("a wrong key is an authentication error", async () => {
  const error = await thrown(new OpenAI({ ...options, apiKey: "wrong" }).chat.completions.create(asked));
  assert.ok(error instanceof OpenAI.AuthenticationError);
  assert.equal(error.code, "invalid_api_key");
});

test("an unknown model is not found", async () => {
  const error = await thrown(client.responses.create({ model: "vendor/other", input: "Hello" }));
  assert.ok(error instanceof OpenAI.NotFoundError);
  assert.equal(error.code, "model_not_found");
});

test("a body over the limit is a status error", async () => {
  const error = await thrown(client.completions.create({ model: MODEL, prompt: "a".repeat(2000) }));
  assert.ok(error instanceof OpenAI.APIError);
  assert.equal(error.status, 413);
});

test("a stream that breaks off throws after what came", async () => {
  const { error, found } = await thrownAfter(await client.chat.completions.create({ ...asked, stream: true }));
  assert.ok(error instanceof OpenAI.APIError);
  assert.equal(error.type, "upstream_error");
  assert.equal(found.at(-1).choices[0].delta.content, "half an ans");
});

test("a service that is full is a rate limit that says when to come back", async () => {
  const running = await client.chat.completions.create({ ...asked, stream: true });
  const error = await thrown(client.chat.completions.create(asked));
  running.controller.abort();
  assert.ok(error instanceof OpenAI.RateLimitError);
  assert.ok(Number(error.headers.get("retry-after")) >= 1);
});
