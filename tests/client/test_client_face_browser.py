"""The page in Chromium, with the tiny model: every screen by its labels and keys, nothing loaded from elsewhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from client.face.page import SCREENS
from client.importers import add
from client.preferences import drop_preferences, preferences
from tests.face_served import Face, served

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
AXE = Path(__file__).parents[1] / "web" / "node_modules" / "axe-core" / "axe.min.js"
pytestmark = [pytest.mark.e2e, pytest.mark.skipif(not CHROMIUM, reason="no Chromium here")]
sync_api = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def face(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Face]:
    with served(tmp_path_factory.mktemp("browser"), tiny_model_dir) as made:
        yield made


class Seen:
    """A page of the face, and all that it complained of or asked elsewhere."""

    def __init__(self, face: Face, scheme: str = "light", width: int = 1100) -> None:
        self._playwright = sync_api.sync_playwright().start()
        sandbox = ["--no-sandbox"] if os.getuid() == 0 else []
        self._browser = self._playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        self.page = self._browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
        self.faults: list[str] = []
        self.page.on("console", lambda message: self.faults.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", lambda asked: None if asked.url.startswith(face.url) else self.faults.append(asked.url))
        self.page.on("dialog", lambda dialog: dialog.accept())
        self.page.goto(f"{face.url}#token={face.token}")
        self.page.wait_for_selector("html[data-ready]")

    def close(self) -> None:
        self._browser.close()
        self._playwright.stop()


@pytest.fixture(params=["light", "dark"])
def seen(face: Face, request: pytest.FixtureRequest) -> Iterator[Seen]:
    made = Seen(face, request.param)
    yield made
    faults = made.faults
    made.close()
    assert faults == []


def test_the_token_leaves_the_address_and_a_reload_keeps_it(face: Face, seen: Seen) -> None:
    assert face.token not in seen.page.url
    seen.page.reload()
    seen.page.wait_for_selector("html[data-ready]")
    assert seen.page.locator("#trouble").is_hidden()


def test_find_shows_sources_and_then_a_reply(seen: Seen) -> None:
    page = seen.page
    page.get_by_label("Ask your own text").fill("When does the ferry leave on Sundays?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".source mark")
    assert page.inner_text("#find-quoted") == "On Sundays the ferry leaves at ten."
    page.wait_for_selector("#find-reply[aria-busy=false]:not(:empty)")
    assert "passages of yours" in page.inner_text("#find-speaks")


def test_a_key_accepts_a_continuation_which_becomes_a_preference(face: Face, seen: Seen) -> None:
    page, before = seen.page, len(preferences(face.vault))
    page.get_by_role("link", name="Continue").click()
    text = page.get_by_label("Your text", exact=True)
    text.fill("Moved the hive again.")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".candidate >> nth=2")
    second = page.inner_text(".candidate >> nth=1 >> p")
    page.get_by_label("Keep my choices in the vault").first.check()
    text.focus()
    with page.expect_response("**/page/chosen"):
        page.keyboard.press("Alt+2")
    assert text.input_value() == f"Moved the hive again. {second}"
    kept = preferences(face.vault)[before:]
    assert [pair.chosen for pair in kept] == [second, second] and kept[0].prompt == "Moved the hive again."


def test_a_chat_names_who_speaks_and_shows_the_memories(seen: Seen) -> None:
    page = seen.page
    page.get_by_role("link", name="Chat").click()
    page.get_by_label("Your turn").fill("When does the ferry leave?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".said.assistant details")
    page.get_by_text("Memories that were used").click()
    assert "ferry leaves" in page.inner_text(".said.assistant details")
    page.wait_for_selector("#chat-stop", state="hidden")
    page.get_by_label("the model as it is").first.check()
    page.get_by_label("Your turn").fill("And on Sundays?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".said.assistant >> nth=1")
    page.wait_for_selector("#chat-stop", state="hidden")
    assert "without your text" in page.inner_text(".said.assistant >> nth=1 >> .who")


def test_a_reply_is_judged_and_changed_only_where_that_was_allowed(face: Face, seen: Seen) -> None:
    page = seen.page
    page.get_by_role("link", name="Chat").click()
    page.get_by_label("Your turn").fill("When does the ferry go?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".said.assistant .judge", state="attached")
    assert page.get_by_role("button", name="Good reply").count() == 0
    page.get_by_label("Let me judge replies").check()
    page.wait_for_selector("#chat-another:not([hidden])")
    with page.expect_response("**/page/judged"):
        page.get_by_role("button", name="Bad reply").click()
    page.wait_for_selector("button[aria-pressed=true]")
    page.get_by_role("button", name="Another reply").click()
    page.wait_for_selector(".said.assistant >> nth=1 >> .judge")
    with page.expect_response("**/page/judged"):
        page.get_by_role("button", name="Good reply").nth(1).click()
    page.get_by_role("button", name="Change it").nth(1).click()
    page.get_by_label("What it should say").fill("At seven.")
    with page.expect_response("**/page/judged"):
        page.get_by_role("button", name="Keep my version").click()
    page.wait_for_selector(".said.assistant >> nth=1 >> .reply:has-text('At seven.')")
    found = [pair for pair in preferences(face.vault) if pair.prompt == "When does the ferry go?"]
    assert "At seven." in {pair.chosen for pair in found} and len({pair.chosen for pair in found}) >= 2
    drop_preferences(face.vault)


def test_the_weight_of_memories_is_set_by_key_and_said(seen: Seen) -> None:
    page = seen.page
    page.get_by_role("link", name="Chat").click()
    dial = page.get_by_label("How much your text weighs")
    assert "as was measured" in page.inner_text("#chat-steered")
    dial.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert page.inner_text("#chat-steered") == "more: +1"
    page.get_by_label("Your turn").fill("When does the ferry leave?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".said.assistant .who:has-text('weighed +1')")
    page.get_by_role("button", name="Stop").click()
    page.wait_for_selector("#chat-stop", state="hidden")


def test_a_suggestion_that_is_changed_is_preferred_to_what_it_was(face: Face, seen: Seen) -> None:
    page, before = seen.page, len(preferences(face.vault))
    page.get_by_role("link", name="Continue").click()
    text = page.get_by_label("Your text", exact=True)
    text.fill("Baked a loaf.")
    page.get_by_label("Keep my choices in the vault").first.check()
    text.press("Control+Enter")
    page.wait_for_selector(".candidate >> nth=1")
    proposed = page.inner_text(".candidate >> nth=0 >> p")
    page.locator("#continue-candidates").get_by_role("button", name="Change it").first.click()
    page.get_by_label("Your version of suggestion 1").fill("It was flat.")
    with page.expect_response("**/page/chosen"):
        page.get_by_role("button", name="Keep my version").click()
    assert [(p.chosen, p.rejected) for p in preferences(face.vault)[before:]] == [("It was flat.", proposed)]
    page.wait_for_selector(".candidate >> nth=0 >> p:has-text('It was flat.')")


def test_consent_dial_and_scrubbing_are_kept(face: Face, seen: Seen) -> None:
    page = seen.page
    page.get_by_role("link", name="Stored").click()
    box = page.get_by_label("notes: notes, for what leaves in private sums")
    for granted in (1, 0):
        with page.expect_response("**/page/consent"):
            box.click()
        assert face.vault.one("SELECT granted FROM consent WHERE purpose = 'shared'") == granted
    page.get_by_role("link", name="Ever left").click()
    assert page.inner_text("#left-sum") != "" or page.wait_for_selector("#left-sum:not(:empty)")
    for stop in ("metrics", "alone"):
        with page.expect_response("**/page/dial"):
            page.get_by_label(stop, exact=True).check()
        page.wait_for_selector(f"tr.here input[value={stop}]")
        assert face.vault.setting("dial") == stop


def test_a_blind_comparison_tells_whose_is_whose_only_afterwards(face: Face, seen: Seen) -> None:
    page = seen.page
    page.get_by_role("link", name="Compare").click()
    page.get_by_label("Question").fill("Where is the hive?")
    page.keyboard.press("Enter")
    page.wait_for_selector("#compare-verdict:not([hidden])", timeout=60_000)
    assert "yours" not in page.inner_text("#compare-replies")
    page.get_by_role("button", name="The first is better").click()
    page.wait_for_selector("#compare-result:has-text('So far yours')")


def test_a_program_gets_a_token_and_loses_it(face: Face, seen: Seen) -> None:
    page = seen.page
    page.get_by_role("link", name="Programs").click()
    page.get_by_label("Name of the program").fill("editor")
    page.keyboard.press("Enter")
    page.wait_for_selector("#programs-token:not([hidden])")
    token = page.inner_text("#programs-token").rsplit(" ", 1)[1]
    assert face.request("GET", "/v1/models", token=token)[0] == 200
    page.get_by_role("button", name="Drop the token of editor").click()
    page.wait_for_selector("#programs-list:empty", state="attached")
    assert face.request("GET", "/v1/models", token=token)[0] == 401


def test_forgetting_on_the_page_reaches_what_is_found(face: Face, seen: Seen, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("The walnut chest has a false bottom.")
    add(face.vault, tmp_path)
    number = face.vault.one("SELECT id FROM document WHERE title = 'secret'")
    page = seen.page
    page.get_by_label("Ask your own text").fill("walnut chest")
    page.keyboard.press("Enter")
    page.wait_for_selector(".source:has-text('false bottom') >> nth=0")
    page.get_by_role("link", name="Stored").click()
    page.get_by_label("Number").fill(str(number))
    page.locator("#document-forget").click()
    page.wait_for_selector("#stored-certificate:not([hidden])")
    assert "1 documents" in page.inner_text("#stored-certificate")
    assert not any("walnut" in p["text"] for p in face.post("/page/find", {"question": "walnut chest"})["passages"])


def test_every_control_has_a_name_and_every_text_contrast(seen: Seen) -> None:
    """Names by the accessibility tree that a screen reader gets; contrast by WCAG 2.2, 4.5 to 1."""
    page = seen.page
    for screen in SCREENS:
        page.goto(page.url.split("#")[0] + f"#{screen}")
        page.wait_for_selector(f"#screen-{screen}:not([hidden])")
        nameless = page.locator(f"#screen-{screen}").locator("button, input, textarea, select")
        for i in range(nameless.count()):
            control = nameless.nth(i)
            if control.is_visible():
                name = control.evaluate(
                    "e => e.getAttribute('aria-label') || e.labels?.[0]?.innerText || e.innerText || ''"
                )
                assert name.strip(), (screen, control.evaluate("e => e.outerHTML"))
        low = page.evaluate(CONTRAST)
        assert low == [], (screen, low)
    assert page.locator("h1:visible").count() == 1 and page.locator("main").count() == 1


@pytest.mark.skipif(not AXE.exists(), reason="no `npm ci --prefix tests/web`")
def test_axe_finds_nothing_on_any_screen(face: Face, seen: Seen) -> None:
    """All rules of WCAG 2.2 A and AA and of good practice that axe-core checks, on screens with something on them."""
    page = seen.page
    with_something_on_every_screen(page)
    page.evaluate(AXE.read_text())
    told = []
    for screen in SCREENS:
        page.evaluate(f"location.hash = '#{screen}'")
        page.wait_for_selector(f"#screen-{screen}:not([hidden])")
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        told += [(screen, each["id"], [node["html"] for node in each["nodes"]]) for each in found["violations"]]
        assert len(found["passes"]) > 10, screen
    assert told == []


def with_something_on_every_screen(page: Any) -> None:
    """Ask, draw, chat, compare and open a document, so that what comes of it is on the page as well."""
    page.get_by_label("Ask your own text").fill("When does the ferry leave?")
    page.keyboard.press("Enter")
    page.wait_for_selector("#find-reply[aria-busy=false]:not(:empty)")
    page.get_by_role("link", name="Continue").click()
    page.get_by_label("Your text", exact=True).fill("Baked a loaf.")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".candidate")
    page.locator("#continue-candidates").get_by_role("button", name="Change it").first.click()
    page.get_by_role("link", name="Chat").click()
    page.get_by_label("Let me judge replies").check()
    page.get_by_label("Your turn").fill("When does the ferry leave?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".said.assistant .judge")
    page.get_by_text("Memories that were used").click()
    page.get_by_role("link", name="Compare").click()
    page.get_by_label("Question").fill("Where is the hive?")
    page.keyboard.press("Enter")
    page.wait_for_selector("#compare-verdict:not([hidden])", timeout=60_000)
    page.get_by_role("link", name="Stored").click()
    page.get_by_label("Number").fill("4")
    page.get_by_role("button", name="Open", exact=True).click()
    page.wait_for_selector("#document-shown:not(:empty)")


def test_the_keyboard_alone_reaches_and_works_every_control(seen: Seen) -> None:
    """Tab walks over all controls of each screen in the order they stand, shows where it is, and is never caught."""
    page = seen.page
    for screen in SCREENS:
        page.evaluate(f"location.hash = '#{screen}'")
        page.wait_for_selector(f"#screen-{screen}:not([hidden])")
        page.wait_for_timeout(300)
        page.evaluate(
            "document.activeElement.blur(); document.body.setAttribute('tabindex', '-1'); document.body.focus()"
        )
        wanted = page.evaluate(REACHABLE)
        walked: list[int] = []
        for _ in range(len(wanted) + 16):
            page.keyboard.press("Tab")
            at = page.evaluate(FOCUSED)
            if walked and at["number"] == walked[-1]:
                continue  # a date is three stops in one field
            if at["number"] is None or at["number"] in walked:
                break
            assert at["outline"], (screen, at)
            walked.append(at["number"])
        assert walked == wanted and len(wanted) > len(SCREENS), (screen, walked, wanted)
    page.evaluate("location.hash = '#stored'")
    page.wait_for_selector("#screen-stored:not([hidden])")
    page.wait_for_timeout(300)
    page.evaluate("document.activeElement.blur(); document.body.focus()")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main", "the first stop skips to the content"
    assert page.locator("#screen-stored").is_visible(), "and the screen stays"


@pytest.fixture
def narrow(face: Face) -> Iterator[Seen]:
    with closing(Seen(face, width=360)) as made:
        yield made


def test_the_page_fits_a_telephone(narrow: Seen) -> None:
    made = narrow
    with_something_on_every_screen(made.page)
    for screen in SCREENS:
        made.page.goto(made.page.url.split("#")[0] + f"#{screen}")
        made.page.wait_for_selector(f"#screen-{screen}:not([hidden])")
        wide = made.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, (screen, wide)
    assert made.faults == []


def test_another_origin_cannot_read_or_frame_the_page(face: Face, narrow: Seen, tmp_path: Path) -> None:
    (tmp_path / "evil.html").write_text(f"<iframe src='{face.url}'></iframe><p id=p></p>")
    made = narrow
    made.page.goto((tmp_path / "evil.html").as_uri())
    read = f"fetch('{face.url}words.json').then(r => r.text(), () => 'refused')"
    assert made.page.evaluate(read) == "refused"
    frame = made.page.frames[1]
    assert frame.locator("#find-form").count() == 0


# One radio button of each group can be reached by Tab: the one that is chosen.
REACHABLE = """() => [...document.querySelectorAll("a[href], button, input, textarea, select, summary, [tabindex='0']")]
  .map((e, i) => { e.dataset.number = i; return e; })
  .filter((e) => e.checkVisibility() && !e.disabled && (e.type !== "radio" || e.checked))
  .map((e) => Number(e.dataset.number))"""
FOCUSED = """() => { const e = document.activeElement; const s = getComputedStyle(e);
  return { number: e.dataset.number === undefined ? null : Number(e.dataset.number), html: e.outerHTML.slice(0, 120),
    outline: s.outlineStyle !== "none" && parseFloat(s.outlineWidth) >= 2 }; }"""
CONTRAST = """() => {
  const lit = (c) => {
    const v = c.map((x) => x / 255).map((x) => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
  const rgb = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const ground = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] === 1) return c.slice(0, 3); } return [255, 255, 255]; };
  const low = [];
  for (const e of document.querySelectorAll("body *")) {
    const words = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!words || !e.checkVisibility()) continue;
    const [a, b] = [lit(rgb(getComputedStyle(e).color).slice(0, 3)), lit(ground(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) low.push(e.outerHTML.slice(0, 120));
  }
  return low;
}"""
