// Samples in, captions out: lamb/inference/{engine,onnx_runtime}.py in JavaScript, for one clip at a time.

import * as ort from "./ort/ort.wasm.min.mjs";
import { beamSearch, logSoftmax } from "./search.js";
import { Tokenizer } from "./tokenizer.js";
import { Weigher, clean, logit, sigmoid } from "./weighing.js";

const SILENCE = 10 ** (-70 / 20); // a peak below this, around the mean, is digital silence
const SHORTEST = 1.0; // seconds; a shorter rest behind a whole window is left out

export class Captioner {
  // The model in the folder `base`; `told` hears what is being loaded.
  static async load(base = "./model/", told = () => {}) {
    ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
    ort.env.wasm.numThreads = 1;
    const own = new Captioner();
    const facts = (own.facts = await (await fetched(base + "model.json")).json());
    told("the weights");
    const weights = new Uint8Array(await (await fetched(base + "model.safetensors")).arrayBuffer());
    own.sessions = {};
    for (const name of facts.graphs) {
      told(name);
      const externalData = [{ path: "model.safetensors", data: weights }];
      own.sessions[name] = await ort.InferenceSession.create(base + name, { externalData, executionProviders: ["wasm"] });
    }
    [own.table, own.width] = tensorOf(weights, facts.embedding);
    own.tokenizer = new Tokenizer(facts.tokens, facts.merges);
    own.weigher = facts.weigh.enabled ? new Weigher(facts) : null;
    return own;
  }

  // Mono samples at `facts.sample_rate` -> [{start, end, text, confidence}], one for each window.
  async *caption(samples) {
    const rate = this.facts.sample_rate, size = Math.round(this.facts.decode.window * rate);
    for (let begin = 0; begin < samples.length; begin += size) {
      const x = samples.subarray(begin, begin + size);
      if (begin && x.length < SHORTEST * rate) return;
      yield { start: begin / rate, end: (begin + x.length) / rate, ...(await this.describe(x)) };
    }
  }

  // Samples of one window -> {text, confidence}.
  async describe(samples) {
    const mean = samples.reduce((total, x) => total + x, 0) / samples.length;
    const x = Float32Array.from(samples, (one) => one - mean);
    if (x.every((one) => Math.abs(one) < SILENCE)) return { text: "Silence.", confidence: 1 };
    const { h_a } = await this.run("encoder.onnx", { waveform: new ort.Tensor("float32", x, [1, x.length]) });
    const heard = { h_a, lengths: int64([h_a.dims[1]]) };
    const { z_a } = await this.run("adapter.onnx", heard);
    const decoding = await this.decoding(z_a);
    const found = await beamSearch(decoding, { ...this.facts.decode, eos: this.facts.eos });
    const encode = (text) => this.tokenizer.encode(text);
    const texts = [], known = new Map();
    for (const { ids, logP } of found) {
      const text = clean(this.tokenizer.decode(ids));
      if (texts.includes(text)) continue;
      texts.push(text);
      const again = encode(text).ids;
      if (logP.length === ids.length + 1 && again.join() === ids.join()) known.set(text, logP);
    }
    if (!this.weigher) {
      const [a, b] = this.facts.confidence, { logP } = found[0];
      const p = Math.exp(logP.reduce((total, one) => total + one, 0) / logP.length);
      return { text: texts[0], confidence: sigmoid(a + b * logit(p, 1e-6)) };
    }
    const { clip, frame } = await this.run("labels.onnx", heard);
    const told = (missing) => decoding.logProbabilities(missing.map((text) => encode(text).ids));
    const [best] = await this.weigher.choose(texts, known, encode, told, [...clip.data], rowsOf(frame));
    return best;
  }

  run(name, feed) {
    return this.sessions[name].run(feed);
  }

  // The input embeddings of tokens, one after the other.
  embed(ids) {
    const x = new Float32Array(ids.length * this.width);
    ids.forEach((id, k) => x.set(this.table.subarray(id * this.width, (id + 1) * this.width), k * this.width));
    return x;
  }

  async decoding(z_a) {
    const { guide } = this.facts.decode;
    let bias = new Float32Array(this.table.length / this.width);
    if (guide && "guide.onnx" in this.sessions) {
      const out = await this.run("guide.onnx", { z_a, lengths: int64([z_a.dims[1]]) });
      bias = out.bias.data.map((x) => guide * x);
    }
    const decoding = new Decoding(this, bias, guide * this.facts.residual);
    await decoding.read(z_a);
    return decoding;
  }
}

// The captions of one clip as a tree of tokens that grows (lamb/export/llama.py).
class Decoding {
  constructor(captioner, bias, residual) {
    Object.assign(this, { captioner, bias, residual });
  }

