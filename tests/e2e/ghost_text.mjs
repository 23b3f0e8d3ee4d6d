// Types into VS Code in a headless Chromium, waits for ghost text, accepts it and saves.
// Usage: node ghost_text.mjs JSON, where JSON holds
//   browser       the Chromium to run
//   url           code-server's address, with the file to open and where to place the cursor
//   line, column  that place, from 1
//   typed         what to type there
//   screenshot    where to put the picture of the ghost text
//   timeoutMs     how long each step may take
// The last line on stdout is a JSON object: {"ghostText", "status", "shownAfterMs"}, where ghostText
// has lost its line ends.
import { createRequire } from "node:module";

// Playwright lies in the extension's node_modules, where its version is locked.
const require = createRequire(new URL("../../editor-extension/package.json", import.meta.url));
const { chromium } = require("playwright-core");

const EDITOR = ".monaco-editor[role='code']";
const GHOST_IN_LINE = `${EDITOR} .ghost-text-decoration`; // at the cursor
const GHOST_BELOW = `${EDITOR} .ghost-text`; // further lines
const STATUS = "#mezzotint\\.mezzotint\\.mezzotint";
const KEYSTROKE_MS = 80; // about a fast typist's

const task = JSON.parse(process.argv[2]);

const browser = await chromium.launch({
  executablePath: task.browser,
  // The sandbox does not run as root, and containers often have a small /dev/shm.
  args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
});
try {
  const page = await browser.newPage({ viewport: { width: 1280, height: 800 } });
  page.setDefaultTimeout(task.timeoutMs);
  try {
    await page.goto(task.url);
    console.log(JSON.stringify(await typeAndAccept(page)));
  } catch (error) {
    // Shows what stood in the way; the status tells why the server had nothing to offer.
    await page.screenshot({ path: task.screenshot });
    console.error("Status:", await labels(page.locator(STATUS)));
    throw error;
  }
} finally {
  await browser.close();
}

async function typeAndAccept(page) {
  const place = `Ln ${task.line}, Col ${task.column}`;
  await page.locator("#status\\.editor\\.selection", { hasText: place }).waitFor();
  await page.locator(`${EDITOR}.focused`).waitFor();
  const status = page.locator(STATUS, { hasNot: page.locator(".codicon-loading") });
  await status.waitFor();
  await page.keyboard.type(task.typed, { delay: KEYSTROKE_MS });
  const typedAt = Date.now();

  const ghost = page.locator(GHOST_IN_LINE).or(page.locator(GHOST_BELOW));
  await ghost.first().waitFor();
  const shownAfterMs = Date.now() - typedAt;
  await page.screenshot({ path: task.screenshot });
  const parts = [GHOST_IN_LINE, GHOST_BELOW].map((part) => page.locator(part).allTextContents());
  const ghostText = (await Promise.all(parts)).flat().join("").replaceAll("\u00a0", " ");

  await page.keyboard.press("Tab");
  await page.keyboard.press("Control+s");
  await page.locator(".tab.active:not(.dirty)").waitFor();
  return { ghostText, status: await labels(status), shownAfterMs };
}

function labels(locator) {
  return locator.evaluateAll((items) => items.map((item) => item.ariaLabel).join());
}
