// Calls a tidegate service over one WebSocket: answers and streams as they come.
//
//   import { Client } from "/client.js";
//   const client = new Client("/generate");                      // or "ws://127.0.0.1:8000", { key: "…" }
//   const label = await client.call({ text: "hello" });
//   for await (const token of client.stream("Once upon")) …      // leaving the loop cancels the rest
//
// Options of a request: { handler, timeout (seconds), priority, signal (of an AbortController) }.
// It connects when it is first used, and again after a connection was lost.

export class TidegateError extends Error {
  constructor({ code, status, message, retry_after }) {
    super(message);
    Object.assign(this, { name: "TidegateError", code, status, retryAfter: retry_after });
  }
}

const lost = (message) => new TidegateError({ code: "connection-lost", status: 0, message });
// Keys travel as a subprotocol, since pages cannot set headers.
const base64url = (text) =>
  btoa(String.fromCharCode(...new TextEncoder().encode(text))).replace(/\+/g, "-").replace(/\//g, "_").replace(/=/g, "");

export class Client {
  #url; #protocols; #socket = null; #waiting = new Map(); #last = 0;

  constructor(url = "/", { key } = {}) {
    this.#url = new URL(url, globalThis.location?.href);
    this.#url.protocol = this.#url.protocol.replace("http", "ws");
    this.#protocols = key ? ["tidegate.v1", `tidegate.key.${base64url(key)}`] : ["tidegate.v1"];
  }

  async call(input, options) {
    let output;
    for await (const message of this.#ask(input, options)) output = message.output;
    return output;
  }

  async *stream(input, options) {
    for await (const message of this.#ask(input, options)) if ("chunk" in message) yield message.chunk;
  }

  close() {
    this.#socket?.close(1000);
  }

  async *#ask(input, { handler, timeout, priority, signal } = {}) {
    signal?.throwIfAborted();
    const socket = await this.#open(), id = ++this.#last, messages = [];
    if (socket.readyState !== WebSocket.OPEN) throw lost("the connection was lost");
    let wake, ended = false;
    const push = (message) => { messages.push(message); wake?.(); };
    const abort = () => push({ abort: true });
    this.#waiting.set(id, { push, socket });
    signal?.addEventListener("abort", abort);
    try {
      socket.send(JSON.stringify({ id, input, handler, timeout, priority }));
      while (!ended) {
        if (!messages.length) await new Promise((resolve) => (wake = resolve));
        const message = messages.shift();
        if (message.abort) throw signal.reason;
        ended = !("chunk" in message);
        if (message.error) throw message.error instanceof Error ? message.error : new TidegateError(message.error);
        yield message;
      }
    } finally {
      signal?.removeEventListener("abort", abort);
      this.#waiting.delete(id);
      if (!ended && socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ id, cancel: true }));
    }
  }

  #open() {
    if (this.#socket && this.#socket.readyState <= WebSocket.OPEN) return this.#socket.opened;
    const socket = (this.#socket = new WebSocket(this.#url, this.#protocols));
    socket.opened = new Promise((resolve, reject) => {
      socket.onopen = () => resolve(socket);
      socket.onclose = ({ code, reason }) => {
        const error = lost(reason || `the connection to ${this.#url.host} was refused or lost (${code})`);
        reject(error);
        for (const one of [...this.#waiting.values()]) if (one.socket === socket) one.push({ error });
      };
    });
    socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      this.#waiting.get(message.id)?.push(message);
    };
    return socket.opened;
  }
}
