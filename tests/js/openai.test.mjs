// The official OpenAI SDK for JavaScript against a live service with the real model.

import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

import { all, CITY, EMBEDDING_MODEL, HELLO, KEY, MODEL, SERVICE, WEATHER } from "./service.mjs";

const client = new OpenAI({ baseURL: `${SERVICE}/v1`, apiKey: KEY, maxRetries: 0, timeout: 60_000 });
const Apple = z.object({ colour: z.enum(["red", "green", "yellow"]), is_ripe: z.boolean() });
const CHAT_TOOL = { type: "function", function: { name: "get_weather", parameters: CITY } };
const CHAT_NAMED = { type: "function", function: { name: "get_weather" } };
const TOOL = { type: "function", name: "get_weather", parameters: CITY, strict: true };
const NAMED = { type: "function", name: "get_weather" };

test("models are listed and retrieved", async () => {
  const listed = await all(client.models.list());
  assert.ok(listed.some((model) => model.id === MODEL));
  assert.equal((await client.models.retrieve(MODEL)).id, MODEL);
});

test("a chat has its text, its counts and its receipt", async () => {
  const { data: answer, response } = await client.chat.completions
    .create({ model: MODEL, messages: HELLO, max_tokens: 8 })
    .withResponse();
  assert.ok(answer.choices[0].message.content);
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
  assert.match(response.headers.get("x-receipt-id"), /^rcpt/);
});

test("a streamed chat says what the buffered one says", async () => {
  const asked = { model: MODEL, messages: HELLO, max_tokens: 8, temperature: 0 };
  const buffered = await client.chat.completions.create(asked);
  const options = { include_usage: true };
  const chunks = await all(await client.chat.completions.create({ ...asked, stream: true, stream_options: options }));
  const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
  assert.equal(text, buffered.choices[0].message.content);
  assert.deepEqual(chunks.at(-1).usage, buffered.usage);
});

test("the streaming helper of chats gives the whole answer", async () => {
  const stream = client.chat.completions.stream({ model: MODEL, messages: HELLO, max_tokens: 8 });
  let text = "";
  stream.on("content", (delta) => (text += delta));
  const answer = await stream.finalChatCompletion();
  assert.ok(text);
  assert.equal(answer.choices[0].message.content, text);
});

test("a tool is called by a chat and its result goes back", async () => {
  const asked = { model: MODEL, tools: [CHAT_TOOL], max_tokens: 64 };
  const answer = await client.chat.completions.create({ ...asked, messages: WEATHER, tool_choice: CHAT_NAMED });
  assert.equal(answer.choices[0].finish_reason, "tool_calls");
  const [call] = answer.choices[0].message.tool_calls;
  assert.ok(["Paris", "Rome"].includes(JSON.parse(call.function.arguments).city));
  const result = { role: "tool", tool_call_id: call.id, content: "21 degrees" };
  const messages = [...WEATHER, answer.choices[0].message, result];
  const after = await client.chat.completions.create({ ...asked, messages, tool_choice: "none", max_tokens: 8 });
  assert.ok(after.choices[0].message.content);
});

test("a streamed tool call of a chat is put together", async () => {
  const asked = { model: MODEL, messages: WEATHER, tools: [CHAT_TOOL], tool_choice: CHAT_NAMED, max_tokens: 64 };
  const answer = await client.chat.completions.stream(asked).finalChatCompletion();
  const [call] = answer.choices[0].message.tool_calls;
  assert.equal(call.function.name, "get_weather");
  assert.ok(JSON.parse(call.function.arguments).city);
});

test("a tool is run by the SDK's own runner", async () => {
  const asked = [];
  const run = ({ city }) => {
    asked.push(city);
    return "21 degrees";
  };
  const tool = { ...CHAT_TOOL, function: { ...CHAT_TOOL.function, function: run, parse: JSON.parse } };
  const runner = client.chat.completions.runTools({
    model: MODEL,
    messages: WEATHER,
    tools: [tool],
    tool_choice: CHAT_NAMED,
    max_tokens: 64,
  });
  await runner.done();
  assert.equal(asked.length, 1);
});

