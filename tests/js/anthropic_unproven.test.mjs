// The official Anthropic SDK before `confide proxy`, in front of a service whose answers are altered on the way. One test
// a proxy: after its first failure it sends nothing more.

import assert from "node:assert/strict";
import { test } from "node:test";
import Anthropic from "@anthropic-ai/sdk";

import { HELLO, KEY, MODEL, SERVICE, thrown, thrownAfter } from "./service.mjs";

const client = new Anthropic({ baseURL: SERVICE, apiKey: KEY, timeout: 20_000 });
const asked = { model: MODEL, max_tokens: 8, messages: HELLO };

test("a buffered answer that was altered is an error, and so is all that is asked then", async () => {
  for (let time = 0; time < 2; time += 1) {
    const error = await thrown(client.messages.create(asked));
    assert.ok(error instanceof Anthropic.InternalServerError);
    assert.deepEqual([error.status, error.error.error.type], [502, "api_error"]);
    assert.match(error.error.error.message, /^receipt-4: got sha256:/);
    assert.ok(!JSON.stringify(error).includes("43."));
  }
});

test("a stream that was altered throws where it should end", async () => {
  const { error, found } = await thrownAfter(await client.messages.create({ ...asked, stream: true }));
  assert.ok(error instanceof Anthropic.APIError);
  assert.match(error.error.error.message, /^receipt-4/);
  const kinds = found.map((event) => event.type);
  assert.ok(kinds.includes("content_block_delta"));
  assert.ok(!kinds.includes("message_stop"));
});

test("the streaming helper gives no answer that was altered", async () => {
  const stream = client.messages.stream(asked);
  const error = await thrown(stream.finalMessage());
  assert.ok(error instanceof Anthropic.APIError);
  assert.match(error.error.error.message, /^receipt-4/);
});
