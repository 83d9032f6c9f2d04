// What a node shows below its widgets. Drawn from the server's answer alone: the page plans and counts nothing itself,
// it only finds the words.

const SVG = 'http://www.w3.org/2000/svg'

// The theme's own colours, so that it reads in dark and light.
const STYLE = `
.hilo-view { display: flex; flex-direction: column; gap: 4px; width: 100%; height: 100%; box-sizing: border-box;
  padding: 4px 8px; overflow: hidden auto; scrollbar-width: thin; color: var(--fg-color, #ddd); font: 12px/1.35 sans-serif; }
.hilo-view .picture { flex: 1 1 0; min-height: 0; width: 100%; }
.hilo-view .picture[hidden] { display: none; }
.hilo-view .map { image-rendering: pixelated; }
.hilo-view .picture:active .map, .hilo-view .picture:focus-visible .map { visibility: hidden; }
.hilo-view polygon { fill: none; vector-effect: non-scaling-stroke; stroke: #fff; stroke-width: 1px; }
.hilo-view polygon.halo { stroke: #000; stroke-width: 3px; }
.hilo-view .headline { font-weight: 600; }
.hilo-view .note { color: var(--descrip-text, #999); }
.hilo-view .note.lines { color: var(--fg-color, #ddd); }
.hilo-view .trouble { color: var(--fg-color, #ddd); border-left: 3px solid #d55e00; padding-left: 6px; }
.hilo-view .legend { display: flex; flex-wrap: wrap; gap: 2px 10px; }
.hilo-view .legend span { display: inline-flex; align-items: center; gap: 4px; white-space: nowrap; }
.hilo-view .legend i { width: 11px; height: 11px; border: 1px solid var(--descrip-text, #999); }
.hilo-view :empty:not(svg, svg *, i), .hilo-view style { display: none; }
`

function element(tag, className, parent, text = '') {
  const made = document.createElement(tag)
  made.className = className
  made.textContent = text
  parent?.append(made)
  return made
}

function drawn(tag, className, attributes) {
  const made = document.createElementNS(SVG, tag)
  if (className) made.setAttribute('class', className)
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value)
  return made
}

/** A box for a node: `root` is its element; `plan`, `trouble`, `say` and `run` fill it, in the language of the page. */
export class View {
  /** @param words gives the words of the page's language, see words.js */
  constructor(words) {
    this.words = words
    this.root = element('div', 'hilo-view')
    element('style', '', this.root, STYLE) // in the node's own box, so that nothing of ours is left in the page
    this.picture = drawn('svg', 'picture', { preserveAspectRatio: 'xMidYMid meet', role: 'img', tabindex: 0 })
    this.root.append(this.picture)
    this.headline = element('div', 'headline', this.root)
    this.headline.role = 'status'
    this.note = element('div', 'note', this.root)
    this.legend = element('div', 'legend', this.root)
    this.photo = null
    this.clear()
    this.again = () => {}
  }

  /**
   * A server's answer: picture, token map with hard edges at any zoom, outline of the mask, counts and legend.
   * @param use what it holds for, { method, context }; null where no HiLo Patch Model takes the plan
   * @param notes keys of sentences
   */
  plan(answer, use, notes) {
    this.again = () => this.plan({ ...answer, picture: this.photo }, use, notes)
    const words = this.words()
    this.photo = answer.picture ?? this.photo
    const [width, height] = answer.size
    const [x, y, mapWidth, mapHeight] = answer.area
    this.picture.setAttribute('viewBox', `0 0 ${width} ${height}`)
    const stretched = { preserveAspectRatio: 'none' }
    const layers = [drawn('image', '', { href: this.photo ?? '', width, height, ...stretched })]
    layers.push(drawn('image', 'map', { href: answer.map, x, y, width: mapWidth, height: mapHeight, ...stretched }))
    for (const className of ['halo', '']) {
      for (const points of answer.outline) layers.push(drawn('polygon', className, { points }))
    }
    this.picture.replaceChildren(...layers)
    this.picture.toggleAttribute('hidden', false)
    this.root.title = words.details(answer, use)
    this.headline.textContent = words.headline(answer)
    this._note(notes.map((key) => words.say(key)).join(' '), 'note')
    this.legend.replaceChildren()
    for (const { kind, count, part, colour } of answer.legend) {
      const entry = element('span', '', this.legend)
      element('i', '', entry).style.background = colour
      entry.append(words.say(kind, { count, part }))
    }
    const said = [this.headline, ...this.legend.children].map((one) => one.textContent)
    this.picture.setAttribute('aria-label', said.join(', '))
  }

  /** Why there is no plan, in the server's words; the picture stays in view when there is one. */
  trouble(sentence, picture) {
    this.clear()
    this.again = () => this.trouble(sentence, picture)
    this._note(this.words().sentence(sentence), 'note trouble')
    if (!picture) return
    this.photo = picture
    const image = drawn('image', '', { href: picture, width: '100%', height: '100%' })
    this.picture.removeAttribute('viewBox')
    this.picture.replaceChildren(image)
    this.picture.toggleAttribute('hidden', false)
  }

  /** The sentence of a key in place of a plan. */
  say(key) {
    this.clear()
    this.again = () => this.say(key)
    this._note(this.words().say(key), 'note')
  }

  /** The facts of a run: the first line large. */
  run(facts) {
    this.clear()
    this.again = () => this.run(facts)
    const [first, ...others] = this.words().run(facts)
    this.headline.textContent = first
    this._note('', 'note lines')
    for (const line of others) element('div', '', this.note, line)
    this.root.title = [first, ...others].join('\n') // a narrow node may not have the room
  }

  clear() {
    this.picture.toggleAttribute('hidden', true)
    this.picture.replaceChildren()
    this.picture.removeAttribute('aria-label') // of the plan that was shown
    this.root.title = ''
    this.headline.textContent = ''
    this.legend.replaceChildren()
    this._note('', 'note')
  }

  _note(text, className) {
    this.note.className = className
    this.note.textContent = text
  }
}

/** Add a view to a node as a widget that is neither saved with the workflow nor sent with the prompt. */
export function addView(node, name, minHeight, words) {
  const view = new View(words)
  const widget = node.addDOMWidget(name, 'hilo_view', view.root, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => minHeight,
    getValue: () => undefined
  })
  widget.serialize = false
  return view
}
