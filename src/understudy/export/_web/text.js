// Text -> the numbers of its tokens, as the tokenizers library gives them: BERT's words, bytes, or none before the model; WordPiece, whole
// words or byte-pair merges in it. What else a tokenizer may be made of, the export refuses.

// A function from a text to an Int32Array. read: the preprocessing of config.json, kind "text"; marks: {opening, closing}, the numbers
// before and behind every text.
export function textEncoder(read, marks) {
  const { model, normalizer, pre_tokenizer: before, added_tokens: added } = read.tokenizer;
  const normal = normalizer ? (text) => bertNormal(text, normalizer) : (text) => text;
  const cut = before ? { BertPreTokenizer: bertWords, ByteLevel: (text) => byteWords(text, before) }[before.type] : (text) => [text];
  const spell = { WordPiece: wordPiece, WordLevel: wordLevel, BPE: bytePairs }[model.type](model);
  const special = splitter(added ?? []);
  return (text) => {
    const inner = special(text).flatMap((part) => (typeof part === "number" ? part : cut(normal(part)).flatMap(spell)));
    const ids = [...marks.opening, ...inner, ...marks.closing];
    if (ids.length <= read.length) return Int32Array.from(ids.length ? ids : [read.pad]);
    const { closing } = marks;
    return Int32Array.from(read.length > closing.length ? [...ids.slice(0, read.length - closing.length), ...closing] : ids.slice(0, read.length));
  };
}

// A function that cuts a text at what is written like an added token: [text, number, text, ...], the longest where several begin.
function splitter(added) {
  if (added.length === 0) return (text) => [text];
  const numbers = new Map(added.map((token) => [token.content, token.id]));
  const space = "\\p{White_Space}*";
  const escaped = (token) => token.content.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&");
  const one = (token) => `${token.lstrip ? space : ""}(?:${escaped(token)})${token.rstrip ? space : ""}`;
  const longest = [...added].sort((a, b) => b.content.length - a.content.length);
  const pattern = new RegExp(`(${longest.map(one).join("|")})`, "gu");
  return (text) => text.split(pattern).filter((part) => part !== "").map((part) => numbers.get(part) ?? numbers.get(part.trim()) ?? part);
}

const CHINESE = [[0x4e00, 0x9fff], [0x3400, 0x4dbf], [0x20000, 0x2a6df], [0x2a700, 0x2b73f], [0x2b740, 0x2b81f], [0x2b920, 0x2ceaf],
  [0xf900, 0xfaff], [0x2f800, 0x2fa1f]];

// Letter by letter: a whole word's toLowerCase would write the last sigma of a Greek word in another way.
function bertNormal(text, options) {
  let letters = [...text];
  if (options.clean_text) {
    letters = letters.filter((letter) => /[\t\n\r]/.test(letter) || !/[\0\ufffd\p{Cc}\p{Cf}\p{Co}\p{Cs}]/u.test(letter));
    letters = letters.map((letter) => (/\p{White_Space}/u.test(letter) ? " " : letter));
  }
  if (options.handle_chinese_chars) {
    const chinese = (code) => CHINESE.some(([first, last]) => first <= code && code <= last);
    letters = letters.flatMap((letter) => (chinese(letter.codePointAt(0)) ? [" ", letter, " "] : [letter]));
  }
  if (options.strip_accents ?? options.lowercase) {
    letters = [...letters.join("").normalize("NFD")].filter((letter) => !/\p{Mn}/u.test(letter));
  }
  return letters.map((letter) => (options.lowercase ? letter.toLowerCase() : letter)).join("");
}

// Words between white space, every sign for itself.
function bertWords(text) {
  return text.match(/[\p{P}$+<=>^`|~]|[^\p{White_Space}\p{P}$+<=>^`|~]+/gu) ?? [];
}

const PIECES = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;

// GPT-2's pieces, each byte as the sign that stands for it: printable ones for themselves, the others from U+0100 upwards.
function byteWords(text, options) {
  const led = options.add_prefix_space && text !== "" && !/^\p{White_Space}/u.test(text) ? ` ${text}` : text;
  const pieces = options.use_regex === false ? [led] : led.match(PIECES) ?? [];
  return pieces.map((piece) => Array.from(new TextEncoder().encode(piece), (byte) => SIGNS[byte]).join(""));
}

const printable = (byte) => (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte !== 0xad);
const HIDDEN = Array.from({ length: 256 }, (_, byte) => byte).filter((byte) => !printable(byte));
const SIGNS = Array.from({ length: 256 }, (_, byte) => String.fromCharCode(printable(byte) ? byte : 256 + HIDDEN.indexOf(byte)));

function lookup(vocabulary) {
  return new Map(Object.entries(vocabulary));
}

function wordLevel(model) {
  const vocabulary = lookup(model.vocab);
  return (word) => [vocabulary.get(word) ?? vocabulary.get(model.unk_token)].filter((id) => id !== undefined);
}

// The longest known beginning, again and again; a word that can't be spelt, or is too long, is unknown.
function wordPiece(model) {
  const vocabulary = lookup(model.vocab);
  const unknown = vocabulary.get(model.unk_token);
  return (word) => {
    const letters = [...word];
    if (letters.length > model.max_input_chars_per_word) return [unknown];
    const ids = [];
    for (let start = 0; start < letters.length; ) {
      let end = letters.length;
      let id;
      for (; end > start; end--) {
        id = vocabulary.get((start ? model.continuing_subword_prefix : "") + letters.slice(start, end).join(""));
        if (id !== undefined) break;
      }
      if (id === undefined) return [unknown];
      ids.push(id);
      start = end;
    }
    return ids;
  };
}

// Of all neighbours that may be merged those whose merge was learnt first, the leftmost first, until none may.
function bytePairs(model) {
  const vocabulary = lookup(model.vocab);
  const ranks = new Map(model.merges.map((pair, rank) => [Array.isArray(pair) ? pair.join(" ") : pair, rank]));
  const unknown = model.unk_token == null ? undefined : vocabulary.get(model.unk_token);
  const known = new Map();
  const spelt = (word) => {
    if (model.ignore_merges && vocabulary.has(word)) return [vocabulary.get(word)];
    const parts = [...word];
    for (;;) {
      let best = -1;
      let lowest = Infinity;
      for (let at = 0; at + 1 < parts.length; at++) {
        const rank = ranks.get(`${parts[at]} ${parts[at + 1]}`);
        if (rank !== undefined && rank < lowest) [best, lowest] = [at, rank];
      }
      if (best < 0) return parts.map((part) => vocabulary.get(part) ?? unknown).filter((id) => id !== undefined);
      parts.splice(best, 2, parts[best] + parts[best + 1]);
    }
  };
  return (word) => {
    if (!known.has(word)) known.set(word, spelt(word));
    return known.get(word);
  };
}
