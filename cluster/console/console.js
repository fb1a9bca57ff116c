// The console: reads the fleet and chats through the same API and with the same key as any client. No library, no build.
"use strict";

const byId = (id) => document.getElementById(id);
const RETRY_MS = 1000, SHOWN = 300, AT_LEAST = 60, TOLD = 100;
let key = sessionStorage.getItem("manta-key") || "";

function headers(more) {
  return key ? { Authorization: `Bearer ${key}`, ...more } : { ...more };
}

// Server-sent events of one response, as {id, data}.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (waiting + value).split("\n\n");
    waiting = parts.pop();
    for (const part of parts) {
      const event = { id: "", data: "" };
      for (const line of part.split("\n")) {
        if (line.startsWith("id: ")) event.id = line.slice(4);
        if (line.startsWith("data: ")) event.data += line.slice(6);
      }
      yield event;
    }
  }
}

async function refusal(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `${response.status} ${response.statusText}`;
  }
}

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

// The fleet

const views = [];

async function watchFleet() {
  for (;;) {
    try {
      const response = await fetch("console/fleet", { headers: headers({ Accept: "text/event-stream" }) });
      if (response.status === 401 || response.status === 403) {
        await askForKey(await refusal(response));
        continue;
      }
      if (!response.ok) throw new Error(await refusal(response));
      byId("sign-out").hidden = !key;
      views.length = 0;
      byId("happened").replaceChildren();
      for await (const event of events(response)) {
        if (event.data === "[DONE]") break;
        const view = JSON.parse(event.data);
        if (view.error) break;
        show(view);
      }
    } catch (error) {
      console.info(error);
    }
    setState("the connection was lost; trying again", true);
    await pause(RETRY_MS);
  }
}

function askForKey(why) {
  setState("who are you?", false);
  byId("sign-in").hidden = false;
  byId("why").textContent = why;
  byId("key").focus();
  return new Promise((done) => {
    byId("sign-in").onsubmit = (event) => {
      event.preventDefault();
      key = byId("key").value.trim();
      sessionStorage.setItem("manta-key", key);
      byId("key").value = "";
      byId("sign-in").hidden = true;
      loadModels();
      done();
    };
  });
}

function setState(text, isLost) {
  byId("state").textContent = text;
  byId("state").className = isLost ? "lost" : "";
}

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function count(number, one, many) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many || one + "s"}`;
}

function seconds(value) {
  if (value === null || value === undefined) return "–";
  return value < 1 ? `${(1000 * value).toFixed(value < 0.1 ? 1 : 0)} ms` : `${value.toFixed(2)} s`;
}

function show(view) {
  views.push(view);
  if (views.length > SHOWN) views.shift();
  for (const text of view.happened) tell(view.at, text);
  if (show.isDue) return;
  show.isDue = true;
  requestAnimationFrame(() => {
    show.isDue = false;
    const now = views[views.length - 1];
    setState(`${count(now.replicas.length, "replica")}, ${count(now.gateways.length, "gateway")}`, false);
    byId("models").replaceChildren(...now.models.map(modelCard));
    byId("replicas").replaceChildren(...now.replicas.map(replicaCard));
    byId("shards").replaceChildren(...now.shards.map(shardCard));
  });
}

function tell(at, text) {
  const line = element("li");
  line.append(element("time", new Date(1000 * at).toLocaleTimeString()), text);
  byId("happened").prepend(line);
  while (byId("happened").children.length > TOLD) byId("happened").lastChild.remove();
}

function history(model, field) {
  return views.map((view) => {
    const found = view.models.find((other) => other.model === model);
    return found ? found[field] : null;
  });
}

function path(values, most, className) {
  const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
  let steps = "", pen = "M";
  values.forEach((value, index) => {
    if (value === null) {
      pen = "M";
      return;
    }
    steps += `${pen}${Math.max(AT_LEAST, values.length) - values.length + index} ${(50 - 46 * value / most).toFixed(2)}`;
    pen = "L";
  });
  line.setAttribute("d", steps);
  if (className) line.setAttribute("class", className);
  return line;
}

function chart(title, text, series) {
  const box = element("div", undefined, "chart");
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${Math.max(AT_LEAST, views.length) - 1} 52`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `${title}: ${text}`);
  const most = Math.max(1e-9, ...series.flat().map((value) => value || 0));
  svg.append(...series.map((values, index) => path(values, most, index ? "second" : "")));
  box.append(element("p", title), element("div", text, "value"), svg);
  return box;
}

function modelCard(model) {
  const card = element("article", undefined, "card");
  const charts = element("div", undefined, "charts");
  const of = (field) => history(model.model, field);
  charts.append(
    chart("tokens per second", Math.round(model.tokens_per_s).toLocaleString("en"), [of("tokens_per_s")]),
    chart("first token, p50 / p99", `${seconds(model.first_token_p50)} / ${seconds(model.first_token_p99)}`,
      [of("first_token_p50"), of("first_token_p99")]),
    chart("between tokens, p50 / p99", `${seconds(model.inter_token_p50)} / ${seconds(model.inter_token_p99)}`,
      [of("inter_token_p50"), of("inter_token_p99")]),
    chart("running / queued", `${model.running} / ${model.queued_requests}`, [of("running"), of("queued_requests")]),
  );
  const rates = `${model.requests_per_s} requests/s, ${model.refusals_per_s} refused/s, ` +
    `${count(model.queued_tokens, "token")} queued`;
  card.append(element("h3", model.model), charts, element("p", rates));
  return card;
}

