// The levels of four formats over the 32 weights of one block. A weight can be dragged: then the levels move, too.
//
// A format fits levels to weights, one list for all of them or, as NVFP4, one for each half. What is computed here is
// what the package computes; tests compare the two.

const HALF = 16; // weights that share one of NVFP4's scales
const FP4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]; // the sizes that four bits can say, with a sign

// To the nearest whole number; halves go to the even one.
function roundEven(x) {
  const below = Math.floor(x), rest = x - below;
  return rest > 0.5 || (rest === 0.5 && below % 2 !== 0) ? below + 1 : below;
}

// x > 0 as a float with so many bits of mantissa, whose smallest normal number is 2^lowest; never 0.
function asFloat(x, mantissa, lowest, largest) {
  const step = 2 ** (Math.max(Math.floor(Math.log2(x)), lowest) - mantissa);
  return clamp(roundEven(x / step) * step, step, largest);
}

const asE4M3 = (x) => asFloat(x, 3, -6, 448);
const sizes = (weights) => weights.map(Math.abs);
const squares = (numbers) => numbers.reduce((sum, number) => sum + number * number, 0);
const signed = (scale) => [...FP4.slice(1).map((value) => -value).reverse(), ...FP4].map((value) => value * scale);

function nearest(levels, x) {
  return levels.reduce((best, level) => (Math.abs(level - x) < Math.abs(best - x) ? level : best));
}

const rounded = (weights, levels) => weights.map((weight) => nearest(levels, weight));
const missed = (weights, levels) => squares(rounded(weights, levels).map((back, i) => back - weights[i]));

// Levels and scale of a list of weights, by the format's name. unit: NVFP4's number for the whole layer.
const FITS = {
  int4(weights) {
    const low = Math.min(0, ...weights), high = Math.max(0, ...weights);
    const scale = high > low ? asFloat((high - low) / 15, 10, -14, 65504) : 1, zero = clamp(roundEven(-low / scale), 0, 15);
    return { scale, about: `zero point ${zero}`, levels: Array.from({ length: 16 }, (_, code) => scale * (code - zero)) };
  },
  NF4(weights, { nf4 }) {
    const scale = Math.max(...sizes(weights));
    return { scale, about: "largest is 1", levels: nf4.map((level) => level * scale) };
  },
  MXFP4(weights) {
    const largest = Math.max(...sizes(weights));
    let power = largest ? Math.floor(Math.log2(largest)) : 2;
    if (largest >= 1.75 * 2 ** power) power += 1;
    const scale = 2 ** (power - 2);
    return { scale, about: `2^${power - 2}, largest is ${(largest / scale).toFixed(2)}`, levels: signed(scale) };
  },
  NVFP4(weights, { unit }) {
    const largest = Math.max(...sizes(weights));
    if (!largest) return { scale: unit, about: "no weight", levels: signed(unit) };
    const [six, four] = [6, 4].map((top) => signed(asE4M3(largest / top / unit) * unit));
    const levels = missed(weights, four) < missed(weights, six) ? four : six;
    return { scale: levels.at(-1) / 6, about: `largest becomes ${levels === four ? 4 : 6}`, levels };
  },
};

// What a format makes of a block: its fits, one for each list of weights; the weights that come back; their error.
function madeOf(format, weights, given) {
  const parts = format === "NVFP4" ? [weights.slice(0, HALF), weights.slice(HALF)] : [weights];
  const fits = parts.map((part) => FITS[format](part, given));
  const back = parts.flatMap((part, i) => rounded(part, fits[i].levels));
  const error = Math.sqrt(squares(back.map((value, i) => value - weights[i])) / (squares(weights) || 1));
  return { fits, back, error };
}

const short = (x) => (x === 0 ? "0" : x.toPrecision(3));

