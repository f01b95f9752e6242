// The `openai` SDK: chat completions and Responses, whole and streamed, tools, forms, failures.
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { Forecast, apiKey, askWeather, baseURL, brokenOff, failure, question, report, result } from "./common.mjs";

const client = new OpenAI({ baseURL: `${baseURL}/v1`, apiKey, maxRetries: 0, timeout: 20_000 });
const chat = (model, content, more) => ({ model, messages: [{ role: "user", content }], ...more });
const parameters = Forecast.toJSONSchema();

async function runTools(model, stream) {
  const seen = [];
  const run = (given) => (seen.push(given), result);
  const tool = { type: "function", function: { name: "get_weather", parameters, parse: JSON.parse, function: run } };
  const runner = client.chat.completions.runTools(chat(model, askWeather, { tools: [tool], stream }));
  return { text: await runner.finalContent(), arguments: seen };
}

async function responsesTools(model) {
  const input = [{ role: "user", content: askWeather }];
  const tools = [{ type: "function", name: "get_weather", parameters, strict: true }];
  const asked = { model, input, tools, store: false, include: ["reasoning.encrypted_content"] };
  const first = await client.responses.stream(asked).finalResponse();
  const calls = first.output.filter((item) => item.type === "function_call");
  const outputs = calls.map(({ call_id }) => ({ type: "function_call_output", call_id, output: result }));
  const second = await client.responses.stream({ ...asked, input: [...input, ...first.output, ...outputs] }).finalResponse();
  return { text: second.output_text, arguments: calls.map((call) => JSON.parse(call.arguments)) };
}

async function* chatTexts(model, content) {
  for await (const chunk of await client.chat.completions.create(chat(model, content, { stream: true }))) {
    for (const choice of chunk.choices) yield choice.delta.content ?? "";
  }
}

async function* responsesTexts(model, input) {
  for await (const event of await client.responses.create({ model, input, stream: true })) {
    if (event.type === "response.output_text.delta") yield event.delta;
    if (event.type === "response.failed") throw new Error("failed");
  }
}

await report({
  async chat(model) {
    const { choices, usage, model: served } = await client.chat.completions.create(chat(model, question));
    return { text: choices[0].message.content, finish: choices[0].finish_reason, total: usage.total_tokens, served };
  },
  async chatStream(model) {
    const stream = client.chat.completions.stream(chat(model, question, { stream_options: { include_usage: true } }));
    const { choices, usage, model: served } = await stream.finalChatCompletion();
    return { text: choices[0].message.content, finish: choices[0].finish_reason, total: usage.total_tokens, served };
  },
  chatTools: (model) => runTools(model, false),
  chatToolsStream: (model) => runTools(model, true),
  async chatForm(model) {
    const response_format = zodResponseFormat(Forecast, "forecast");
    const done = await client.chat.completions.parse(chat(model, question, { response_format }));
    return done.choices[0].message.parsed;
  },
  async responses(model) {
    const { output_text, status, usage, model: served } = await client.responses.create({ model, input: question });
    return { text: output_text, finish: status, total: usage.total_tokens, served };
  },
  async responsesStream(model) {
    const stream = client.responses.stream({ model, input: question });
    const { output_text, status, usage, model: served } = await stream.finalResponse();
    return { text: output_text, finish: status, total: usage.total_tokens, served };
  },
  responsesTools,
  async responsesForm(model) {
    const text = { format: zodTextFormat(Forecast, "forecast") };
    return (await client.responses.parse({ model, input: question, text })).output_parsed;
  },
  async tooLong(model) {
    const error = await failure(() => client.chat.completions.create(chat(model, "a too-long prompt")));
    return [error.constructor.name, error.status, error.code];
  },
  async rateLimited(model) {
    const error = await failure(() => client.responses.create({ model, input: "rate-limited" }));
    return [error.constructor.name, error.status, error.code];
  },
  chatBroken: (model) => brokenOff(chatTexts(model, "it breaks-off")),
  responsesBroken: (model) => brokenOff(responsesTexts(model, "it breaks-off")),
});
