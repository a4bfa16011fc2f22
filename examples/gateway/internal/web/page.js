"use strict";
// The page of `vrust serve`: a chat, and the server's figures from /metrics. No library, no
// connection to anything but this server.

const $ = (id) => document.getElementById(id);
const seconds = 2; // Between two readings of the figures.
const kept = 60; // Readings that the charts show.

let model = null;
let chat = [];
let running = null; // The AbortController of the answer that is coming.

function headers() {
  const key = $("key").value;
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

async function connect() {
  try {
    const response = await fetch("v1/models", { headers: headers() });
    if (!response.ok) throw new Error(response.status === 401 ? "an API key is needed"
      : `status ${response.status}`);
    model = (await response.json()).data[0];
    $("model").textContent = `${model.id}, up to ${model.max_model_len} tokens`;
  } catch (problem) {
    $("model").textContent = `not connected: ${problem.message}`;
  }
}

function turn(role, text = "") {
  const block = document.createElement("div");
  block.className = `turn ${role}`;
  const who = document.createElement("span");
  who.className = "who";
  who.textContent = { user: "You", assistant: "Model", error: "Error" }[role];
  const reasoning = document.createElement("span");
  reasoning.className = "reasoning";
  const body = document.createElement("span");
  body.textContent = text;
  block.append(who, reasoning, body);
  $("log").append(block);
  $("log").scrollTop = $("log").scrollHeight;
  return { block, body, reasoning };
}

function request() {
  const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));
  const system = $("system").value;
  return {
    model: model?.id, stream: true, stream_options: { include_usage: true },
    messages: [...(system ? [{ role: "system", content: system }] : []), ...chat],
    temperature: number("temperature"), top_p: number("top_p"), top_k: number("top_k"),
    max_tokens: number("max_tokens"), seed: number("seed"),
  };
}

// events yields the JSON documents of a stream of server-sent events.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function answer() {
  running = new AbortController();
  const begin = performance.now();
  let first = 0, text = "", tokens = 0, shown = null;
  busy(true);
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST", headers: headers(), body: JSON.stringify(request()), signal: running.signal,
    });
    if (!response.ok) {
      const { error } = await response.json();
      throw new Error(error.message ?? error);
    }
    shown = turn("assistant");
    let painted = begin;
    const paint = () => {
      shown.body.textContent = text;
      $("log").scrollTop = $("log").scrollHeight;
    };
    for await (const chunk of events(response.body)) {
      if (chunk.error) throw new Error(chunk.error.message);
      const delta = chunk.choices[0]?.delta;
      if (delta?.content || delta?.reasoning) first ||= performance.now();
      shown.reasoning.textContent += delta?.reasoning ?? "";
      text += delta?.content ?? "";
      tokens = chunk.usage?.completion_tokens ?? tokens;
      // A fast model sends more chunks than a screen shows: paint some, and let clicks in.
      if (performance.now() - painted > 30) {
        paint();
        await new Promise((done) => setTimeout(done));
        painted = performance.now();
      }
    }
    paint();
    const took = performance.now() - begin;
    $("status").textContent = `${tokens} tokens in ${(took / 1000).toFixed(2)} s, first after ` +
      `${((first || performance.now()) - begin).toFixed(0)} ms`;
  } catch (problem) {
    if (problem.name === "AbortError") $("status").textContent = "stopped";
    else turn("error", problem.message);
  } finally {
    if (shown) shown.body.textContent = text;
    if (text) chat.push({ role: "assistant", content: text });
    running = null;
    busy(false);
  }
}

function busy(is) {
  $("send").disabled = is;
  $("stop").disabled = !is;
  $("log").setAttribute("aria-busy", String(is));
  if (!is) $("message").focus();
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("message").value.trim();
  if (!text || running) return;
  $("message").value = "";
  $("status").textContent = "";
  chat.push({ role: "user", content: text });
  turn("user", text);
  answer();
});
$("message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("form").requestSubmit();
  }
});
$("stop").addEventListener("click", () => running?.abort());
$("clear").addEventListener("click", () => {
  running?.abort();
  chat = [];
  $("log").replaceChildren();
  $("status").textContent = "";
});
$("key").addEventListener("change", connect);

// ---- Figures ----

const series = { tokens: [], running: [], waiting: [], kv: [], p50: [], p99: [] };
let before = null;

// samples reads Prometheus' text: values by name, and the buckets of histograms by `le`.
function samples(text) {
  const found = { values: {}, buckets: {} };
  for (const line of text.split("\n")) {
    const match = /^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!match) continue;
    const [, name, labels = "", value] = match;
    const le = /le="([^"]+)"/.exec(labels);
    if (le) {
      const bound = le[1] === "+Inf" ? Infinity : Number(le[1]);
      (found.buckets[name] ??= []).push([bound, Number(value)]);
    } else {
      found.values[name] = (found.values[name] ?? 0) + Number(value);
    }
  }
  return found;
}

// percentile reads a cumulative histogram, straight between the bounds of a bucket.
function percentile(buckets, share) {
  const total = buckets.at(-1)[1];
  let low = 0, below = 0;
  for (const [bound, count] of buckets) {
    if (count >= share * total) {
      if (bound === Infinity) return low;
      return low + (bound - low) * ((share * total - below) / Math.max(1, count - below));
    }
    [low, below] = [bound, count];
  }
  return low;
}

function draw(id, ...lines) {
  const top = Math.max(1e-9, ...lines.flat());
  $(id).replaceChildren(...lines.map((values, i) => {
    const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
    if (i) line.classList.add("second");
    line.setAttribute("points", values.map((v, x) =>
      `${(x + kept - values.length) * 300 / (kept - 1)},${58 - 56 * v / top}`).join(" "));
    return line;
  }));
}

function add(name, value) {
  series[name].push(value);
  if (series[name].length > kept) series[name].shift();
}

async function figures() {
  try {
    const now = samples(await (await fetch("metrics")).text());
    const time = performance.now();
    const made = now.values["vllm:generation_tokens_total"];
    if (before) {
      add("tokens", (made - before.made) / ((time - before.time) / 1000));
      add("running", now.values["vllm:num_requests_running"]);
      add("waiting", now.values["vllm:num_requests_waiting"]);
      add("kv", now.values["vllm:kv_cache_usage_perc"]);
      $("v-tokens").textContent = series.tokens.at(-1).toFixed(0);
      $("v-running").textContent = series.running.at(-1);
      $("v-waiting").textContent = series.waiting.at(-1);
      $("v-kv").textContent = `${(100 * series.kv.at(-1)).toFixed(1)} %`;
      draw("c-tokens", series.tokens);
      draw("c-requests", series.running, series.waiting);
      draw("c-kv", series.kv);
    }
    before = { made, time };
    const ttft = now.buckets["vllm:time_to_first_token_seconds_bucket"];
    if (ttft?.at(-1)[1]) {
      const ms = (share) => (1000 * percentile(ttft, share)).toFixed(1);
      add("p50", percentile(ttft, 0.5));
      add("p99", percentile(ttft, 0.99));
      draw("c-ttft", series.p50, series.p99);
      $("v-ttft").textContent = `p50 ${ms(0.5)} ms, p90 ${ms(0.9)} ms, p99 ${ms(0.99)} ms`;
    }
  } catch {
    before = null; // The next reading begins anew.
  }
  setTimeout(figures, seconds * 1000);
}

connect();
figures();
