// The live plan on HiLo Token Planner, and what a run did on HiLo Patch Model.

import { api } from '../../../scripts/api.js'
import { app } from '../../../scripts/app.js'
import { isConnected, isDriven, picturesOf, takerOf } from './upstream.js'
import { addView } from './view.js'
import { wordsIn } from './words.js'

const LOOK_EVERY_MS = 50 // so a moving slider asks at most twenty times a second
const ASK_AGAIN_MS = 3000 // a server that did not answer
const PLAN_HEIGHT = 300
const RUN_HEIGHT = 96
const DECIDING = ['context', 'method', 'share'] // widgets of HiLo Patch Model that the size of a step depends on

let messages = {} // of the pack, by language
let speaking = null // words of the language that the page has now
let language = ''

function words() {
  const now = app.extensionManager.setting.get('Comfy.Locale')
  if (now !== language || !speaking) speaking = wordsIn(messages, (language = now))
  return speaking
}

/** The values of a node's widgets by name. */
function valuesOf(node, names) {
  const widgets = node.widgets.filter((widget) => names.includes(widget.name))
  return Object.fromEntries(widgets.map((widget) => [widget.name, widget.value]))
}

/** Choosing a preset shows its values on the planner's widgets, and moving one of these makes it custom. */
function followPreset(node) {
  const { hilo_presets: presets } = node.constructor.nodeData?.input?.required?.preset?.[1] ?? {}
  if (!presets) return // of a ComfyUI too old to tell the page
  const named = (name) => node.widgets.find((widget) => widget.name === name)
  const preset = named('preset')
  follow(preset, 'callback', (chosen) => {
    for (const [name, value] of Object.entries(presets[chosen] ?? {})) named(name).value = value
  })
  for (const name of Object.keys(presets.balanced)) {
    follow(named(name), 'callback', (value) => {
      const chosen = presets[preset.value]
      if (chosen && value !== chosen[name] && !isDriven(node, name)) preset.value = 'custom'
    })
  }
}

/** The live plan of one planner node. */
class LivePlan {
  constructor(node) {
    this.node = node
    this.view = addView(node, 'hilo_plan_view', PLAN_HEIGHT, words)
    this.asked = null // what is shown or on its way
    this.shownPicture = null
    this.request = null
  }

  /** Ask for a new plan if a picture, the mask or a slider has changed since. */
  look() {
    const pictures = picturesOf(this.node)
    const saved = lastRuns.get(placeOf(this.node)) ?? app.nodeOutputs?.[this.node.id]?.hilo_plan?.[0]
    const stored = saved && { image: saved, mask: { image: saved, channel: 'alpha' } }
    const subject = pictures ?? (isConnected(this.node) ? stored : null)
    if (!subject) {
      this.tell(isConnected(this.node) ? 'runFirst' : 'connect')
      return
    }
    const taker = takerOf(this.node)
    const use = taker && valuesOf(taker, DECIDING)
    const key = JSON.stringify({ ...subject, settings: this.settings(), use })
    if (key === this.asked) return
    this.asked = key
    const driven = [this.node, taker].some((node) => node && isDriven(node))
    const notes = [pictures ? '' : 'lastRun', driven ? 'driven' : ''].filter(Boolean)
    this.ask({ ...JSON.parse(key), picture: subject.image !== this.shownPicture }, notes)
  }

  /** The planner's own widgets by name; the page may have added others. */
  settings() {
    const inputs = Object.values(this.node.constructor.nodeData?.input ?? {})
    return valuesOf(this.node, inputs.flatMap((group) => Object.keys(group)))
  }

