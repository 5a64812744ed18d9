// Beam search over a decoding of one clip: lamb/inference/search.py in JavaScript, which explains it.

export function logSoftmax(row) {
  let most = -Infinity, sum = 0;
  for (const x of row) if (x > most) most = x;
  for (const x of row) sum += Math.exp(x - most);
  const by = most + Math.log(sum);
  return Float32Array.from(row, (x) => x - by);
}

// decoding.start() -> logits of the first token; decoding.step(parents, tokens) -> logits, a row for each beam.
// Returns [{ids, logP}], best first; logP holds the end too, where it was reached.
export async function beamSearch(decoding, { beams, eos, max_new_tokens, length_penalty, no_repeat_ngram }) {
  const finished = [];
  let running = [{ ids: [], logP: [], score: 0 }];
  let rows = await decoding.start();
  for (let length = 1; length <= max_new_tokens; length++) {
    const candidates = [];
    running.forEach((beam, parent) => {
      const logP = logSoftmax(rows[parent]);
      for (const token of repeats(beam.ids, no_repeat_ngram)) logP[token] = -Infinity;
      for (const token of largest(logP, 2 * beams)) {
        candidates.push({ parent, token, value: logP[token], score: Math.fround(beam.score + logP[token]) });
      }
    });
    candidates.sort((a, b) => b.score - a.score);
    const best = candidates.slice(0, 2 * beams);
    const ends = ({ token }) => token === eos || length === max_new_tokens;
    for (const one of best.slice(0, beams)) {
      if (!ends(one) || one.score === -Infinity) continue;
      const { ids, logP } = running[one.parent];
      const sequence = { ids: one.token === eos ? ids : [...ids, one.token], logP: [...logP, one.value] };
      finished.push({ rank: one.score / length ** length_penalty, sequence });
      finished.sort((a, b) => b.rank - a.rank);
      finished.splice(beams);
    }
    const on = best.filter((one) => !ends(one)).slice(0, beams);
    const hope = on.length ? on[0].score / length ** length_penalty : -Infinity;
    const closed = finished.length === beams && (beams === 1 || hope <= finished[beams - 1].rank);
    if (closed || !on.length) break;
    running = on.map(({ parent, token, value, score }) => {
      const { ids, logP } = running[parent];
      return { ids: [...ids, token], logP: [...logP, value], score };
    });
    rows = await decoding.step(on.map((one) => one.parent), on.map((one) => one.token));
  }
  return finished.map((one) => one.sequence);
}

// The tokens that would make a run of n tokens come twice.
function repeats(ids, n) {
  const found = [];
  if (!n) return found;
  const last = ids.slice(ids.length - n + 1);
  for (let k = 0; k + n <= ids.length; k++) {
    if (last.every((token, i) => token === ids[k + i])) found.push(ids[k + n - 1]);
  }
  return found;
}

// The places of the `count` largest numbers, best first.
function largest(row, count) {
  const found = [];
  for (let k = 0; k < row.length; k++) {
    if (found.length === count && row[k] <= row[found[count - 1]]) continue;
    let at = found.length;
    while (at > 0 && row[k] > row[found[at - 1]]) at--;
    found.splice(at, 0, k);
    if (found.length > count) found.pop();
  }
  return found;
}
