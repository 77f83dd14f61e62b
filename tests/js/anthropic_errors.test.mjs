// Which class of the official Anthropic SDK each failure becomes. The service serves one request at a time, keeps none
// waiting, takes small bodies, and its engine breaks off half-way, then hangs.

import assert from "node:assert/strict";
import { test } from "node:test";
import Anthropic from "@anthropic-ai/sdk";

import { HELLO, KEY, MODEL, SERVICE, thrown, thrownAfter } from "./service.mjs";

const options = { baseURL: SERVICE, maxRetries: 0, timeout: 20_000 };
const client = new Anthropic({ ...options, apiKey: KEY });
const asked = { model: MODEL, max_tokens: 8, messages: HELLO };

test("what is asked wrongly is a bad request that names the member", async () => {
  const error = await thrown(client.messages.create({ ...asked, max_tokens: 0 }));
  assert.ok(error instanceof Anthropic.BadRequestError);
  assert.equal(error.error.error.type, "invalid_request_error");
  assert.match(error.message, /max_tokens/);
});

test("a wrong key is an authentication error", async () => {
  const error = await thrown(new Anthropic({ ...options, apiKey: "wrong" }).messages.create(asked));
  assert.ok(error instanceof Anthropic.AuthenticationError);
  assert.equal(error.error.error.type, "authentication_error");
});

test("an unknown model is not found", async () => {
  const error = await thrown(client.messages.create({ ...asked, model: "vendor/other" }));
  assert.ok(error instanceof Anthropic.NotFoundError);
});

test("a body over the limit is a status error", async () => {
  const error = await thrown(client.messages.create({ ...asked, system: "a".repeat(2000) }));
  assert.ok(error instanceof Anthropic.APIError);
  assert.deepEqual([error.status, error.error.error.type], [413, "request_too_large"]);
});

test("a stream that breaks off throws after what came", async () => {
  const { error, found } = await thrownAfter(await client.messages.create({ ...asked, stream: true }));
  assert.ok(error instanceof Anthropic.APIError);
  assert.equal(error.error.error.type, "api_error");
  assert.equal(found.at(-1).delta.text, "half an ans");
});

test("a service that is full is a rate limit that says when to come back", async () => {
  const running = await client.messages.create({ ...asked, stream: true });
  const error = await thrown(client.messages.create(asked));
  running.controller.abort();
  assert.ok(error instanceof Anthropic.RateLimitError);
  assert.ok(Number(error.headers.get("retry-after")) >= 1);
});
