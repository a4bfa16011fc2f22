"""The server's page in a real headless browser, by keyboard, with nothing else to reach."""

import json
import shutil
import unittest

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

from harness import BUILD, Server

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)


class Web(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--served-model-name", "demo")
        cls.addClassCleanup(cls.server.__exit__)
        playwright = sync_playwright().start()
        cls.addClassCleanup(playwright.stop)
        cls.browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        cls.addClassCleanup(cls.browser.close)

    def setUp(self):
        self.page = self.browser.new_page(viewport={"width": 1200, "height": 800})
        self.addCleanup(self.page.close)
        self.requests, self.problems = [], []
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.on("pageerror", lambda e: self.problems.append(str(e)))
        self.page.on("console", lambda m: m.type == "error" and self.problems.append(m.text))
        self.page.goto(self.server.url + "/")
        expect(self.page.locator("#model")).to_contain_text("demo, up to 2048 tokens")

    def test_chat_by_keyboard(self):
        page = self.page
        page.locator("#temperature").fill("0")
        page.locator("#message").focus()
        for question in ("Hello", "Tell me about the small AI"):
            page.keyboard.type(question)
            page.keyboard.press("Enter")
            expect(page.locator("#status")).to_contain_text("tokens in", timeout=20000)
        self.assertEqual(page.locator(".turn.user").count(), 2)
        answers = page.locator(".turn.assistant").all_inner_texts()
        self.assertEqual(len(answers), 2)
        self.assertIn("Hello!", answers[0])
        expect(page.locator("#v-ttft")).to_contain_text("p50", timeout=10000)
        expect(page.locator("#c-tokens polyline")).to_have_count(1, timeout=10000)
        expect(page.locator("#c-ttft polyline")).to_have_count(2)
        page.screenshot(path=str(BUILD / "page.png"))
        page.locator("#clear").click()
        self.assertEqual(page.locator(".turn").count(), 0)
        self.assertEqual(self.problems, [])
        for url in self.requests:
            self.assertTrue(url.startswith((self.server.url, "data:")), url)

    def test_stop(self):
        def endless(route):
            body = json.loads(route.request.post_data)
            body.update(ignore_eos=True, max_tokens=1900)
            route.continue_(post_data=json.dumps(body))

        self.page.route("**/v1/chat/completions", endless)
        self.page.locator("#message").fill("Tell me a story")
        self.page.locator("#send").click()
        expect(self.page.locator(".turn.assistant")).to_have_count(1)
        expect(self.page.locator("#stop")).to_be_enabled()
        self.page.locator("#stop").click()
        expect(self.page.locator("#status")).to_have_text("stopped")
        expect(self.page.locator("#send")).to_be_enabled()

    def test_errors_are_shown(self):
        self.page.locator("#temperature").fill("9")
        self.page.locator("#message").fill("Hello")
        self.page.evaluate("document.getElementById('form').noValidate = true")
        self.page.locator("#send").click()
        expect(self.page.locator(".turn.error")).to_contain_text("temperature")

    def test_accessibility(self):
        self.page.locator("#message").fill("Hello")
        self.page.keyboard.press("Enter")
        expect(self.page.locator("#status")).to_contain_text("tokens in", timeout=20000)
        found = Axe().run(self.page)
        self.assertEqual(found.violations_count, 0, found.generate_report())


if __name__ == "__main__":
    unittest.main()
