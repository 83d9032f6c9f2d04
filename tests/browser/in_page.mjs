// What is done inside ComfyUI's page, by functions that Playwright sends there.

export function fitToScreen() {
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

/** Bring a node to the top left corner, enlarged. */
export function zoomTo([type, scale]) {
  const node = window.app.graph._nodes.find((node) => node.type === type)
  const { ds } = window.app.canvas
  ds.scale = scale
  ds.offset[0] = 150 / scale - node.pos[0]
  ds.offset[1] = 110 / scale - node.pos[1]
  window.app.canvas.setDirty(true, true)
}

export async function look() {
  const { graph } = window.app
  const known = window.LiteGraph.registered_node_types
  return {
    nodes: graph._nodes.length,
    red: graph._nodes.filter((node) => node.has_errors || !known[node.type]).map((node) => node.type),
    links: graph.serialize().links.length,
    saved: graph.serialize(),
    prompt: (await window.app.graphToPrompt()).output
  }
}

/** Empty the page's graph. */
export async function clear() {
  const empty = { nodes: [], links: [], groups: [], config: {}, extra: {}, version: 0.4 }
  await window.app.loadGraphData({ ...empty, last_node_id: 0, last_link_id: 0 })
}

/** Where on the screen a node's socket lies: [type, whether an input, its name]. */
export function socket([type, isInput, name]) {
  const node = window.app.graph._nodes.find((node) => node.type === type)
  const slot = (isInput ? node.inputs : node.outputs).findIndex((entry) => entry.name === name)
  const { canvas } = window.app
  const [x, y] = canvas.ds.convertOffsetToCanvas(isInput ? node.getInputPos(slot) : node.getOutputPos(slot))
  const box = canvas.canvas.getBoundingClientRect()
  return [box.left + x, box.top + y]
}

export function move([type, x, y]) {
  window.app.graph._nodes.find((node) => node.type === type).pos = [x, y]
  window.app.canvas.setDirty(true, true)
}

export function setWidget([type, name, value]) {
  const node = window.app.graph._nodes.find((node) => node.type === type)
  const widget = node.widgets.find((widget) => widget.name === name)
  widget.value = value
  widget.callback?.(value)
}

/** The values of a node's widgets by name. */
export function widgets(type) {
  const node = window.app.graph._nodes.find((node) => node.type === type)
  return Object.fromEntries(node.widgets.map((widget) => [widget.name, widget.value]))
}

/** What the pack's own boxes say, one a node: { type: { headline, note, legend, picture, tokens } }. */
export function views() {
  const found = {}
  for (const node of window.app.graph._nodes) {
    const box = node.widgets?.find((widget) => widget.type === 'hilo_view')?.element
    if (!box) continue
    const map = box.querySelector('.map')
    found[node.type] = {
      headline: box.querySelector('.headline').textContent,
      note: box.querySelector('.note').textContent,
      lines: [...box.querySelectorAll('.note div')].map((line) => line.textContent),
      legend: [...box.querySelectorAll('.legend span')].map((entry) => entry.textContent),
      picture: !box.querySelector('.picture').hasAttribute('hidden'),
      tokens: map ? getComputedStyle(map).imageRendering : ''
    }
  }
  return found
}

/** Milliseconds from a slider's new position to the new plan on the node: [value, ...]. */
export async function timeSlider(values) {
  const planner = window.app.graph._nodes.find((node) => node.type === 'HiLoTokenPlanner')
  const slider = planner.widgets.find((widget) => widget.name === 'dilation')
  const legend = planner.widgets.find((widget) => widget.type === 'hilo_view').element.querySelector('.legend')
  const times = []
  for (const value of values) {
    const changed = new Promise((resolve) => {
      const watch = new MutationObserver(() => legend.textContent && (watch.disconnect(), resolve()))
      watch.observe(legend, { childList: true })
    })
    const start = performance.now()
    slider.value = value
    await changed
    await new Promise(requestAnimationFrame) // drawn
    times.push(performance.now() - start)
    await new Promise((resolve) => setTimeout(resolve, 150))
  }
  return times
}

/** Change the page's language; the nodes of before are marked as old. */
export function speak(language) {
  for (const node of window.app.graph._nodes) node.old = true
  return window.app.extensionManager.setting.set('Comfy.Locale', language)
}

export function saved() {
  return window.app.graph._nodes.some((node) => node.type === 'SaveImage' && node.imgs?.length)
}

export function pictures() {
  const shown = window.app.graph._nodes.filter((node) => node.imgs?.length)
  return Object.fromEntries(shown.map((node) => [node.type, [node.imgs[0].naturalWidth, node.imgs[0].naturalHeight]]))
}