  async read(z_a) {
    const [before, after] = this.captioner.facts.prompt.map((ids) => this.captioner.embed(ids));
    const x = Float32Array.of(...before, ...z_a.data, ...after);
    const count = (this.length = x.length / this.captioner.width);
    const reach = Array.from({ length: count }, (_, k) => Array.from({ length: count }, (_, j) => j <= k));
    const positions = Array.from({ length: count }, (_, k) => k);
    const none = new Float32Array(this.captioner.width);
    [this.first, this.prompt] = await this.grow(x, positions, reach, [count - 1], none, null);
  }

  async start() {
    this.cache = this.prompt;
    this.reach = [Array(this.length).fill(true)];
    this.said = [new Float32Array(this.captioner.width)];
    this.next = this.length;
    return this.first;
  }

  async step(parents, tokens) {
    const { width } = this.captioner, x = this.captioner.embed(tokens);
    this.reach = parents.map((parent, k) => [...this.reach[parent], ...tokens.map((_, j) => j === k)]);
    this.said = parents.map((parent, k) => this.said[parent].map((one, i) => one + x[k * width + i]));
    const spent = Float32Array.from(this.said.flatMap((row) => [...row]), (one) => this.residual * one);
    const at = tokens.map((_, k) => k), positions = tokens.map(() => this.next);
    this.next += 1;
    let rows;
    [rows, this.cache] = await this.grow(x, positions, this.reach, at, spent, this.cache);
    return rows;
  }

  // Of captions, as tokens: the log probability of each token and of the end. What begins alike is read once.
  async logProbabilities(captions) {
    if (!captions.length) return [];
    const nodes = new Map(), tokens = [], above = [];
    const paths = captions.map((ids) => {
      let parent = -1;
      return ids.map((token, k) => {
        const key = ids.slice(0, k + 1).join();
        if (!nodes.has(key)) {
          nodes.set(key, tokens.length);
          above.push([...(parent < 0 ? [] : above[parent]), tokens.length]);
          tokens.push(token);
        }
        return (parent = nodes.get(key));
      });
    });
    const { width } = this.captioner, x = this.captioner.embed(tokens);
    const spent = new Float32Array(x.length);
    above.forEach((path, k) => {
      for (const node of path) for (let i = 0; i < width; i++) spent[k * width + i] += this.residual * x[node * width + i];
    });
    const reach = above.map((path) => {
      const row = Array(this.length + tokens.length).fill(false).fill(true, 0, this.length);
      for (const node of path) row[this.length + node] = true;
      return row;
    });
    const positions = above.map((path) => this.length + path.length - 1);
    const [rows] = await this.grow(x, positions, reach, tokens.map((_, k) => k), spent, this.prompt);
    const logP = [...this.first, ...rows].map(logSoftmax);
    const { eos } = this.captioner.facts;
    return captions.map((ids, c) => [...ids, eos].map((token, k) => logP[k ? paths[c][k - 1] + 1 : 0][token]));
  }

  async grow(x, positions, reach, at, spent, cache) {
    const { captioner } = this, { width } = captioner, { groups, head_dim } = captioner.facts;
    const session = captioner.sessions["language_model.onnx"], count = positions.length;
    const mask = Uint8Array.from(reach.flat(), Number);
    const given = {
      x: new ort.Tensor("float32", x, [1, count, width]),
      positions: int64(positions, [1, count]),
      mask: new ort.Tensor("bool", mask, [1, count, mask.length / count]),
      at: int64(at),
      bias: new ort.Tensor("float32", this.bias, [1, this.bias.length]),
      spent: new ort.Tensor("float32", spent, [1, at.length, width]),
    };
    const feed = {};
    for (const name of session.inputNames) {
      const empty = () => new ort.Tensor("float32", new Float32Array(0), [1, groups, 0, head_dim]);
      feed[name] = given[name] ?? (cache ? cache[name] : empty());
    }
    const { logits, ...grown } = await session.run(feed);
    return [rowsOf(logits), Object.fromEntries(Object.entries(grown).map(([k, v]) => [k.replace(/_grown$/, ""), v]))];
  }
}

const int64 = (numbers, dims = [numbers.length]) => new ort.Tensor("int64", BigInt64Array.from(numbers, BigInt), dims);

// (1, n, m) -> n rows.
function rowsOf({ data, dims: [, count, width] }) {
  return Array.from({ length: count }, (_, k) => data.subarray(k * width, (k + 1) * width));
}

async function fetched(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${address}: ${answer.status} ${answer.statusText}`);
  return answer;
}

// A tensor of a safetensors file as float32, and its last dimension.
function tensorOf(content, name) {
  const view = new DataView(content.buffer), size = Number(view.getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(content.subarray(8, 8 + size)));
  const { dtype, shape, data_offsets: [begin, end] } = header[name];
  const bytes = content.slice(8 + size + begin, 8 + size + end).buffer;
  const read = { F32: () => new Float32Array(bytes), F16: () => Float32Array.from(new Uint16Array(bytes), half) }[dtype];
  if (!read) throw new Error(`${name}: numbers of the kind ${dtype} are not read here`);
  return [read(), shape.at(-1)];
}

// The number that 16 bits stand for in IEEE half precision.
function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}
