// Requests to the service. An error carries the one sentence of the answer.

export class ServiceError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export async function call(path, { method, body, token, signal } = {}) {
  const headers = {};
  if (body) headers["Content-Type"] = "application/json";
  if (token) headers.Authorization = `Bearer ${token}`;
  let response, answer;
  try {
    response = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal });
    answer = await response.json().catch(() => null);
  } catch (error) {
    if (!signal?.aborted) throw new ServiceError("The service does not answer; see whether it is still running.", 0);
  }
  signal?.throwIfAborted();
  if (!response.ok) {
    const detail = typeof answer?.detail === "string" ? answer.detail : `The service answered with status ${response.status}.`;
    throw new ServiceError(detail, response.status);
  }
  return answer;
}

export const recommend = (body, signal) => call("/recommend", { method: "POST", body, signal });
export const explain = (body, signal) => call("/explain", { method: "POST", body, signal });
export const itemPath = (id, rest = "", query = {}) =>
  `/items/${encodeURIComponent(id)}${rest}?${new URLSearchParams(query)}`;

// Tasks of which only the newest counts: starting one aborts the one before, whose answer is never seen.
export function newest() {
  let controller = null;
  return {
    async run(task, failed) {
      controller?.abort();
      controller = new AbortController();
      const { signal } = controller;
      try {
        await task(signal);
      } catch (error) {
        if (signal.aborted) return;
        failed(error);
      }
    },
    stop: () => controller?.abort(),
  };
}