test("a structured chat is parsed", async () => {
  const response_format = zodResponseFormat(Apple, "apple");
  const asked = { model: MODEL, messages: HELLO, response_format, max_tokens: 64 };
  const answer = await client.chat.completions.parse(asked);
  assert.ok(["red", "green", "yellow"].includes(answer.choices[0].message.parsed.colour));
  const streamed = await client.chat.completions.stream(asked).finalChatCompletion();
  assert.equal(typeof streamed.choices[0].message.parsed.is_ripe, "boolean");
});

test("a completion is buffered and streamed alike", async () => {
  const asked = { model: MODEL, prompt: "The capital of France", max_tokens: 6, temperature: 0 };
  const buffered = await client.completions.create(asked);
  assert.ok(buffered.choices[0].text);
  const chunks = await all(await client.completions.create({ ...asked, stream: true }));
  assert.equal(chunks.map((chunk) => chunk.choices[0]?.text ?? "").join(""), buffered.choices[0].text);
});

test("a response has its text and its counts", async () => {
  const response = await client.responses.create({ model: MODEL, input: "Say hello.", max_output_tokens: 16 });
  assert.match(response.id, /^resp_/);
  assert.ok(response.output_text);
  assert.equal(response.usage.total_tokens, response.usage.input_tokens + response.usage.output_tokens);
});

test("a streamed response is told event by event", async () => {
  const asked = { model: MODEL, input: "Say hello.", max_output_tokens: 16 };
  const events = await all(await client.responses.create({ ...asked, stream: true }));
  assert.deepEqual(events.map((event) => event.sequence_number), events.map((_, number) => number));
  assert.equal(events[0].type, "response.created");
  assert.ok(["response.completed", "response.incomplete"].includes(events.at(-1).type));
  const texts = events.filter((event) => event.type === "response.output_text.delta").map((event) => event.delta);
  assert.equal(events.at(-1).response.output[0].content[0].text, texts.join(""));
});

test("the streaming helper of responses gives the whole response", async () => {
  const stream = client.responses.stream({ model: MODEL, input: "Say hello.", max_output_tokens: 16 });
  const kinds = (await all(stream)).map((event) => event.type);
  assert.ok(kinds.includes("response.output_text.delta"));
  assert.ok((await stream.finalResponse()).output_text);
});

test("a tool is called by a response and its result goes back", async () => {
  const asked = { model: MODEL, tools: [TOOL], max_output_tokens: 64 };
  const response = await client.responses.create({ ...asked, input: WEATHER, tool_choice: NAMED });
  const [call] = response.output;
  assert.equal(call.type, "function_call");
  assert.ok(["Paris", "Rome"].includes(JSON.parse(call.arguments).city));
  const output = { type: "function_call_output", call_id: call.call_id, output: "21 degrees" };
  const after = await client.responses.create({ ...asked, input: [...WEATHER, call, output], tool_choice: "none" });
  assert.ok(after.output_text);
});

test("a structured response is parsed", async () => {
  const text = { format: zodTextFormat(Apple, "apple") };
  const response = await client.responses.parse({ model: MODEL, input: HELLO, text, max_output_tokens: 64 });
  assert.equal(typeof response.output_parsed.is_ripe, "boolean");
});

test("the embedding of a text is the same in both encodings", async () => {
  const asked = { model: EMBEDDING_MODEL, input: ["One text.", "Another."] };
  const byDefault = await client.embeddings.create(asked);
  const floats = await client.embeddings.create({ ...asked, encoding_format: "float" });
  const { data } = await client.embeddings.create({ ...asked, encoding_format: "base64" });
  assert.deepEqual(byDefault.data.map((each) => each.embedding.length), [384, 384]);
  for (const [index, { embedding }] of data.entries()) {
    const raw = Buffer.from(embedding, "base64");
    const single = Array.from({ length: 384 }, (_, place) => raw.readFloatLE(4 * place));
    assert.deepEqual(Array.from(byDefault.data[index].embedding), single);
    assert.deepEqual(floats.data[index].embedding.map(Math.fround), single);
  }
  assert.ok(floats.usage.total_tokens > 0);
});
