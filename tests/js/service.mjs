// Where the service is, by the environment, and what the tests ask it for.

export const SERVICE = process.env.CONFIDE_URL;
export const MODEL = process.env.CONFIDE_MODEL;
export const EMBEDDING_MODEL = process.env.CONFIDE_EMBEDDING_MODEL;
export const KEY = process.env.CONFIDE_KEY ?? "any";

export const HELLO = [{ role: "user", content: "Say hello." }];
export const WEATHER = [{ role: "user", content: "Weather in Paris?" }];

// Every argument is one of few, so that a small model cannot ramble inside a string.
export const CITY = {
  type: "object",
  properties: { city: { type: "string", enum: ["Paris", "Rome"] } },
  required: ["city"],
  additionalProperties: false,
};

/** All that an asynchronous iterator gives. */
export async function all(pieces) {
  const found = [];
  for await (const piece of pieces) found.push(piece);
  return found;
}

/** What is thrown, and all that came before it. */
export async function thrownAfter(pieces) {
  const found = [];
  try {
    for await (const piece of pieces) found.push(piece);
  } catch (error) {
    return { error, found };
  }
  throw new Error("it ended as if nothing were wrong");
}

/** What a promise is rejected with. */
export async function thrown(promise) {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  throw new Error("it was answered");
}
