// The AI SDK (`ai`) over its providers for OpenAI (both protocols), Anthropic and compatible servers.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, embedMany, generateText, stepCountIs, streamText, tool } from "ai";
import { Forecast, apiKey, askWeather, baseURL, failure, question, report, result } from "./common.mjs";

globalThis.AI_SDK_LOG_WARNINGS = false;
const url = `${baseURL}/v1`;
const openai = createOpenAI({ baseURL: url, apiKey });
const anthropic = createAnthropic({ baseURL: url, apiKey });
const compatible = createOpenAICompatible({
  name: "gateway", baseURL: url, apiKey, includeUsage: true, supportsStructuredOutputs: true,
});
const providers = {
  chat: (model) => openai.chat(model),
  responses: (model) => openai.responses(model),
  messages: (model) => anthropic(model),
  compatible: (model) => compatible(model),
};
const once = { maxRetries: 0, onError: () => {} };

async function shown(done) {
  const [text, finish, usage] = await Promise.all([done.text, done.finishReason, done.usage]);
  const cached = usage.inputTokenDetails.cacheReadTokens;
  return { text, finish, input: usage.inputTokens, output: usage.outputTokens, cached };
}

async function tools(model, start) {
  const seen = [];
  const execute = (given) => (seen.push(given), result);
  const get_weather = tool({ description: "The weather.", inputSchema: Forecast, execute });
  const done = start({ model, prompt: askWeather, tools: { get_weather }, stopWhen: stepCountIs(3), ...once });
  return { text: await (await done).text, arguments: seen };
}

// Reasoning models. `store`: the provider is to keep what it said, and is sent references to it.
const thinking = (store) => ({ openai: { store, forceReasoning: true, reasoningEffort: "low", reasoningSummary: "auto" } });

async function think(model, store) {
  const seen = [];
  const execute = (given) => (seen.push(given), result);
  const get_weather = tool({ description: "The weather.", inputSchema: Forecast, execute });
  const more = { tools: { get_weather }, stopWhen: stepCountIs(3), providerOptions: thinking(store), ...once };
  const done = await generateText({ model, prompt: askWeather, ...more });
  return { thought: done.steps[0].reasoningText, text: done.text, arguments: seen };
}

async function talk(model, store) {
  const messages = [{ role: "user", content: question }];
  const more = { providerOptions: thinking(store), ...once };
  const first = await generateText({ model, messages, ...more });
  messages.push(...first.responseMessages, { role: "user", content: "Are you sure?" });
  return [first.text, (await generateText({ model, messages, ...more })).text];
}

async function broken(model) {
  let seen = "";
  let failed = false;
  for await (const part of streamText({ model, prompt: "it breaks-off", ...once }).fullStream) {
    if (part.type === "text-delta") seen += part.text;
    failed ||= part.type === "error";
  }
  if (!failed) throw new Error(`it ended as if it were whole, after ${JSON.stringify(seen)}`);
  return seen;
}

async function refused(model, prompt) {
  const error = await failure(() => generateText({ model, prompt, ...once }));
  return [APICallError.isInstance(error), error.statusCode, error.isRetryable];
}

const scenarios = {};
for (const [name, connect] of Object.entries(providers)) {
  Object.assign(scenarios, {
    [`${name}.whole`]: async (id) => shown(await generateText({ model: connect(id), prompt: question, ...once })),
    [`${name}.stream`]: async (id) => shown(streamText({ model: connect(id), prompt: question, ...once })),
    [`${name}.tools`]: (id) => tools(connect(id), generateText),
    [`${name}.toolsStream`]: (id) => tools(connect(id), streamText),
    [`${name}.form`]: async (id) => {
      const output = Output.object({ schema: Forecast });
      return (await generateText({ model: connect(id), prompt: question, output, ...once })).output;
    },
    [`${name}.tooLong`]: (id) => refused(connect(id), "a too-long prompt"),
    [`${name}.rateLimited`]: (id) => refused(connect(id), "rate-limited"),
    [`${name}.broken`]: (id) => broken(connect(id)),
  });
}
Object.assign(scenarios, {
  "responses.think": (id) => think(openai.responses(id), false),
  "responses.thinkStored": (id) => think(openai.responses(id), true),
  "responses.talk": (id) => talk(openai.responses(id), false),
  "responses.talkStored": (id) => talk(openai.responses(id), true),
});
scenarios.embeddings = async (_, wire) => {
  if (!["gemini", "converse", "cohere", "ollama"].includes(wire)) return null;
  const model = openai.embedding(`embed-${wire}`);
  return (await embedMany({ model, values: ["first", "second"], ...once })).embeddings;
};
await report(scenarios);