  async ask(body, notes) {
    this.request?.abort() // nobody waits for the older position of a slider
    const request = (this.request = new AbortController())
    const post = { method: 'POST', headers: { 'Content-Type': 'application/json' }, signal: request.signal }
    try {
      const answer = await api.fetchApi('/hilo_token/preview', { ...post, body: JSON.stringify(body) })
      const plan = await answer.json()
      if (request.signal.aborted) return
      if (plan.error) this.view.trouble(plan.error, plan.picture)
      else this.view.plan(plan, body.use, notes)
      this.shownPicture = plan.picture || !plan.error ? body.image : null
    } catch (error) {
      if (request.signal.aborted) return
      this.view.say('noAnswer')
      this.shownPicture = null
      setTimeout(() => request === this.request && (this.asked = null), ASK_AGAIN_MS)
    }
    this.node.graph?.setDirtyCanvas(true, true)
  }

  tell(key) {
    if (this.asked === key) return
    this.request?.abort()
    this.asked = key
    this.shownPicture = null
    this.view.say(key)
  }
}

// By the node's place: undoing a change, or choosing another language, makes every node anew. A planner's is the name of
// the temporary file with picture and mask, a patcher's the facts of its run.
const lastRuns = new Map()

function place(graph, node) {
  return `${graph} ${node}`
}

function placeOf(node) {
  return place(node.graph?.id, node.id)
}

function rootOf({ graph }) {
  return graph?.rootGraph ?? graph
}

/** Whether a node is in its workflow still: what lies in a subgraph is not told when the workflow is made anew. */
function isLive(node) {
  const root = rootOf(node)
  return Boolean(root) && (root === node.graph || root.subgraphs?.get(node.graph.id) === node.graph)
}

const plans = new Set()
const patchers = new Set()
let drawnWith = null

/** Say everything again, in a language that has just been chosen or loaded. */
function redraw() {
  drawnWith = words()
  for (const view of [...plans].map((plan) => plan.view).concat([...patchers].map((node) => node.hiloRun))) view.again()
}

setInterval(() => {
  if (app.extensionManager?.setting && words() !== drawnWith) redraw()
  for (const plan of plans) {
    if (isLive(plan.node)) document.hidden || plan.look()
    else if (plan.node.graph) plans.delete(plan)
  }
}, LOOK_EVERY_MS)

function follow(node, name, act) {
  const before = node[name]
  node[name] = function (...args) {
    act(...args)
    return before?.apply(this, args)
  }
}

app.registerExtension({
  name: 'hilotoken.nodes',

  async setup() {
    api.addEventListener('hilo_token.run', ({ detail }) => {
      const id = String(detail.node).split(':').pop() // inside a subgraph: the subgraph's id, a colon, its own
      if (detail.workflow) lastRuns.set(place(detail.workflow, detail.node), detail.facts) // it may not be open now
      for (const node of patchers) {
        if (String(node.id) !== id || !isLive(node)) continue
        if (detail.workflow && detail.workflow !== rootOf(node).id) continue
        lastRuns.set(placeOf(node), detail.facts)
        node.hiloRun.run(detail.facts)
      }
    })
    const all = await (await api.fetchApi('/i18n')).json() // of every pack
    messages = Object.fromEntries(Object.entries(all).map(([name, own]) => [name, own.hiloToken ?? {}]))
    speaking = null
  },

  nodeCreated(node) {
    if (node.comfyClass === 'HiLoTokenPlanner') {
      const plan = new LivePlan(node)
      plans.add(plan)
      followPreset(node)
      follow(node, 'onExecuted', (output) => output?.hilo_plan && lastRuns.set(placeOf(node), output.hilo_plan[0]))
      follow(node, 'onRemoved', () => plans.delete(plan))
    }
    if (node.comfyClass === 'HiLoPatchModel') {
      node.hiloRun = addView(node, 'hilo_run_view', RUN_HEIGHT, words)
      node.hiloRun.say('noRun')
      patchers.add(node)
      follow(node, 'onConfigure', () => {
        const facts = lastRuns.get(placeOf(node))
        if (facts) node.hiloRun.run(facts)
      })
      follow(node, 'onRemoved', () => patchers.delete(node))
    }
  }
})
