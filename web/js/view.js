// What a node shows below its widgets. Drawn from the server's answer alone: the page plans and counts nothing itself.

const SVG = 'http://www.w3.org/2000/svg'

// The theme's own colours, so that it reads in dark and light.
const STYLE = `
.hilo-view { display: flex; flex-direction: column; gap: 4px; width: 100%; height: 100%; box-sizing: border-box;
  padding: 4px 8px; overflow: hidden; color: var(--fg-color, #ddd); font: 12px/1.35 sans-serif; }
.hilo-view .picture { flex: 1 1 0; min-height: 0; width: 100%; }
.hilo-view .picture[hidden] { display: none; }
.hilo-view .map { image-rendering: pixelated; }
.hilo-view .picture:active .map { visibility: hidden; }
.hilo-view polygon { fill: none; vector-effect: non-scaling-stroke; stroke: #fff; stroke-width: 1px; }
.hilo-view polygon.halo { stroke: #000; stroke-width: 3px; }
.hilo-view .headline { font-weight: 600; }
.hilo-view .note { color: var(--descrip-text, #999); }
.hilo-view .trouble { color: var(--fg-color, #ddd); border-left: 3px solid #d55e00; padding-left: 6px; }
.hilo-view .legend { display: flex; flex-wrap: wrap; gap: 2px 10px; }
.hilo-view .legend span { display: inline-flex; align-items: center; gap: 4px; white-space: nowrap; }
.hilo-view .legend i { width: 11px; height: 11px; border: 1px solid var(--descrip-text, #999); }
.hilo-view :empty:not(svg, svg *, i) { display: none; }
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

/** A box for a node: `root` is its element; `plan`, `trouble`, `say` and `lines` fill it. */
export class View {
  constructor() {
    if (!document.getElementById('hilo-view-style')) {
      document.head.append(Object.assign(element('style', ''), { id: 'hilo-view-style', textContent: STYLE }))
    }
    this.root = element('div', 'hilo-view')
    this.picture = drawn('svg', 'picture', { preserveAspectRatio: 'xMidYMid meet' })
    this.root.append(this.picture)
    this.headline = element('div', 'headline', this.root)
    this.note = element('div', 'note', this.root)
    this.legend = element('div', 'legend', this.root)
    this.photo = null
    this.say('')
  }

  /** A server's answer: picture, token map with hard edges at any zoom, outline of the mask, counts and legend. */
  plan(answer, note) {
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
    this.root.title = `${answer.report}\nPress the picture to see it without the tokens.`
    this.headline.textContent = answer.headline
    this._note(note, 'note')
    this.legend.replaceChildren()
    for (const { name, count, colour } of answer.legend) {
      const entry = element('span', '', this.legend)
      element('i', '', entry).style.background = colour
      entry.append(`${name} ${count}`)
    }
  }

  /** Why there is no plan, in the server's words; the picture stays in view when there is one. */
  trouble(sentence, picture) {
    this.say('')
    this._note(sentence, 'note trouble')
    if (!picture) return
    this.photo = picture
    const image = drawn('image', '', { href: picture, width: '100%', height: '100%' })
    this.picture.removeAttribute('viewBox')
    this.picture.replaceChildren(image)
    this.picture.toggleAttribute('hidden', false)
  }

  /** A sentence in place of a plan. */
  say(sentence) {
    this.picture.toggleAttribute('hidden', true)
    this.picture.replaceChildren()
    this.root.title = ''
    this.headline.textContent = ''
    this.legend.replaceChildren()
    this._note(sentence, 'note')
  }

  /** Lines of text: the first one large. */
  lines([first, ...others]) {
    this.say('')
    this.headline.textContent = first
    for (const line of others) element('div', '', this.note, line)
  }

  _note(text, className) {
    this.note.className = className
    this.note.textContent = text
  }
}

/** Add a view to a node as a widget that is neither saved with the workflow nor sent with the prompt. */
export function addView(node, name, minHeight) {
  const view = new View()
  const widget = node.addDOMWidget(name, 'hilo_view', view.root, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => minHeight,
    getValue: () => undefined
  })
  widget.serialize = false
  return view
}
