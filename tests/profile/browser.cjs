// Opens a page of `profile` in a real browser without a network and does what it is told:
//   node browser.cjs CHROMIUM PLAYWRIGHT PAGE STEPS.json
// Each step is {"do": "...", ...}; prints {"errors": [...], "requests": [...], "results": [...]}.
"use strict";
const fs = require("fs");
const { pathToFileURL } = require("url");

const [chromium, playwright, page, stepsPath] = process.argv.slice(2);
const { chromium: browserType } = require(playwright);

(async () => {
  const steps = JSON.parse(fs.readFileSync(stepsPath));
  const browser = await browserType.launch({
    executablePath: chromium, headless: true,
    args: ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
  });
  const first = steps[0] && steps[0].do === "window" ? steps[0] : {};
  const context = await browser.newContext({
    viewport: { width: first.width || 1400, height: first.height || 900 },
    colorScheme: first.scheme || "light", offline: true,
    bypassCSP: true, // for what the test evaluates; the page itself asks for nothing
  });
  const tab = await context.newPage();
  const errors = [], requests = [], results = [];
  tab.on("console", (message) => { if (["error", "warning"].includes(message.type())) errors.push(message.text()); });
  tab.on("pageerror", (error) => errors.push(String(error)));
  const url = pathToFileURL(page).href;
  tab.on("request", (request) => { if (request.url() !== url) requests.push(request.url()); });
  const begun = Date.now();
  await tab.goto(url + (first.hash || ""));
  await tab.waitForFunction("window.__ready !== undefined", undefined, { timeout: 20000 })
    .catch((error) => { throw new Error([error.message, ...errors].join("\n")); });
  const ready = await tab.evaluate("window.__ready");
  for (const step of steps) {
    if (step.do === "drag") {
      await tab.locator(step.on).scrollIntoViewIfNeeded();
      const box = await tab.locator(step.on).boundingBox();
      const [top, bottom] = [step.top || 0.5, step.bottom || 0.5];
      await tab.mouse.move(box.x + box.width * step.from, box.y + box.height * top);
      await tab.mouse.down();
      await tab.mouse.move(box.x + box.width * step.to, box.y + box.height * bottom, { steps: 5 });
      await tab.mouse.up();
    } else if (step.do === "point") await tab.locator(step.on).hover({ position: { x: step.x, y: step.y } });
    else if (step.do === "click") await tab.locator(step.on).first().click(step.x ? { position: { x: step.x, y: step.y } } : {});
    else if (step.do === "search") { await tab.keyboard.press("/"); await tab.keyboard.type(step.text); await tab.keyboard.press("Enter"); }
    else if (step.do === "press") await tab.keyboard.press(step.key);
    else if (step.do === "select") await tab.locator(step.on).selectOption(step.value);
    else if (step.do === "eval") results.push(await tab.evaluate(step.code));
    else if (step.do === "shot") await (step.on ? tab.locator(step.on) : tab).screenshot({ path: step.path, ...(step.on ? {} : { fullPage: step.full || false }) });
    await tab.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
  }
  process.stdout.write(JSON.stringify({ errors, requests, results, ready, loaded: Date.now() - begun }) + "\n");
  await browser.close();
})().catch((error) => { process.stderr.write(`${error.stack}\n`); process.exit(1); });
