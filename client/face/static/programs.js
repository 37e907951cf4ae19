import { ask, at, doing, make, _ } from "./ask.js";

async function show() {
  at("programs-address").textContent = `${location.origin}/v1`;
  const { tokens } = await ask("tokens");
  at("programs-list").replaceChildren(...Object.entries(tokens).map(([name, scopes]) => make("li", { class: "candidate" },
    make("p", {}, `${name}: ${scopes.join(", ")}`),
    make("button", { class: "grave", "aria-label": _("Drop the token of {name}", { name }), onclick: () => doing(undefined, async () => { await ask("token", { name, drop: true }); await show(); }) }, _("Drop")))));
}

export function startPrograms() {
  at("programs-form").addEventListener("submit", (event) => {
    event.preventDefault();
    doing(event.submitter, async () => {
      const scopes = [...document.querySelectorAll("input[name=scope]:checked")].map((box) => box.value);
      const made = await ask("token", { name: at("programs-name").value.trim(), scopes });
      at("programs-token").textContent = _("Shown once, copy it now: {token}", { token: made.token });
      at("programs-token").hidden = false;
      await show();
    });
  });
  return { programs: () => doing(undefined, show) };
}
