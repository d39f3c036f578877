// Calls to this server, and the key it may ask for.

let key = sessionStorage.getItem("key") ?? "";

export class Problem extends Error {
  constructor(status, body) {
    super(body.detail ?? body.title ?? `The server answered ${status}.`);
    this.status = status;
  }
}

export const hasKey = () => key !== "";

// A header holds nothing but ASCII.
export const canBeKey = (value) => /^[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?$/.test(value);

export function useKey(value) {
  key = value;
  sessionStorage.setItem("key", value);
}

async function call(path, options = {}) {
  const headers = key ? { "X-API-Key": key } : {};
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new Problem(0, { detail: "The server cannot be reached. Is it still running?" });
  }
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Problem(answer.status, body);
  return body;
}

const of = (model) => `?${new URLSearchParams({ model })}`;

export const getModel = (model) => call(`v1/model${model ? of(model) : ""}`);
export const getLabels = (model) => call(`v1/labels${of(model)}`);

// A busy server is asked again, a little later each time.
async function send(path, file, fields) {
  const body = new FormData();
  body.append("images", file, file.name);
  for (const [name, value] of Object.entries(fields)) body.append(name, value);
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await call(path, { method: "POST", body });
    } catch (error) {
      if (![429, 503].includes(error.status) || attempt === 6) throw error;
      await new Promise((resolve) => setTimeout(resolve, 250 * 2 ** attempt));
    }
  }
}

// All labels of one photo.
export const predict = async (file, model) => (await send("v1/predict", file, { threshold: "0", model })).predictions[0];

export const explain = async (file, label, model) => (await send("v1/explain", file, { labels: label, model })).labels[0];
