// What the JavaScript peers share: the words of the contract. Their words are PORT and CLI.
export const PORT = Number(process.argv[2]);
export const CLI = process.argv[3];
export const FLAGS = ["-p", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose"];
export const INFO = '{"info":"send {prompt,meta}"}';
const META = /^[A-Z0-9_-]+$/;

/** Return the stream-json line for a client's message; throws an Error where the message is wrong. */
export function userLine(text) {
  const { prompt, meta } = JSON.parse(text);
  if (typeof prompt !== "string" || !prompt || prompt.length > 8192) throw new Error("bad prompt");
  if (typeof meta !== "string" || !META.test(meta)) throw new Error("bad meta");
  return JSON.stringify({ type: "user", message: { role: "user", content: prompt } }) + "\n";
}
