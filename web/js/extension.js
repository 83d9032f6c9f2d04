// The live plan on HiLo Token Planner, and what a run did on HiLo Patch Model.

import { api } from '../../../scripts/api.js'
import { app } from '../../../scripts/app.js'
import { isConnected, isDriven, picturesOf } from './upstream.js'
import { addView } from './view.js'

const LOOK_EVERY_MS = 50 // so a moving slider asks at most twenty times a second
const PLAN_HEIGHT = 300
const RUN_HEIGHT = 96
const LAST_RUN = 'Other nodes make this picture or mask: shown as in the last run.'
const DRIVEN = 'Other nodes set some of these widgets: shown with the values that stand here.'
const RUN_FIRST = 'Other nodes make this picture or mask: run once to see its plan.'
const NO_RUN = 'After a run: its tokens, speed and memory.'
const CONNECT = 'Connect a picture and its mask to see the plan.'

/** The live plan of one planner node. */
class LivePlan {
  constructor(node) {
    this.node = node
    this.view = addView(node, 'hilo_plan_view', PLAN_HEIGHT)
    this.asked = null // what is shown or on its way
    this.lastRun = null // the name of the temporary file with the last run's picture and mask
    this.shownPicture = null
    this.request = null
  }

  /** Ask for a new plan if a picture, the mask or a slider has changed since. */
  look() {
    const pictures = picturesOf(this.node)
    const saved = this.lastRun ?? app.nodeOutputs?.[this.node.id]?.hilo_plan?.[0]
    const stored = saved && { image: saved, mask: { image: saved, channel: 'alpha' } }
    const subject = pictures ?? (isConnected(this.node) ? stored : null)
    if (!subject) {
      this.tell(isConnected(this.node) ? RUN_FIRST : CONNECT)
      return
    }
    const key = JSON.stringify({ ...subject, settings: this.settings() })
    if (key === this.asked) return
    this.asked = key
    const notes = [pictures ? '' : LAST_RUN, isDriven(this.node) ? DRIVEN : '']
    this.ask({ ...JSON.parse(key), picture: subject.image !== this.shownPicture }, notes.filter(Boolean).join(' '))
  }

  /** The planner's own widgets by name; the page may have added others. */
  settings() {
    const own = Object.values(this.node.constructor.nodeData?.input ?? {}).flatMap((group) => Object.keys(group))
    const widgets = this.node.widgets.filter((widget) => own.includes(widget.name))
    return Object.fromEntries(widgets.map((widget) => [widget.name, widget.value]))
  }

  async ask(body, note) {
    this.request?.abort() // nobody waits for the older position of a slider
    const request = (this.request = new AbortController())
    const post = { method: 'POST', headers: { 'Content-Type': 'application/json' }, signal: request.signal }
    try {
      const answer = await api.fetchApi('/hilo_token/preview', { ...post, body: JSON.stringify(body) })
      const plan = await answer.json()
      if (request.signal.aborted) return
      if (plan.error) this.view.trouble(plan.error, plan.picture)
      else this.view.plan(plan, note)
      this.shownPicture = plan.picture || !plan.error ? body.image : null
    } catch (error) {
      if (request.signal.aborted) return
      this.view.trouble('The server did not answer; the preview comes back with the next change.')
      this.shownPicture = null
    }
    this.node.graph?.setDirtyCanvas(true, true)
  }

  tell(sentence) {
    if (this.asked === sentence) return
    this.request?.abort()
    this.asked = sentence
    this.shownPicture = null
    this.view.say(sentence)
  }
}

const plans = new Set()
const patchers = new Set()

setInterval(() => {
  if (!document.hidden) for (const plan of plans) if (plan.node.graph) plan.look()
}, LOOK_EVERY_MS)

function follow(node, name, act) {
  const before = node[name]
  node[name] = function (...args) {
    act(...args)
    return before?.apply(this, args)
  }
}

app.registerExtension({
  name: 'hilo_token',

  setup() {
    api.addEventListener('hilo_token.run', ({ detail }) => {
      const id = String(detail.node).split(':').pop() // inside a subgraph: the subgraph's id, a colon, its own
      for (const node of patchers) {
        if (String(node.id) !== id) continue
        node.hiloRun.lines(detail.lines)
      }
    })
  },

  nodeCreated(node) {
    if (node.comfyClass === 'HiLoTokenPlanner') {
      const plan = new LivePlan(node)
      plans.add(plan)
      follow(node, 'onExecuted', (output) => (plan.lastRun = output?.hilo_plan?.[0] ?? plan.lastRun))
      follow(node, 'onRemoved', () => plans.delete(plan))
    }
    if (node.comfyClass === 'HiLoPatchModel') {
      node.hiloRun = addView(node, 'hilo_run_view', RUN_HEIGHT)
      node.hiloRun.say(NO_RUN)
      patchers.add(node)
      follow(node, 'onRemoved', () => patchers.delete(node))
    }
  }
})