function mount(box, data) {
  const names = Object.keys(data.layers), formats = Object.keys(FITS);
  const state = { layer: names[0], block: 0, weights: [], chosen: 0 };
  const option = (value, text) => make("option", { value }, text);
  const layer = make("select", {}, ...names.map((name) => option(name, name)));
  const block = make("select", {});
  const which = make("input", { type: "range", min: 0, max: 2 * HALF - 1, step: 1 });
  const value = make("input", { type: "range" });
  const double = make("button", { type: "button" }, "double the largest");
  const reset = make("button", { type: "button" }, "as it was");
  const said = make("p", { class: "said", "aria-live": "polite" });
  const place = make("div"), table = make("div", { class: "table" });
  box.append(
    make("div", { class: "controls" }, make("label", {}, "layer ", layer), make("label", {}, "block ", block), double, reset),
    place,
    make("div", { class: "controls two" }, make("label", {}, "which weight ", which), make("label", {}, "its value ", value)),
    said, table,
  );

  const given = () => ({ nf4: data.nf4, unit: data.layers[state.layer].unit });
  const stored = () => data.layers[state.layer].blocks[state.block];
  // How far a weight may be dragged; in a block of zeros as far as the layer goes, else there would be no axis.
  const limit = () => {
    const { largest } = data.layers[state.layer];
    return Math.min(1.7 * Math.max(...sizes(stored().weights)), largest) || largest || 1;
  };
  const picture = blockPicture(place, state, limit, {
    choose(i) { state.chosen = i; show(); },
    move(x) { state.weights[state.chosen] = clamp(x, -limit(), limit()); show(); },
  });

  function take() {
    state.weights = [...stored().weights];
    const size = sizes(state.weights);
    state.chosen = size.indexOf(Math.max(...size));
    change(value, { min: -limit(), max: limit(), step: limit() / 400 });
    show();
  }

  function fillBlocks() {
    block.replaceChildren(...data.layers[state.layer].blocks.map(({ what, row, first }, i) =>
      option(i, `${what} (row ${row}, from ${first})`)));
    state.block = 0;
    take();
  }

  function show() {
    const made = Object.fromEntries(formats.map((format) => [format, madeOf(format, state.weights, given())]));
    const at = state.weights[state.chosen];
    which.value = state.chosen;
    value.value = at;
    change(which, { "aria-valuetext": `weight ${state.chosen}` });
    change(value, { "aria-valuetext": short(at) });
    said.textContent = `Weight ${state.chosen} is ${short(at)}. Errors of the block: ` +
      formats.map((format) => `${format} ${percent(made[format].error, 1)}`).join(", ") + ".";
    const row = (kind, cells) => make("tr", {}, ...cells.map((cell) => make(kind, {}, cell)));
    const half = state.chosen < HALF ? 0 : 1;
    table.replaceChildren(make("table", {}, row("th", ["format", "bits", "becomes", "error", "its scale"]),
      ...formats.map((format) => {
        const fit = made[format].fits[half] ?? made[format].fits[0];
        return row("td", [format, data.bits[format].toFixed(2), short(made[format].back[state.chosen]),
          percent(made[format].error, 1), `${short(fit.scale)}, ${fit.about}`]);
      })));
    picture.show(made);
  }

  layer.addEventListener("change", () => { state.layer = layer.value; fillBlocks(); });
  block.addEventListener("change", () => { state.block = Number(block.value); take(); });
  which.addEventListener("input", () => { state.chosen = Number(which.value); show(); });
  value.addEventListener("input", () => { state.weights[state.chosen] = Number(value.value); show(); });
  reset.addEventListener("click", take);
  double.addEventListener("click", () => {
    const size = sizes(state.weights);
    state.chosen = size.indexOf(Math.max(...size));
    state.weights[state.chosen] = clamp(2 * state.weights[state.chosen], -limit(), limit());
    show();
  });
  fillBlocks();
  whenResized(place, (width) => { picture.draw(width); show(); });
}

