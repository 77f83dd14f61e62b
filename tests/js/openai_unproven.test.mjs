// The official OpenAI SDK before `confide proxy`, in front of a service whose answers are altered on the way. One test a
// proxy: after its first failure it sends nothing more.

import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";

import { HELLO, KEY, MODEL, SERVICE, thrown, thrownAfter } from "./service.mjs";

const client = new OpenAI({ baseURL: `${SERVICE}/v1`, apiKey: KEY, timeout: 20_000 });
const asked = { model: MODEL, messages: HELLO };

test("a buffered answer that was altered is an error, and so is all that is asked then", async () => {
  for (let time = 0; time < 2; time += 1) {
    const error = await thrown(client.chat.completions.create(asked));
    assert.ok(error instanceof OpenAI.InternalServerError);
    assert.equal(error.status, 502);
    assert.match(error.message, /receipt-4: got sha256:/);
    assert.ok(!JSON.stringify(error).includes("43."));
  }
});

test("a stream that was altered throws where it should end", async () => {
  const { error, found } = await thrownAfter(await client.chat.completions.create({ ...asked, stream: true }));
  assert.ok(error instanceof OpenAI.APIError);
  assert.match(error.message, /receipt-4/);
  // What came before the end was unproven when it was shown.
  assert.equal(found.map((chunk) => chunk.choices[0].delta.content ?? "").join(""), "The answer is 43.");
});

test("the streaming helper gives no answer that was altered", async () => {
  const stream = client.chat.completions.stream(asked);
  const error = await thrown(stream.finalChatCompletion());
  assert.ok(error instanceof OpenAI.APIError);
  assert.match(error.message, /receipt-4/);
});
