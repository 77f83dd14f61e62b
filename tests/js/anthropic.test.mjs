// The official Anthropic SDK for JavaScript against a live service with the real model.

import assert from "node:assert/strict";
import { test } from "node:test";
import Anthropic from "@anthropic-ai/sdk";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import { z } from "zod";

import { all, CITY, HELLO, KEY, MODEL, SERVICE, WEATHER } from "./service.mjs";

const client = new Anthropic({ baseURL: SERVICE, apiKey: KEY, maxRetries: 0, timeout: 60_000 });
const Apple = z.object({ colour: z.enum(["red", "green", "yellow"]), is_ripe: z.boolean() });
const TOOL = { name: "get_weather", description: "The weather in a city.", input_schema: CITY };
const NAMED = { type: "tool", name: "get_weather" };

test("a message has its text, its counts and its receipt", async () => {
  const { data: message, response } = await client.messages
    .create({ model: MODEL, max_tokens: 8, messages: HELLO, system: "Be brief." })
    .withResponse();
  assert.match(message.id, /^msg_/);
  assert.equal(message.content[0].type, "text");
  assert.ok(message.content[0].text);
  assert.ok(message.usage.input_tokens > 0 && message.usage.output_tokens > 0);
  assert.match(response.headers.get("x-receipt-id"), /^rcpt/);
});

test("a streamed message is told event by event", async () => {
  const events = await all(await client.messages.create({ model: MODEL, max_tokens: 8, messages: HELLO, stream: true }));
  const kinds = events.map((event) => event.type);
  assert.equal(kinds[0], "message_start");
  assert.deepEqual(kinds.slice(-2), ["message_delta", "message_stop"]);
  assert.ok(kinds.includes("content_block_delta"));
});

test("the streaming helper gives the whole message", async () => {
  let text = "";
  const stream = client.messages.stream({ model: MODEL, max_tokens: 8, messages: HELLO });
  stream.on("text", (delta) => (text += delta));
  const message = await stream.finalMessage();
  assert.ok(text);
  assert.equal(message.content[0].text, text);
  assert.ok(message.usage.output_tokens > 0);
});

test("a tool is called and its result goes back", async () => {
  const asked = { model: MODEL, max_tokens: 64, tools: [TOOL] };
  const message = await client.messages.create({ ...asked, messages: WEATHER, tool_choice: NAMED });
  assert.equal(message.stop_reason, "tool_use");
  const [call] = message.content;
  assert.ok(["Paris", "Rome"].includes(call.input.city));
  const result = { type: "tool_result", tool_use_id: call.id, content: "21 degrees" };
  const messages = [
    ...WEATHER,
    { role: "assistant", content: message.content },
    { role: "user", content: [result, { type: "text", text: "And in short?" }] },
  ];
  const after = await client.messages.create({ ...asked, max_tokens: 8, messages, tool_choice: { type: "none" } });
  assert.equal(after.content[0].type, "text");
});

test("a streamed tool call is put together", async () => {
  const asked = { model: MODEL, max_tokens: 64, messages: WEATHER, tools: [TOOL], tool_choice: { type: "any" } };
  const message = await client.messages.stream(asked).finalMessage();
  assert.ok(["Paris", "Rome"].includes(message.content[0].input.city));
});

test("a structured message is parsed", async () => {
  const output_config = { format: zodOutputFormat(Apple) };
  const message = await client.messages.parse({ model: MODEL, max_tokens: 64, messages: HELLO, output_config });
  assert.equal(typeof message.parsed_output.is_ripe, "boolean");
});

test("tokens are counted as they will be", async () => {
  const asked = { model: MODEL, messages: HELLO, system: "Be brief." };
  const counted = await client.messages.countTokens(asked);
  const message = await client.messages.create({ ...asked, max_tokens: 1 });
  assert.equal(counted.input_tokens, message.usage.input_tokens);
});
