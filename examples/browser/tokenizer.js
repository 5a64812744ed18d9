// Byte-level BPE, as the bundled model's tokenizer has it.

const WORD = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

// GPT-2's characters for bytes: printable ones stand for themselves, the others lie from 256 on.
const LETTERS = (() => {
  const own = (b) => (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
  let next = 256;
  return Array.from({ length: 256 }, (_, b) => String.fromCharCode(own(b) ? b : next++));
})();
const BYTES = new Map(LETTERS.map((letter, byte) => [letter, byte]));

export class Tokenizer {
  constructor(tokens, merges) {
    this.tokens = tokens;
    this.names = Object.fromEntries(Object.entries(tokens).map(([name, id]) => [id, name]));
    this.ranks = new Map(merges.map((pair, rank) => [pair.join(" "), rank]));
  }

  // Text -> {ids, ends}: tokens, and the character of the text after each.
  encode(text) {
    const given = /^\s/.test(text) ? text : " " + text;
    const ids = [], ends = [];
    let at = text.length - given.length;
    for (const [word] of given.matchAll(WORD)) {
      const letters = Array.from(new TextEncoder().encode(word), (byte) => LETTERS[byte]);
      for (const part of this.merge(letters)) {
        at += part.length; // a byte is a character: captions are ASCII
        ids.push(this.tokens[part]);
        ends.push(at);
      }
    }
    return { ids, ends };
  }

  decode(ids) {
    const letters = ids.map((id) => this.names[id]).join("");
    return new TextDecoder().decode(Uint8Array.from(letters, (letter) => BYTES.get(letter)));
  }

  // Merge the pair of the lowest rank until none is known.
  merge(parts) {
    for (;;) {
      let best = Infinity, at = -1;
      for (let k = 0; k + 1 < parts.length; k++) {
        const rank = this.ranks.get(parts[k] + " " + parts[k + 1]) ?? Infinity;
        if (rank < best) [best, at] = [rank, k];
      }
      if (at < 0) return parts;
      parts = [...parts.slice(0, at), parts[at] + parts[at + 1], ...parts.slice(at + 2)];
    }
  }
}
