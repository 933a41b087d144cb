"use strict";
const at = id => document.getElementById(id);
const panels = [...document.querySelectorAll(".panel")].map(box => ({
  box, choice: box.querySelector("select"), turns: box.querySelector(".turns"), messages: [],
}));
let stopping = null;

// Text of a model or a user goes into the page as text alone.
function add(parent, kind, text) {
  const line = document.createElement("div");
  line.className = kind;
  line.textContent = text;
  parent.append(line);
  parent.scrollTop = parent.scrollHeight;
  return line;
}

function request(panel) {
  const headers = { "content-type": "application/json" };
  const key = at("key");
  if (key && key.value) headers.authorization = "Bearer " + key.value;
  const body = {
    model: panel.choice.value, messages: panel.messages, stream: true,
    temperature: Number(at("temperature").value), max_tokens: Number(at("tokens").value),
  };
  return fetch("v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal: stopping.signal });
}

async function* chunks(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      const text = event.replace(/^data: /, "");
      if (text !== "[DONE]") yield JSON.parse(text);
    }
  }
}

async function answer(panel, question) {
  panel.messages.push({ role: "user", content: question });
  add(panel.turns, "turn user", question);
  const reasoning = add(panel.turns, "reasoning", "");
  const line = add(panel.turns, "turn assistant", "");
  try {
    const response = await request(panel);
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const chunk of chunks(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      const [choice] = chunk.choices;
      if (!choice) continue;
      reasoning.append(choice.delta.reasoning_content || "");
      line.append(choice.delta.content || "");
      panel.turns.scrollTop = panel.turns.scrollHeight;
      if (choice.finish_reason === "length") add(panel.turns, "note", "cut: more tokens let it continue");
    }
  } catch (error) {
    add(panel.turns, "note", error.name === "AbortError" ? "stopped" : error.message);
  }
  if (line.textContent.trim()) panel.messages.push({ role: "assistant", content: line.textContent });
  else panel.messages.pop();
}

async function ask(event) {
  event.preventDefault();
  const question = at("prompt").value.trim();
  if (!question || stopping) return;
  at("prompt").value = "";
  stopping = new AbortController();
  at("send").disabled = true;
  at("stop").disabled = false;
  await Promise.all(panels.filter(panel => !panel.box.hidden).map(panel => answer(panel, question)));
  stopping = null;
  at("send").disabled = false;
  at("stop").disabled = true;
  at("prompt").focus();
}

function reset(panel) {
  panel.messages = [];
  panel.turns.replaceChildren();
}

function arrange() {
  panels[1].box.hidden = !at("both").checked;
  reset(panels[1]);
}

at("ask").addEventListener("submit", ask);
at("stop").addEventListener("click", () => stopping && stopping.abort());
at("reset").addEventListener("click", () => { if (stopping) stopping.abort(); panels.forEach(reset); });
at("both").addEventListener("change", arrange);
at("prompt").addEventListener("keydown", event => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); at("ask").requestSubmit(); }
});
for (const panel of panels) panel.choice.addEventListener("change", () => reset(panel));
arrange();
