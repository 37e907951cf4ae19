import { askLines, at, doing, make, sourceItem, speaks, _ } from "./ask.js";

let turns = [];
let running;

function said(role) {
  const who = make("p", { class: "who" }, role === "user" ? _("You") : _("The model"));
  const text = make("p", { class: "reply" });
  const item = make("li", { class: `said ${role}` }, who, text);
  at("chat-turns").append(item);
  return { item, who, text };
}

async function send(question) {
  said("user").text.textContent = question;
  turns.push({ role: "user", content: question });
  const reply = said("assistant");
  reply.text.classList.add("busy");
  running = new AbortController();
  at("chat-stop").hidden = false;
  const voice = document.querySelector("input[name=voice]:checked").value;
  try {
    await askLines("chat", { turns, voice }, (facts) => {
      if (facts.model) {
        reply.who.textContent = speaks(facts);
        if (facts.memories.length) {
          reply.item.append(make("details", {}, make("summary", {}, _("Memories that were used")),
            make("ul", { class: "plain" }, ...facts.memories.map((passage) => sourceItem(passage, question)))));
        }
      }
      if (facts.piece) reply.text.textContent += facts.piece;
    }, running.signal);
  } finally {
    reply.text.classList.remove("busy");
    at("chat-stop").hidden = true;
    if (reply.text.textContent) turns.push({ role: "assistant", content: reply.text.textContent });
    else turns.pop();
  }
}

export function startChat() {
  const form = at("chat-form");
  const text = at("chat-text");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const question = text.value.trim();
    if (!question) return;
    text.value = "";
    doing(form.querySelector("[type=submit]"), () => send(question)).then(() => text.focus());
  });
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  at("chat-stop").addEventListener("click", () => running?.abort());
  at("chat-new").addEventListener("click", () => {
    running?.abort();
    turns = [];
    at("chat-turns").replaceChildren();
    text.focus();
  });
  return { chat: () => text.focus() };
}
