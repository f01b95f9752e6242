// Arguments: base URL of the gateway, key, wire formats with commas between. Prints one line of JSON:
// {wire: {scenario: what came out, or {threw: ...}}}.
import { z } from "zod";

const [baseURL, apiKey, wires] = process.argv.slice(2);
export { apiKey, baseURL };
export const question = "What is the answer?";
export const askWeather = "What will the weather be?";
export const result = "19 °C and sunny";
export const Forecast = z.object({ city: z.string(), days: z.number().int() });

const threw = (error) => ({ threw: `${error?.name}: ${error?.message}`.slice(0, 300) });

export async function report(scenarios) {
  const found = {};
  await Promise.all(
    wires.split(",").map(async (wire) => {
      found[wire] = {};
      for (const [name, scenario] of Object.entries(scenarios)) {
        found[wire][name] = await scenario(`via-${wire}`, wire).catch(threw);
      }
    }),
  );
  console.log(JSON.stringify(found));
}

// What a failed call says of itself, as far as applications ask.
export async function failure(call) {
  try {
    await call();
  } catch (error) {
    return error;
  }
  throw new Error("it did not fail");
}

// The text of a stream that breaks off, once it has thrown.
export async function brokenOff(texts) {
  let seen = "";
  try {
    for await (const text of texts) seen += text;
  } catch (error) {
    return seen;
  }
  throw new Error(`it ended as if it were whole, after ${JSON.stringify(seen)}`);
}