function replicaCard(replica) {
  const card = element("article", undefined, "card");
  const used = element("meter");
  used.value = Math.min(1, Math.max(0, replica.kv_used));
  used.high = 0.9;
  used.title = `${(100 * replica.kv_used).toFixed(1)} % of ${replica.kv_capacity.toLocaleString("en")} tokens`;
  const silent = replica.report_age_s > 1 ? `, silent for ${replica.report_age_s.toFixed(0)} s` : "";
  card.append(
    element("h3", replica.replica),
    element("p", `${replica.model} on ${replica.node}, ${count(replica.ranks.length, "rank")}: ${replica.ranks.join(", ")}`),
    element("p", `batch of ${replica.batch}, ${replica.waiting} waiting, ${replica.tokens_per_s} tokens/s, ` +
      `${replica.steps_per_s} steps/s${silent}`),
    element("p", `KV cache ${used.title}`),
    used,
  );
  return card;
}

function shardCard(shard) {
  const card = element("article", undefined, "card");
  card.append(
    element("h3", `shard ${shard.shard}`),
    element("p", `${count(shard.queued_requests, "request")} and ${count(shard.queued_tokens, "token")} wait, ` +
      `${shard.grants_per_s} granted/s, ${count(shard.gateways, "gateway")}`),
  );
  return card;
}

byId("sign-out").onclick = () => {
  sessionStorage.removeItem("manta-key");
  location.reload();
};

// The playground

const talk = [];
let stopping = null;

async function loadModels() {
  const response = await fetch("v1/models", { headers: headers() });
  if (!response.ok) return;
  const options = (await response.json()).data.map((model) => element("option", model.id));
  byId("model").replaceChildren(...options);
}

function bubble(role, text) {
  const made = element("p", text, role);
  byId("talk").append(made);
  made.scrollIntoView({ block: "nearest" });
  return made;
}

// The stream of an answer; when its connection is lost it goes on, at whichever gateway, behind the last event.
async function* answer(body, signal) {
  const asked = { headers: headers({ Accept: "text/event-stream", "Content-Type": "application/json" }), signal };
  let response = await fetch("v1/chat/completions", { ...asked, method: "POST", body: JSON.stringify(body) });
  let last = "";
  for (let tries = 0; ; tries += 1) {
    if (!response.ok) throw new Error(await refusal(response));
    try {
      for await (const event of events(response)) {
        if (event.data === "[DONE]") return;
        const chunk = JSON.parse(event.data);
        if (chunk.error) throw Object.assign(new Error(chunk.error.message), { isFinal: true });
        last = event.id || last;
        tries = 0;
        yield chunk;
      }
    } catch (error) {
      if (error.isFinal || signal.aborted) throw error;
    }
    if (!last || tries > 10) throw new Error("the stream was cut off");
    await pause(RETRY_MS * Math.min(tries, 3));
    const resumed = { headers: headers({ Accept: "text/event-stream", "Last-Event-ID": last }), signal };
    response = await fetch(`v1/streams/${encodeURIComponent(last.split(":")[0])}`, resumed).catch(() => response);
  }
}

byId("say").onsubmit = async (event) => {
  event.preventDefault();
  const text = byId("text").value.trim();
  if (!text || stopping) return;
  byId("text").value = "";
  talk.push({ role: "user", content: text });
  bubble("user", text);
  const shown = bubble("assistant", "");
  stopping = new AbortController();
  byId("stop").hidden = false;
  byId("send").hidden = true;
  const began = performance.now();
  let first = 0, tokens = 0, said = "";
  try {
    const body = { model: byId("model").value, messages: talk, stream: true, stream_options: { include_usage: true } };
    for await (const chunk of answer(body, stopping.signal)) {
      if (chunk.usage) tokens = chunk.usage.completion_tokens;
      const piece = chunk.choices.length ? chunk.choices[0].delta.content || "" : "";
      if (piece && !first) first = performance.now();
      said += piece;
      shown.textContent = said;
      byId("talk").scrollTop = byId("talk").scrollHeight;
    }
    const taken = (performance.now() - first) / 1000;
    byId("speed").textContent = `first token after ${(first - began).toFixed(0)} ms, ${count(tokens, "token")}` +
      (tokens > 1 && taken > 0 ? `, ${((tokens - 1) / taken).toFixed(0)} tokens/s` : "");
  } catch (error) {
    if (!stopping.signal.aborted) bubble("error", error.message);
  }
  if (said) talk.push({ role: "assistant", content: said });
  else if (!shown.textContent) shown.remove();
  if (!said) talk.pop();
  stopping = null;
  byId("stop").hidden = true;
  byId("send").hidden = false;
};

byId("stop").onclick = () => stopping && stopping.abort();
byId("text").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    byId("say").requestSubmit();
  }
};

loadModels();
watchFleet();