// The picture: the weights in two lanes, one for each half, and below them the levels of every format.
function blockPicture(place, state, limit, on) {
  const LEFT = 68, RIGHT = 58, LANES = [30, 50], ROWS = 86, ROW = 30;
  const COLOURS = { int4: "var(--blue)", NF4: "var(--green)", MXFP4: "var(--orange)", NVFP4: "var(--purple)" };
  let width = 700, svg = null, dragged = false;
  const toX = (value) => LEFT + ((value / limit() + 1.04) / 2.08) * (width - LEFT - RIGHT);
  const toValue = (x) => (((x - LEFT) / (width - LEFT - RIGHT)) * 2.08 - 1.04) * limit();
  const text = (x, y, content, anchor) => make("text", { x, y, "text-anchor": anchor }, content);
  const line = (kind, x1, x2, y1, y2) => make("line", { class: kind, x1, x2, y1, y2 });

  function draw(wider = width) {
    width = wider;
    svg = make("svg", { height: ROWS + 5 * ROW + 26, role: "img" });
    svg.style.touchAction = "pan-y";
    const at = (event) => {
      const corner = svg.getBoundingClientRect();
      return [event.clientX - corner.left, event.clientY - corner.top];
    };
    svg.addEventListener("pointerdown", (event) => {
      const [x, y] = at(event);
      const far = state.weights.map((weight, i) => Math.hypot(toX(weight) - x, LANES[Number(i >= HALF)] - y));
      if (y > ROWS - 12) return;
      on.choose(far.indexOf(Math.min(...far)));
      dragged = true;
      svg.setPointerCapture(event.pointerId);
      event.preventDefault();
    });
    svg.addEventListener("pointermove", (event) => { if (dragged) on.move(toValue(at(event)[0])); });
    for (const end of ["pointerup", "pointercancel"]) svg.addEventListener(end, () => { dragged = false; });
    place.replaceChildren(svg);
  }

  function weightsIn(nodes) {
    nodes.push(text(LEFT, 12, "the block's weights: drag one", "start"), text(width, 12, "error", "end"));
    ["a", "b"].forEach((half, i) => nodes.push(line("faint", toX(-limit()), toX(limit()), LANES[i], LANES[i]),
      text(LEFT - 6, LANES[i] + 4, `weights ${half}`, "end")));
    state.weights.forEach((weight, i) => {
      const chosen = i === state.chosen;
      nodes.push(make("circle", { class: chosen ? "spot dot chosen" : "spot dot", r: chosen ? 6 : 3.5, cx: toX(weight),
        cy: LANES[Number(i >= HALF)], style: chosen ? "--c: var(--red)" : "--c: var(--sky)" }));
    });
  }

  function levelsIn(nodes, y, label, colour, levels, note) {
    const inside = levels.filter((level) => Math.abs(level) <= 1.04 * limit());
    nodes.push(line("faint", toX(-limit()), toX(limit()), y, y), text(LEFT - 6, y + 4, label, "end"));
    nodes.push(text(width, y + 4, note, "end"));
    for (const level of inside) nodes.push(make("line", { class: "mark", style: `--c: ${colour}`, "stroke-width": 2.5,
      x1: toX(level), x2: toX(level), y1: y - 8, y2: y + 8 }));
  }

  function show(made) {
    if (!svg) return;
    const nodes = [], half = Number(state.chosen >= HALF), x = toX(state.weights[state.chosen]);
    weightsIn(nodes);
    nodes.push(make("line", { class: "mark", style: "--c: var(--red)", "stroke-dasharray": "4 4", x1: x, x2: x,
      y1: LANES[half], y2: ROWS + 4.5 * ROW }));
    let row = 0;
    for (const [format, { fits, back, error }] of Object.entries(made)) {
      fits.forEach((fit, i) => {
        const y = ROWS + ROW * row++, label = fits.length > 1 ? `${format} ${"ab"[i]}` : format;
        levelsIn(nodes, y, label, COLOURS[format], fit.levels, i === 0 ? percent(error, 1) : "");
        if (fits.length === 1 || i === half)
          nodes.push(make("circle", { class: "spot", style: "--c: var(--red)", r: 5, cx: toX(back[state.chosen]), cy: y }));
      });
    }
    for (const tick of [-1, 0, 1]) nodes.push(text(toX(tick * limit()), ROWS + 5 * ROW + 14, short(tick * limit()), "middle"));
    svg.replaceChildren(...nodes);
    change(svg, { "aria-label": "the levels of int4, NF4, MXFP4 and NVFP4 over the 32 weights of the block" });
  }

  return { draw, show };
}
