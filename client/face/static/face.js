import { at, readWords, takeToken, trouble, _ } from "./ask.js";
import { startFind } from "./find.js";
import { startContinue } from "./continue.js";
import { startChat } from "./chat.js";
import { startStored } from "./stored.js";
import { startLeft } from "./left.js";
import { startCompare } from "./compare.js";
import { startPrograms } from "./programs.js";

const screens = [...document.querySelectorAll("[data-screen]")].map((link) => link.dataset.screen);
const shown = {};

function show(focus) {
  const wanted = location.hash.slice(1);
  const screen = screens.includes(wanted) ? wanted : screens[0];
  for (const name of screens) at(`screen-${name}`).hidden = name !== screen;
  for (const link of document.querySelectorAll("[data-screen]")) {
    if (link.dataset.screen === screen) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (focus) at(`head-${screen}`).focus();
  shown[screen]?.();
}

const allowed = takeToken();
await readWords();
for (const start of [startFind, startContinue, startChat, startStored, startLeft, startCompare, startPrograms]) Object.assign(shown, start() ?? {});
document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); at("main").focus(); });
window.addEventListener("hashchange", () => show(true));
show(false);
if (!allowed) trouble(_("This page needs the token of its program. Open it with: confide device open"));
document.documentElement.dataset.ready = "yes";
