// One bit of a Q4_K block turned over. Weights are decoded here, from the block's bytes; KL and texts are stored.
for (const box of document.querySelectorAll("div.qtutor-blast[data-still]")) {
  box.removeAttribute("data-still");
  const stored = JSON.parse(box.querySelector("script[type='application/json']").textContent);
  const whole = Uint8Array.from(stored.block.match(/../g), pair => parseInt(pair, 16));
  const find = selector => box.querySelector(selector);

  // --- the format ---

  // Items of a block by kind, as the whole numbers that their bits spell. stored.strips is the layout.
  const itemsOf = bytes => {
    const items = {};
    for (const strip of stored.strips) {
      const numbers = items[strip.item] ??= [];
      for (let j = 0; j < strip.count; j++) {
        const bits = bytes[strip.at + j] >> strip.low & (1 << strip.bits) - 1;
        numbers[strip.first + j] = (numbers[strip.first + j] || 0) | bits << strip.shift;
      }
    }
    return items;
  };
  const half = raw => {  // a float16: sign, 5 bits of exponent, 10 bits of fraction
    const exponent = raw >> 10 & 31, fraction = raw & 1023, sign = raw >> 15 ? -1 : 1;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (exponent ? (1024 + fraction) * 2 ** (exponent - 25) : fraction * 2 ** -24);
  };
  // weight = (d * scale) * code - (dmin * min), each product rounded to float32 as engines do
  const decode = bytes => {
    const {d: [d], dmin: [dmin], scale, min, code} = itemsOf(bytes), round = Math.fround;
    const step = scale.map(of => round(half(d) * of)), low = min.map(of => round(half(dmin) * of));
    return code.map((of, i) => round(round(step[i >> 5] * of) - low[i >> 5]));
  };
  const flipped = bit => {
    const bytes = whole.slice();
    if (bit !== null) bytes[bit >> 3] ^= 1 << (bit & 7);
    return bytes;
  };
  // What a bit belongs to: its item, which of its bits it is, and the weights that depend on it.
  const placeOf = bit => {
    const byte = bit >> 3, place = bit & 7;
    const strip = stored.strips.find(s => s.at <= byte && byte < s.at + s.count && s.low <= place
      && place < s.low + s.bits);
    const number = strip.first + byte - strip.at, span = {code: 1, scale: 32, min: 32}[strip.item] || 256;
    return {item: strip.item, number, bit: strip.shift + place - strip.low, first: number * span, span};
  };

  // --- words ---

  const show = (value, digits = 4) => {
    const size = Math.abs(value), short = Number(value.toPrecision(digits));
    if (!Number.isFinite(value)) return String(value);
    return size && size < 0.001 ? short.toExponential() : short.toLocaleString("en", {maximumFractionDigits: 9});
  };
  const klOf = bit => `KL ${show(stored.kl[bit], 2)}`;
  const kindOf = ({item, bit}) => item === "d" || item === "dmin"
    ? `bit ${bit} of ${item}, ${bit === 15 ? "its sign" : bit > 9 ? "in its exponent" : "in its fraction"}`
    : null;
  const nameOf = place => kindOf(place) || `bit ${place.bit} of ${place.item} ${place.number}`;
  const label = bit => `byte ${bit >> 3}, bit ${bit & 7}: ${nameOf(placeOf(bit))}, ${klOf(bit)}`;
  const sentence = (bit, moved, after) => {
    const place = placeOf(bit), {item, number: which, span, first} = place;
    const [was, is] = [whole, flipped(bit)].map(bytes => itemsOf(bytes)[item][which]);
    const value = raw => item === "d" || item === "dmin" ? show(half(raw)) : raw;
    const named = item === "d" || item === "dmin" ? item : `${item} ${which}`;
    const range = span === 1 ? `weight ${first}` : `weights ${first} to ${first + span - 1}`;
    const most = moved.reduce((m, i) => Math.max(m, Math.abs(after[i])), 0);
    const rest = span - moved.length;
    return `<b>Byte ${bit >> 3}, bit ${bit & 7}</b> is ${nameOf(place)}. It turns ${named} from ${value(was)} into `
      + `${value(is)}. ${range[0].toUpperCase()}${range.slice(1)} depend${span === 1 ? "s" : ""} on it; `
      + `<b data-moved="${moved.length}">${moved.length === 1 ? "1 weight moves" : `${moved.length} weights move`}</b>`
      + (rest ? `, ${rest} ${rest === 1 ? "has" : "have"} code 0 and stay${rest === 1 ? "s" : ""}` : "")
      + (most > 2 * largest ? `, and the largest is now ${show(most)}` : "")
      + `. <b>${klOf(bit)}</b> nats a token.`;
  };

  // --- the parts of the picture ---

  const before = decode(whole), largest = Math.max(...before.map(Math.abs));
  const [low, high] = stored.range;  // of log10 KL, from the first colour to the last
  const colour = kl => {
    const at = Math.max(0, Math.min(1, (Math.log10(kl) - low) / (high - low))) * (stored.colours.length - 1);
    return stored.colours[Math.round(at)];
  };
  const button = (bit, text) => {
    const made = document.createElement("button");
    Object.assign(made, {type: "button", textContent: text, title: label(bit)});
    made.dataset.bit = bit;
    made.setAttribute("aria-label", label(bit));
    made.setAttribute("aria-pressed", "false");
    return made;
  };
  for (const field of box.querySelectorAll(".field")) {
    for (let byte = Number(field.dataset.first); byte <= Number(field.dataset.last); byte++) {
      const bits = document.createElement("div");
      bits.className = "bits";
      for (let place = 7; place >= 0; place--) {
        const bit = 8 * byte + place, cell = button(bit, "");
        cell.style.setProperty("--kl", colour(stored.kl[bit]));
        cell.tabIndex = -1;
        bits.append(cell);
      }
      field.querySelector(".bytes").append(bits);
    }
  }
  const cells = [...box.querySelectorAll(".bits button")];
  const svg = find("svg"), bars = {place: [], old: [], new: []};
  for (const kind of Object.keys(bars)) {  // the last lies on top
    for (let i = 0; i < 256; i++) {
      const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      const inset = {place: 0, old: 0.05, new: 0.15}[kind], whole = kind === "place";
      const sizes = {x: i + inset, y: whole ? -1 : 0, width: 1 - 2 * inset, height: whole ? 2 : 1};
      for (const [name, to] of Object.entries({class: kind, ...sizes})) bar.setAttribute(name, to);
      svg.append(bar);
      bars[kind].push(bar);
    }
  }
  const raise = (bar, value, limit) => {  // a bar is 1 high; the picture reaches from -1 to 1, and up is negative
    bar.style.transform = `scaleY(${-Math.max(-1, Math.min(1, (Number.isNaN(value) ? Infinity : value) / limit))})`;
  };
  const drawBars = (moved, after) => {
    const sizes = moved.map(i => Math.abs(after[i])).filter(Number.isFinite);
    const limit = Math.max(1.1 * largest, ...sizes.map(size => 1.02 * size));
    const jumped = new Set(moved);
    svg.classList.toggle("many", moved.length > 32);
    before.forEach((weight, i) => {
      bars.place[i].style.visibility = jumped.has(i) ? "visible" : "hidden";
      raise(bars.old[i], weight, limit);
      raise(bars.new[i], jumped.has(i) ? after[i] : 0, limit);
    });
    for (const [name, value] of [["top", limit], ["bottom", -limit]]) find(`.${name}`).textContent = show(value);
    const wider = limit / (1.1 * largest);
    find(".wider").textContent = wider > 1.5 ? `. The axis is ${show(wider, 2)} times longer now.` : "";
    svg.setAttribute("aria-label", moved.length
      ? `The block's 256 weights as bars; ${moved.length} of them moved.` : "The block's 256 weights as bars.");
  };
  const writeTexts = bit => {
    const [first, now] = [stored.texts[0], stored.texts[bit === null ? 0 : stored.text_of[bit]]];
    let same = 0;
    while (same < now.length && now[same] === first[same]) same++;
    const mark = document.createElement("mark");
    mark.textContent = now.slice(same);
    find(".now").replaceChildren(now.slice(0, same), ...(now === first ? [] : [mark]));
    find(".told").textContent = bit === null ? "no bit is flipped" : now === first
      ? "the same text" : `another text from character ${same + 1} on`;
  };

  // --- choosing ---

  let chosen = null, current = Number(box.dataset.start);
  const choose = bit => {
    chosen = bit;
    if (bit !== null) current = bit;
    const after = decode(flipped(bit)), moved = [...after.keys()].filter(i => !Object.is(after[i], before[i]));
    for (const cell of cells) {
      const of = Number(cell.dataset.bit);
      cell.setAttribute("aria-pressed", of === bit);
      cell.tabIndex = of === current ? 0 : -1;
    }
    find(".about").innerHTML = bit === null ? "No bit is flipped. Choose one." : sentence(bit, moved, after);
    const large = [7, 6, 5, 4, 3, 2, 1, 0].map(place => {
      const of = 8 * (current >> 3) + place, one = button(of, flipped(bit)[of >> 3] >> place & 1);
      one.setAttribute("aria-pressed", of === bit);
      return one;
    });
    find(".large").replaceChildren(...large);
    find(".which").textContent = `Byte ${current >> 3}, bits 7 to 0:`;
    drawBars(moved, after);
    writeTexts(bit);
  };
  // The cell above or below: of the nearest line in that direction, the one that lies nearest.
  const beside = (cell, up) => {
    const here = cell.getBoundingClientRect();
    const away = cells.map(other => {
      const there = other.getBoundingClientRect(), dy = up ? here.top - there.top : there.top - here.top;
      return {other, dy, dx: Math.abs(there.left - here.left)};
    }).filter(({dy}) => dy > 1);
    return away.sort((a, b) => Math.round(a.dy - b.dy) || a.dx - b.dx)[0]?.other;
  };
  box.addEventListener("click", event => {
    const hit = event.target.closest("button[data-bit]");
    if (!hit) return;
    const bit = hit.dataset.bit === "" ? null : Number(hit.dataset.bit), large = hit.closest(".large");
    choose(bit === chosen && hit.closest(".bits, .large") ? null : bit);  // a second click turns it back
    if (large) find(`.large [data-bit="${bit}"]`).focus();  // the eight were made anew
  });
  box.addEventListener("keydown", event => {
    const at = cells.indexOf(event.target);
    if (at < 0) return;
    const next = {ArrowLeft: () => cells[at - 1], ArrowRight: () => cells[at + 1], Home: () => cells[0],
      End: () => cells[cells.length - 1], ArrowUp: () => beside(event.target, true),
      ArrowDown: () => beside(event.target, false)}[event.key]?.();
    if (!next) return;
    event.preventDefault();
    choose(Number(next.dataset.bit));
    next.focus();
  });
  find(".live").hidden = false;
  find("[data-remark]").hidden = true;
  choose(current);
}
