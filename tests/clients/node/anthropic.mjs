// The `@anthropic-ai/sdk`: messages whole and streamed, thinking, tools, forms, counts, failures.
import Anthropic from "@anthropic-ai/sdk";
import { betaZodTool } from "@anthropic-ai/sdk/helpers/beta/zod";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import { Forecast, apiKey, askWeather, baseURL, brokenOff, failure, question, report, result } from "./common.mjs";

const client = new Anthropic({ baseURL, apiKey, maxRetries: 0, timeout: 20_000 });
const ask = (model, content, more) => ({ model, max_tokens: 4096, messages: [{ role: "user", content }], ...more });
const textOf = (message) => message.content.find((block) => block.type === "text")?.text;
const shown = (message) => ({
  text: textOf(message),
  finish: message.stop_reason,
  total: message.usage.input_tokens + (message.usage.cache_read_input_tokens ?? 0) +
    (message.usage.cache_creation_input_tokens ?? 0) + message.usage.output_tokens,
  served: message.model,
});

async function runTools(model, more) {
  const seen = [];
  const run = (given) => (seen.push(given), result);
  const tool = betaZodTool({ name: "get_weather", description: "The weather.", inputSchema: Forecast, run });
  const thinking = { type: "enabled", budget_tokens: 2048 };
  const runner = client.beta.messages.toolRunner(ask(model, askWeather, { tools: [tool], thinking, ...more }));
  return { text: textOf(await runner.runUntilDone()), arguments: seen };
}

async function* texts(model, content) {
  for await (const event of client.messages.stream(ask(model, content))) {
    if (event.type === "content_block_delta" && event.delta.type === "text_delta") yield event.delta.text;
  }
}

await report({
  whole: async (model) => shown(await client.messages.create(ask(model, question))),
  stream: async (model) => shown(await client.messages.stream(ask(model, question)).finalMessage()),
  async thinking(model) {
    const thinking = { type: "enabled", budget_tokens: 2048 };
    const { content } = await client.messages.stream(ask(model, question, { thinking })).finalMessage();
    return content.filter((block) => block.type === "thinking").map((block) => block.thinking);
  },
  tools: (model) => runTools(model, { thread: false }),
  toolsStream: (model) => runTools(model, { thread: false, stream: true }),
  toolsInThread: (model) => runTools(model, {}),
  async form(model) {
    const output_config = { format: zodOutputFormat(Forecast) };
    return (await client.messages.parse(ask(model, question, { output_config }))).parsed_output;
  },
  async count(model) {
    const { messages } = ask(model, question);
    return (await client.messages.countTokens({ model, messages })).input_tokens > 3;
  },
  async tooLong(model) {
    const error = await failure(() => client.messages.create(ask(model, "a too-long prompt")));
    return [error.constructor.name, error.status, error.error.error.type];
  },
  async rateLimited(model) {
    const error = await failure(() => client.messages.create(ask(model, "rate-limited")));
    return [error.constructor.name, error.status, error.error.error.type];
  },
  broken: (model) => brokenOff(texts(model, "it breaks-off")),
});
