// The API through Vercel's AI SDK, which shares no code with OpenAI's client: prints what it got as one JSON object.
// node other_client.mjs ADDRESS TOKEN QUESTION

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateText, streamText } from "ai";

const [baseURL, apiKey, question] = process.argv.slice(2);
const kept = [];
const provider = createOpenAICompatible({ name: "confide", baseURL, apiKey, includeUsage: true });
const models = await (await fetch(`${baseURL}/models`, { headers: { Authorization: `Bearer ${apiKey}` } })).json();
const asked = { maxOutputTokens: 24, maxRetries: 0, messages: [{ role: "system", content: "Be short." }, { role: "user", content: question }] };

async function tried(act) {
  try {
    return await act();
  } catch (error) {
    return { refused: error.statusCode ?? 0, message: error.message };
  }
}

const whole = await tried(async () => {
  const made = await generateText({ model: provider.chatModel("personal"), ...asked });
  return { text: made.text, reason: made.finishReason, usage: made.usage, confide: made.response.body.confide };
});
const streamed = await tried(async () => {
  let failure;
  const made = streamText({ model: provider.chatModel("personal"), ...asked, onError: ({ error }) => { failure = error; } });
  let text = "";
  let parts = 0;
  for await (const part of made.textStream) {
    text += part;
    parts += 1;
  }
  if (failure) throw failure;
  return { text, parts, reason: await made.finishReason, usage: await made.usage };
});
const completion = await tried(async () => (await generateText({ model: provider.completionModel("base"), prompt: "The ferry", maxOutputTokens: 5, maxRetries: 0 })).text);
const vectors = await tried(async () => (await embedMany({ model: provider.embeddingModel("embeddings"), values: ["ferry", "bees"], maxRetries: 0 })).embeddings);
kept.push(...models.data.map((model) => model.id));
process.stdout.write(JSON.stringify({ models: kept, whole, streamed, completion, vectors }));
