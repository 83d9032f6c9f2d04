// Opens ComfyUI's page, loads workflows as a person would, and reports what it saw: page.mjs JOB.json
//
// JOB: { browser, url, out, workflows: { name: workflow }, run: [name, ...] }. Writes JOB.out/report.json and pictures.
// Only observes; what must hold is asserted in test_page.py.

import fs from 'node:fs'
import path from 'node:path'
import { chromium } from 'playwright-core'

const job = JSON.parse(fs.readFileSync(process.argv[2], 'utf8'))
const report = { console: [], workflows: {} }

// The welcome dialog would cover the page.
await fetch(`${job.url}/api/settings`, { method: 'POST', body: JSON.stringify({ 'Comfy.TutorialCompleted': true }) })

const browser = await chromium.launch({
  executablePath: job.browser,
  args: process.getuid?.() === 0 ? ['--no-sandbox'] : [] // Chromium's sandbox refuses to run as root
})
const page = await browser.newPage({ viewport: { width: 1600, height: 1000 } })
page.setDefaultTimeout(180_000) // a busy machine is not a failure
page.on('pageerror', (error) => report.console.push(`uncaught: ${error}`))
page.on('console', (message) => {
  if (message.type() === 'error') report.console.push(`${message.text()} ${message.location().url}`)
})
await page.goto(job.url)
await page.waitForFunction(() => window.app?.vueAppReady && window.LiteGraph?.registered_node_types.HiLoUnpack)

for (const [name, workflow] of Object.entries(job.workflows)) {
  await page.evaluate((workflow) => window.app.loadGraphData(workflow), workflow)
  await page.waitForTimeout(500) // missing models and pictures are looked up after loading
  await page.evaluate(fitToScreen)
  report.workflows[name] = await page.evaluate(look)
  await screenshot(name)
  if (job.run.includes(name)) {
    await page.evaluate(() => window.app.queuePrompt(0))
    await page.waitForFunction(done)
    await page.waitForTimeout(1000)
    report.workflows[name].pictures = await page.evaluate(pictures)
    await screenshot(`${name}_ran`)
  }
}
await browser.close()
fs.writeFileSync(path.join(job.out, 'report.json'), JSON.stringify(report))

async function screenshot(name) {
  await page.waitForTimeout(300)
  const banners = await page.getByText(/\d+ errors? found/).count()
  if (banners) report.console.push(`${name}: the page shows its error banner`)
  await page.screenshot({ path: path.join(job.out, `${name}.png`) })
}

// The functions below run in the page.

function fitToScreen() {
  const { graph, canvas } = window.app
  const boxes = [...graph._nodes, ...graph._groups].map(({ pos, size }) => [...pos, pos[0] + size[0], pos[1] + size[1]])
  const [left, top] = [0, 1].map((i) => Math.min(...boxes.map((box) => box[i])) - 20)
  const [right, bottom] = [2, 3].map((i) => Math.max(...boxes.map((box) => box[i])) + 20)
  const bars = 80 // the page's own, at the left and the top
  canvas.ds.scale = Math.min((innerWidth - bars) / (right - left), (innerHeight - bars) / (bottom - top))
  canvas.ds.offset[0] = bars / canvas.ds.scale - left
  canvas.ds.offset[1] = bars / canvas.ds.scale - top
  canvas.setDirty(true, true)
}

async function look() {
  const { graph } = window.app
  const known = window.LiteGraph.registered_node_types
  return {
    nodes: graph._nodes.length,
    red: graph._nodes.filter((node) => node.has_errors || !known[node.type]).map((node) => node.type),
    links: graph.serialize().links.length,
    prompt: (await window.app.graphToPrompt()).output
  }
}

function done() {
  return window.app.graph._nodes.some((node) => node.type === 'SaveImage' && node.imgs?.length)
}

function pictures() {
  const shown = window.app.graph._nodes.filter((node) => node.imgs?.length)
  return Object.fromEntries(shown.map((node) => [node.type, [node.imgs[0].naturalWidth, node.imgs[0].naturalHeight]]))
}
