// What the graph tells of a planner: which picture files feed it, and which HiLo Patch Model takes its plan.

const REROUTE = 'Reroute'
const BYPASSED = 4
const MUTED = 2
const LOADERS = { LoadImage: '', LoadImageMask: '', LoadImageOutput: ' [output]' }

/** The node and slot that feed the input `name` of `node`, through reroutes and bypassed nodes; null if none does. */
export function origin(node, name) {
  let slot = node.inputs?.find((input) => input.name === name)
  for (let hops = 0; hops < 100 && slot?.link != null; hops++) {
    const graph = node.graph
    const link = graph?.getLink?.(slot.link) ?? graph?.links?.[slot.link]
    const from = link && graph.getNodeById(link.origin_id)
    if (!from || from.mode === MUTED) return null
    if (from.type === REROUTE) slot = from.inputs?.[0]
    else if (from.mode === BYPASSED) slot = from.inputs?.find((input) => input.type === link.type && input.link != null)
    else return { node: from, slot: link.origin_slot }
  }
  return null
}

/** Whether other nodes set a widget, or any of a node's. */
export function isDriven(node, name) {
  return node.inputs?.some((input) => input.widget && input.link != null && (!name || input.widget.name === name)) ?? false
}

/** The name of the file a loader node shows, as the server's Load Image takes it; null for any other node, and where
 * another node sets the name. */
function fileOf(node) {
  if (isDriven(node, 'image')) return null
  const value = node.type in LOADERS && node.widgets?.find((widget) => widget.name === 'image')?.value
  if (typeof value !== 'string' || !value) return null
  return /\[(input|output|temp)\]$/.test(value) ? value : value + LOADERS[node.type]
}

/** { image, mask: { image, channel } } of a planner, or null where another node makes one of the two. */
export function picturesOf(planner) {
  const image = origin(planner, 'image')
  const mask = origin(planner, 'mask')
  if (!image || !mask || image.node.type === 'LoadImageMask' || image.slot !== 0) return null
  const files = [image, mask].map(({ node }) => fileOf(node))
  if (!files[0] || !files[1]) return null
  const fromChannel = mask.node.type === 'LoadImageMask'
  if (fromChannel ? isDriven(mask.node, 'channel') : mask.slot !== 1) return null
  const channel = fromChannel ? mask.node.widgets.find((widget) => widget.name === 'channel')?.value : 'alpha'
  return { image: files[0], mask: { image: files[1], channel } }
}

/** The HiLo Patch Model that takes a planner's plan, through reroutes; null where none is at work. */
export function takerOf(planner) {
  const takes = (node) =>
    node.type === 'HiLoPatchModel' && ![BYPASSED, MUTED].includes(node.mode) && origin(node, 'plan')?.node === planner
  return planner.graph?._nodes.find(takes) ?? null
}

/** Whether something is connected to both inputs, be it a picture that only a run can tell. */
export function isConnected(planner) {
  return ['image', 'mask'].every((name) => planner.inputs?.find((input) => input.name === name)?.link != null)
}
