// Calls to this server, and the key it may ask for.

let key = sessionStorage.getItem("key") ?? "";

export class Problem extends Error {
  constructor(status, body) {
    super(body.detail ?? body.title ?? `The server answered ${status}.`);
    this.status = status;
  }
}

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

// All labels of one photo. A busy server is asked again, a little later each time.
export async function predict(file, model) {
  for (let attempt = 1; ; attempt += 1) {
    const form = new FormData();
    form.append("images", file, file.name);
    form.append("threshold", "0");
    form.append("model", model);
    try {
      return (await call("v1/predict", { method: "POST", body: form })).predictions[0];
    } catch (error) {
      if (![429, 503].includes(error.status) || attempt === 6) throw error;
      await new Promise((resolve) => setTimeout(resolve, 250 * 2 ** attempt));
    }
  }
}

export async function explain(file, label, model) {
  const form = new FormData();
  form.append("images", file, file.name);
  form.append("labels", label);
  form.append("model", model);
  return (await call("v1/explain", { method: "POST", body: form })).labels[0];
}
