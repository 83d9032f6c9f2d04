// Opens ComfyUI's page, uses it as a person would, and reports what it saw: page.mjs JOB.json
//
// JOB: { browser, url, out, workflows: { name: workflow }, run, picture, large }. Writes JOB.out/report.json and pictures.
// Only observes; what must hold is asserted in test_page.py.

import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { chromium } from 'playwright-core'
import * as inPage from './in_page.mjs'

const job = JSON.parse(fs.readFileSync(process.argv[2], 'utf8'))
const report = { console: [], workflows: {}, states: {} }

const browser = await chromium.launch({
  executablePath: job.browser,
  args: [
    '--disable-dev-shm-usage', // shared memory is small in containers
    ...(process.getuid?.() === 0 ? ['--no-sandbox'] : []) // Chromium's sandbox refuses to run as root
  ]
})
await settings({ 'Comfy.TutorialCompleted': true }) // the welcome dialog would cover the page
const page = await open()

await everyWorkflow()
await builtByHand()
await liveAndRun()
await themes()

await browser.close()
fs.writeFileSync(path.join(job.out, 'report.json'), JSON.stringify(report))

async function everyWorkflow() {
  for (const [name, workflow] of Object.entries(job.workflows)) {
    await page.evaluate((workflow) => window.app.loadGraphData(workflow), workflow)
    await page.waitForTimeout(500) // missing models and pictures are looked up after loading
    await page.evaluate(inPage.fitToScreen)
    report.workflows[name] = await page.evaluate(inPage.look)
    await screenshot(name)
  }
}

/** Search for each node, pull the links with the mouse, choose a picture. */
async function builtByHand() {
  await page.evaluate(inPage.clear)
  const nodes = [
    ['Load Image', 'LoadImage', 0],
    ['HiLo Token Planner', 'HiLoTokenPlanner', 420],
    ['HiLo Patch Model', 'HiLoPatchModel', 900],
    ['HiLo Unpack', 'HiLoUnpack', 1300]
  ]
  for (const [words, type, x] of nodes) {
    await openSearch()
    await page.keyboard.type(words, { delay: 10 })
    await page.waitForTimeout(1500) // the list of matches follows the typing
    await page.keyboard.press('Enter') // the node hangs on the pointer until a click drops it
    await page.waitForFunction((type) => window.app.graph._nodes.some((node) => node.type === type), type)
    await drop(type)
    await page.evaluate(inPage.move, [type, x - 400, -2000]) // out of the way of the next double click
  }
  await page.evaluate(inPage.fitToScreen)
  await page.waitForTimeout(300)
  const links = [
    [['LoadImage', false, 'IMAGE'], ['HiLoTokenPlanner', true, 'image']],
    [['LoadImage', false, 'MASK'], ['HiLoTokenPlanner', true, 'mask']],
    [['HiLoTokenPlanner', false, 'plan'], ['HiLoPatchModel', true, 'plan']],
    [['HiLoTokenPlanner', false, 'plan'], ['HiLoUnpack', true, 'plan']]
  ]
  await state('unconnected')
  for (const [from, to] of links) {
    const [start, end] = [await page.evaluate(inPage.socket, from), await page.evaluate(inPage.socket, to)]
    await page.mouse.move(...start)
    await page.mouse.down()
    await page.mouse.move(...end, { steps: 8 })
    await page.mouse.up()
  }
  await choose('example.png')
  await noted('mask is empty')
  await state('unpainted')
  await choose(job.picture)
  await state('by_hand')
}

/** Click until a new node no longer hangs on the pointer: a busy page may not have picked it up by the first click. */
async function drop(type) {
  const dropped = (type) => !window.app.graph._nodes.find((node) => node.type === type).flags.ghost
  for (let tries = 0; tries < 5; tries++) {
    await page.mouse.move(1000 + tries, 300, { steps: 3 })
    await page.mouse.click(1000 + tries, 300)
    const done = page.waitForFunction(dropped, type, { timeout: 3000 })
    if (await done.then(() => true, () => false)) return
  }
  throw new Error(`${type} was not dropped`)
}

/** Double click until the search box has the keyboard: a busy page takes two slow clicks for two single ones. */
async function openSearch() {
  for (let tries = 0; tries < 10; tries++) {
    await page.waitForTimeout(1000) // or it counts as a third click
    await page.mouse.dblclick(1000, 600)
    const focused = page.waitForFunction(() => document.activeElement?.tagName === 'INPUT', null, { timeout: 5000 })
    if (await focused.then(() => true, () => false)) return
  }
  throw new Error('the search box did not open')
}

