// What the page says, in its own language: numbers of the server in, sentences out. Knows no page, so that a test can
// ask it anything.

/**
 * @param messages the pack's sentences by language: { en: { key: 'text with {name}' }, zh: ... }
 * @param language the page's; what it lacks is said in English
 */
export function wordsIn(messages, language) {
  const own = messages[language] ?? {}
  const english = messages.en ?? {}
  const tongue = own.headline ? language : 'en'
  const figure = (value, options) => new Intl.NumberFormat(tongue, options).format(value)
  const share = (value, digits) => figure(value, { style: 'percent', maximumFractionDigits: digits })
  const tenth = (value) => figure(value, { minimumFractionDigits: 1, maximumFractionDigits: 1 })

  /** The sentence of a key; whole numbers are grouped as the language does it. */
  function say(key, values = {}) {
    const text = own[key] ?? english[key] ?? key
    return text.replace(/\{(\w+)\}/g, (_, name) => (typeof values[name] === 'number' ? figure(values[name]) : values[name]))
  }

  /** A sentence that the server has made: the ones that artists meet most are translated. */
  function sentence(text) {
    return own.sentences?.[text] ?? text
  }

  function time(seconds) {
    return seconds < 1 ? `${(seconds * 1000).toFixed(0)} ms` : `${seconds.toFixed(2)} s`
  }

  function size(bytes) {
    return bytes >= 1e8 ? `${(bytes / 1e9).toFixed(2)} GB` : `${(bytes / 1e6).toFixed(1)} MB`
  }

  function speed({ compressed_seconds: fast, dense_seconds: dense }) {
    if (fast == null) return ''
    if (dense == null) return say('speedAlone', { fast: time(fast) })
    return say('speed', { fast: time(fast), dense: time(dense), speed: tenth(dense / fast) })
  }

  return {
    say,
    sentence,

    /** What an answer of the preview's route says first. */
    headline({ tokens, all_tokens: all, speed, dense }) {
      if (dense) return say('headlineDense')
      return speed == null ? say('headlineAll', { all }) : say('headline', { tokens, all, speed: tenth(speed) })
    },

    /** What is told of a plan when the pointer rests on it. */
    details({ masked, size: [width, height], dilation, token_px: side, notes }, use) {
      const about = say('masked', { share: share(masked, 2), width, height, dilation, side })
      return [about, ...notes.map(sentence), use && say('context', use), say('press')].filter(Boolean).join('\n')
    },

    /** The facts of a run, line by line, the most important first. */
    run(facts) {
      if (facts.dense) return [say('ranDense'), sentence(facts.dense)]
      const { tokens, all_tokens: all, compressed_calls: fast, dense_calls: dense, context, cache_bytes: kept } = facts
      const lines = fast
        ? [say('ranOn', { tokens, all, share: share(tokens / all, 0) }), say('calls', { fast, dense }), speed(facts)]
        : [say('ranAllDense', { dense })]
      if (facts.note) lines.push(sentence(facts.note))
      if (facts.reused_calls) lines.push(say('spared', { count: facts.reused_calls }))
      if (kept) lines.push(say('memory', { context, size: size(kept), place: facts.cache_place.split(' and ').map(sentence).join(' + ') }))
      else if (fast && context) lines.push(say('noMemory', { context }))
      return [...lines.filter(Boolean), ...facts.said.map(sentence)]
    }
  }
}
