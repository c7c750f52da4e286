// The unmodified npm SDKs through the gateway: base URL and key, nothing else. Prints one JSON object.
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const [gateway, key, spentKey] = process.argv.slice(2);
const openai = new OpenAI({ baseURL: `${gateway}/v1`, apiKey: key });
const anthropic = new Anthropic({ baseURL: gateway, apiKey: key });
const messages = [{ role: "user", content: "Hello [[sim input=3 output=7]]" }];
const seen = {};

const chat = await openai.chat.completions.create({ model: "gpt-4o-mini", messages });
seen.chat = { text: chat.choices[0].message.content.length > 0, tokens: chat.usage.completion_tokens };

let chunks = 0;
let usageChunks = 0;
for await (const chunk of await openai.chat.completions.create({ model: "gpt-4o-mini", messages, stream: true })) {
  chunks += chunk.choices.length;
  usageChunks += chunk.choices.length === 0 ? 1 : 0;
}
seen.stream = { chunks: chunks > 1, usageChunks };

const response = await openai.responses.create({ model: "gpt-4.1-nano", input: messages[0].content });
seen.responses = { text: response.output_text.length > 0, tokens: response.usage.output_tokens };

const message = await anthropic.messages.create({ model: "claude-haiku-4-5", max_tokens: 50, messages });
seen.message = { text: message.content[0].text.length > 0, tokens: message.usage.output_tokens };

const stream = anthropic.messages.stream({ model: "claude-haiku-4-5", max_tokens: 50, messages });
seen.messageStream = { tokens: (await stream.finalMessage()).usage.output_tokens };

async function failure(call) {
  try {
    await call();
    return "none";
  } catch (error) {
    return `${error.constructor.name} ${error.status}`;
  }
}
const create = (client) => () => client.chat.completions.create({ model: "gpt-4o-mini", messages, max_tokens: 16000 });
seen.wrongKey = await failure(create(new OpenAI({ baseURL: `${gateway}/v1`, apiKey: "tk_wrong" })));
seen.spent = await failure(create(new OpenAI({ baseURL: `${gateway}/v1`, apiKey: spentKey })));
seen.anthropicWrongKey = await failure(() =>
  new Anthropic({ baseURL: gateway, apiKey: "tk_wrong" }).messages.create({ model: "claude-haiku-4-5", max_tokens: 5, messages }),
);
console.log(JSON.stringify(seen));