/** The preview follows sliders without a run; then the demo runs, and again with a picture other nodes have made. */
async function liveAndRun() {
  await page.evaluate((workflow) => window.app.loadGraphData(workflow), job.workflows[job.run])
  await planShown()
  report.presets = {}
  for (const [name, value] of [['preset', 'quality'], ['dilation', 40], ['preset', 'balanced'], ['preset', 'custom']]) {
    await page.evaluate(inPage.setWidget, ['HiLoTokenPlanner', name, value])
    report.presets[value] = await page.evaluate(inPage.widgets, 'HiLoTokenPlanner')
  }
  await page.waitForTimeout(500)
  await choose(job.large)
  report.slider_ms = await page.evaluate(inPage.timeSlider, [...Array(24).keys()].map((move) => 28 + 4 * move))
  report.slider_load = os.loadavg()[0]
  await page.evaluate(inPage.setWidget, ['HiLoTokenPlanner', 'dilation', 24])
  await choose(job.picture)
  report.contexts = {}
  for (const context of ['low', 'cache', 'rolling', 'none', 'auto']) {
    await page.evaluate(inPage.setWidget, ['HiLoPatchModel', 'context', context])
    await page.waitForTimeout(1000)
    report.contexts[context] = (await page.evaluate(inPage.views)).HiLoTokenPlanner
  }
  await page.evaluate(inPage.setWidget, ['KSampler', 'steps', 3])
  await run()
  report.pictures = await page.evaluate(inPage.pictures)
  await page.evaluate(inPage.fitToScreen)
  await state('ran')
  report.after_run = await page.evaluate(inPage.look)
  await page.evaluate(inPage.zoomTo, ['HiLoTokenPlanner', 1.2])
  await state('planner')
  await page.evaluate(inPage.zoomTo, ['HiLoPatchModel', 1.2])
  await state('patch')
  await speak('zh')
  await state('patch_in_chinese')
  await speak('en')

  await page.evaluate(() => {
    const { graph } = window.app
    const find = (type) => graph._nodes.find((node) => node.type === type)
    const mirrored = window.LiteGraph.createNode('ImageInvert')
    graph.add(mirrored)
    mirrored.pos = [470, -160]
    find('LoadImage').connect(0, mirrored, 0)
    mirrored.connect(0, find('HiLoTokenPlanner'), 0)
  })
  await noted('last run')
  await state('computed')
}

/** Choose the page's language, and wait until it has made its nodes anew. */
async function speak(language) {
  await page.evaluate(inPage.speak, language)
  await page.waitForFunction(() => window.app.graph._nodes.length && !window.app.graph._nodes.some((node) => node.old))
  await page.waitForTimeout(500)
}

/** Wait until a box of ours says these words. */
async function noted(words) {
  const said = (words) =>
    [...document.querySelectorAll('.hilo-view .note')].some((note) => note.textContent.includes(words))
  await page.waitForFunction(said, words)
}

/** The same page in the light theme, zoomed in, in Chinese, and with the page's newer way to draw nodes. */
async function themes() {
  await page.evaluate(inPage.zoomTo, ['HiLoTokenPlanner', 2.2])
  await state('dark_zoomed')
  for (const [name, options] of [
    ['light', { 'Comfy.ColorPalette': 'light' }],
    ['chinese', { 'Comfy.ColorPalette': 'dark', 'Comfy.Locale': 'zh' }],
    ['vue_nodes', { 'Comfy.Locale': 'en', 'Comfy.VueNodes.Enabled': true }]
  ]) {
    await settings(options)
    const other = await open()
    await other.evaluate((workflow) => window.app.loadGraphData(workflow), job.workflows[job.run])
    await planShown(other)
    await other.evaluate(inPage.fitToScreen)
    await state(name, other)
    await other.evaluate(inPage.zoomTo, ['HiLoTokenPlanner', 1.15])
    await state(`${name}_zoomed`, other)
    if (name === 'chinese') await help(other, 'HiLoUnpack')
    await other.close()
  }
}

/** Open a node's help as its info button does, and see whether its pictures have come. */
async function help(opened, type) {
  await opened.evaluate((type) => {
    const { app } = window
    app.canvas.selectNode(app.graph._nodes.find((node) => node.type === type))
  }, type)
  // Not a click of the mouse: beside a node at the page's edge the button lies under its tabs.
  await opened.getByTestId('info-button').first().dispatchEvent('click')
  const content = opened.locator('.node-help-content')
  await content.locator('img').first().waitFor()
  await opened.waitForTimeout(1000)
  const widths = await content.locator('img').evaluateAll((pictures) => pictures.map((one) => one.naturalWidth))
  report.help = { text: await content.innerText(), widths }
  await screenshot('help_in_chinese', opened)
}

async function open() {
  const opened = await browser.newPage({ viewport: { width: 1600, height: 1000 } })
  opened.setDefaultTimeout(180_000) // a busy machine is not a failure
  opened.on('pageerror', (error) => report.console.push(`uncaught: ${error}`))
  opened.on('console', (message) => {
    if (message.type() === 'error') report.console.push(`${message.text()} ${message.location().url}`)
  })
  await opened.goto(job.url)
  await opened.waitForFunction(() => window.app?.vueAppReady && window.LiteGraph?.registered_node_types.HiLoUnpack)
  return opened
}

function settings(values) {
  return fetch(`${job.url}/api/settings`, { method: 'POST', body: JSON.stringify(values) })
}

async function choose(picture) {
  await page.evaluate(inPage.setWidget, ['LoadImage', 'image', picture])
  await page.waitForTimeout(1500)
}

function planShown(opened = page) {
  return opened.waitForFunction(() => document.querySelector('.hilo-view .headline')?.textContent.includes('token'))
}

async function run() {
  await page.evaluate(() => window.app.queuePrompt(0))
  await page.waitForFunction(inPage.saved)
  await page.waitForTimeout(1000)
}

async function state(name, opened = page) {
  report.states[name] = await opened.evaluate(inPage.views)
  await screenshot(name, opened)
}

async function screenshot(name, opened = page) {
  await opened.waitForTimeout(300)
  const banners = await opened.getByText(/\d+ errors? found/).count()
  if (banners) report.console.push(`${name}: the page shows its error banner`)
  await opened.screenshot({ path: path.join(job.out, `${name}.png`) })
}
