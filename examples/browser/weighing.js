// Which caption says best what is there: lamb/inference/weighing.py in JavaScript, which explains it.

const LINK = /,? (?:and )?then |,? followed by | before | while | as | with | and /g;
const EDGE = 1e-3;
const TWICE = 100;

export class Weigher {
  constructor({ vocabulary, labels, weigh }) {
    Object.assign(this, { vocabulary, options: weigh });
    this.patterns = new Map();
    for (const pattern of vocabulary.patterns) {
      const key = pattern[0][0].slice(0, 2);
      this.patterns.set(key, [...(this.patterns.get(key) ?? []), pattern]);
    }
    this.places = new Map();
    labels.forEach((label, k) => {
      const name = vocabulary.same[label] ?? label;
      this.places.set(name, [...(this.places.get(name) ?? []), k]);
    });
  }

  // texts: what the search found, best first; known: Map of text -> log probabilities of tokens and end, of `encode`;
  // told(texts) -> those of others. clip (C), frame: rows (C + 1). -> {text, confidence, value}, best first.
  async choose(texts, known, encode, told, clip, frame) {
    const found = texts.filter(Boolean);
    const parts = found.flatMap((text) => links(text).map(([start]) => text.slice(0, start).replace(/,+$/, "") + "."));
    const candidates = [...new Set([...found, ...parts])];
    const all = [...(candidates.length ? candidates : ["."]), ...this.offered(clip)];
    const missing = all.filter((text) => !known.has(text));
    const given = new Map([...known, ...(await told(missing)).map((logP, k) => [missing[k], logP])]);
    const weighed = all.map((text) => this.weigh(text, given.get(text), encode(text).ends, clip, frame));
    return weighed.sort((a, b) => b.value - a.value);
  }

  // Sentences with the upper classes that are the most probable.
  offered(clip) {
    const sums = Object.keys(this.vocabulary.parents).map((label) => [label, sum(this.heads([label]), clip)]);
    sums.sort((a, b) => b[1] - a[1]);
    return sums.slice(0, this.options.offered).map(([label]) => clean(this.vocabulary.parents[label]));
  }

  heads(labels) {
    const below = new Set(labels.flatMap((label) => this.vocabulary.below[label]));
    return [...below].sort().flatMap((label) => this.places.get(label) ?? []);
  }

  weigh(text, logP, ends, clip, frame) {
    const { sound, caption, doubt, upper, wording } = this.options;
    const [named, twice] = this.soundsOf(text);
    let value = wording * mean(logP) - (twice || !named.length ? TWICE : 0);
    let product = 1, anyUpper = 0;
    named.forEach(({ labels, start, end }, place) => {
      const heads = this.heads(labels);
      const pFrame = heads.length ? Math.max(...frame.map((row) => sum(heads, row))) : 0;
      const inside = ends.flatMap((at, k) => (start < at && at <= end ? [logP[k]] : []));
      const isUpper = labels.every((label) => label in this.vocabulary.parents) ? 1 : 0;
      const pText = inside.length ? Math.exp(mean(inside)) : 0;
      const x = [1, logit(sum(heads, clip)), logit(pFrame), logit(pText), isUpper, place > 0 ? 1 : 0];
      const c = sigmoid(x.reduce((total, one, k) => total + sound[k] * one, 0));
      value += (isUpper ? upper : 1) * c - doubt * (1 - c);
      product *= c;
      anyUpper ||= isUpper;
    });
    const [a, b, u] = caption;
    const confidence = named.length ? sigmoid(a + b * logit(product) + u * anyUpper) : 0;
    return { text, confidence, value };
  }

  // The sounds that a caption names, and whether it tells one of them twice.
  soundsOf(caption) {
    const at = links(caption);
    const starts = [0, ...at.map(([, end]) => end)], ends = [...at.map(([start]) => start), caption.length];
    const found = [];
    let twice = false;
    const all = this.mentions(caption);
    starts.forEach((start, k) => {
      for (const { labels } of all.filter((one) => start <= one.start && one.start < ends[k])) {
        const kin = new Set(labels.flatMap((label) => this.vocabulary.akin[label]));
        const same = found.filter((named) => named.labels.some((label) => kin.has(label)));
        const here = same.find((named) => named.start === start);
        if (!same.length) found.push({ labels, start, end: ends[k] });
        else if (!here) twice = true;
        else here.labels = this.narrower(here.labels, labels);
      }
    });
    return [found, twice];
  }

  narrower(one, other) {
    const both = one.filter((label) => other.includes(label));
    if (both.length) return both;
    const above = new Set(other.flatMap((label) => this.vocabulary.ancestors[label]));
    return one.some((label) => above.has(label)) ? other : one;
  }

  // Where a caption holds words of the vocabulary; of words that begin together the longest counts.
  mentions(caption) {
    const places = [...caption.toLowerCase().matchAll(/[a-z0-9]+/g)];
    const words = places.map((place) => place[0]);
    const found = [];
    for (let k = 0; k < words.length; ) {
      const pattern = (this.patterns.get(words[k].slice(0, 2)) ?? []).find((one) => fits(words.slice(k), one));
      if (pattern) found.push({ start: places[k].index, labels: pattern[2] });
      k += pattern ? pattern[0].length : 1;
    }
    return found;
  }
}

function fits(words, [parts, open]) {
  const last = parts.length - 1;
  if (words.length <= last || parts.slice(0, last).some((part, k) => part !== words[k])) return false;
  return open ? words[last].startsWith(parts[last]) : words[last] === parts[last];
}

// One line, a capital first, a full stop last: lamb/inference/generation.py.
export function clean(text) {
  text = text.trim().split(/\s+/).join(" ").replaceAll(" ,", ",").replaceAll(" .", ".").replace(/[ ,;:-]+$/, "");
  return text && text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

const links = (caption) => [...caption.matchAll(LINK)].map((link) => [link.index, link.index + link[0].length]);
const sum = (places, row) => places.reduce((total, k) => total + row[k], 0);
const mean = (row) => row.reduce((total, x) => total + x, 0) / row.length;
export const sigmoid = (x) => 0.5 + 0.5 * Math.tanh(x / 2);
export const logit = (p, edge = EDGE) => {
  p = Math.min(Math.max(p, edge), 1 - edge);
  return Math.log(p / (1 - p));
};
