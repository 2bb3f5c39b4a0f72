// The ruler that breathes: one number, from 2^-30 to 2^20, over the levels of six formats, and its relative error.
//
// A format is {name, kind, mantissa, lowest, largest, infinite} for floats: lowest is the exponent of the smallest
// normal number. For integers it is {name, kind, scale, largest}. Only positive numbers are shown.

const LOW = -30, HIGH = 20; // powers of two
const CELLS = 16; // the trail of an octave has so many parts
const MANY = 160; // more ticks than this in the window are drawn as a bar
const SMALLEST = 1e-8; // relative errors below it lie on the floor of the picture

const bytes = new DataView(new ArrayBuffer(8));

// The exponent of a positive float64 that is not subnormal: of the highest power of two that is not larger.
function exponentOf(x) {
  bytes.setFloat64(0, x);
  return ((bytes.getUint16(0) >> 4) & 0x7ff) - 1023;
}

// To the nearest whole number; halves go to the even one.
function roundEven(x) {
  const below = Math.floor(x), rest = x - below;
  return rest > 0.5 || (rest === 0.5 && below % 2 === 1) ? below + 1 : below;
}

// The distance between neighbouring levels where x lies. Every power of two it doubles; below `lowest` it stays.
function stepAt(format, x) {
  if (format.kind === "int") return format.scale;
  return 2 ** (Math.max(x > 0 ? exponentOf(x) : format.lowest, format.lowest) - format.mantissa);
}

// x >= 0 rounded to the format.
function roundTo(format, x) {
  const step = stepAt(format, x), rounded = roundEven(x / step) * step;
  if (rounded <= format.largest) return rounded;
  return format.infinite ? Infinity : format.largest;
}

// The relative error of x, and the worst that a number of its size may have: half a step, until the range ends.
function errorAt(format, x) {
  return Math.abs(roundTo(format, x) - x) / x;
}

function worstAt(format, x) {
  const rounded = roundTo(format, x);
  if (rounded === Infinity || x > format.largest) return Math.abs(rounded - x) / x;
  return Math.min(stepAt(format, x) / 2 / x, 1); // an error of 1: the number becomes zero
}

// The levels from low to high (0 <= low < high), or null if they are more than `limit`.
function levelsIn(format, low, high, limit) {
  const levels = [], end = Math.min(high, format.largest);
  let level = Math.ceil(low / stepAt(format, low)) * stepAt(format, low);
  if ((end - level) / stepAt(format, end) > limit) return null;
  for (; level <= end; level += stepAt(format, level)) {
    if (levels.length === limit) return null;
    levels.push(level);
  }
  return levels;
}

// A number with four digits; 1.234e-7 where it is very small or large.
function told(x) {
  if (x === 0 || x === Infinity) return x ? "infinity" : "0";
  return x >= 1e-4 && x < 1e7 ? String(Number(x.toPrecision(4))) : x.toExponential(3).replace("e+", "e");
}

// 2 to a whole power, in small raised digits.
function powerOf2(power) {
  return `2${String(power).replace("-", "⁻").replace(/\d/g, (digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit])}`;
}

function share(error) {
  if (error === 0) return "exact";
  if (error === Infinity) return "out of range";
  return `off by ${error >= 0.01 ? `${(100 * error).toFixed(1)} %` : `${(100 * error).toPrecision(2)} %`}`;
}

const STROKES = [
  ["currentColor", ""], ["var(--blue)", ""], ["var(--green)", ""], ["var(--red)", "8 2"], ["var(--purple)", "2 2"],
  ["var(--orange)", ""],
];
const WINDOWS = [["from 0 to twice the number", 1], ["10 % to each side", 0.1], ["1 % to each side", 0.01],
  ["0.1 % to each side", 0.001]];

function mount(box, data) {
  const state = { power: data.start, window: 1, seen: data.formats.map(() => new Set()) };
  const slider = make("input", { type: "range", min: LOW, max: HIGH, step: 1 / 64, value: state.power,
    "aria-label": "the number, as a power of two" });
  const view = make("select", {}, ...WINDOWS.map(([text, share]) => make("option", { value: share }, text)));
  const all = make("button", { type: "button" }, "Whole trail");
  const none = make("button", { type: "button" }, "Wipe the trail");
  const said = make("p", { class: "said" }), place = make("div");
  box.append(said, slider, make("div", { class: "controls" }, make("label", {}, "window ", view), all, none), place);

  const cells = (HIGH - LOW) * CELLS;
  const cellOf = (power) => clamp(Math.floor((power - LOW) * CELLS), 0, cells - 1);
  const middle = (cell) => LOW + (cell + 0.5) / CELLS;

  function visit(from, to) {
    const [first, last] = [cellOf(Math.min(from, to)), cellOf(Math.max(from, to))];
    for (const seen of state.seen) for (let cell = first; cell <= last; cell++) seen.add(cell);
  }

  let width = 700;
  function draw() {
    const x = 2 ** state.power;
    said.replaceChildren("The number: ", make("b", {}, told(x)), " = 2", make("sup", {}, Number(state.power.toFixed(3))));
    slider.setAttribute("aria-valuetext", `${told(x)}, 2 to the ${Number(state.power.toFixed(2))}`);
    place.replaceChildren(rulers(data.formats, x, state.window, width), trails(data.formats, state, middle, width));
  }

  slider.addEventListener("input", () => {
    visit(state.power, Number(slider.value));
    state.power = Number(slider.value);
    draw();
  });
  view.addEventListener("change", () => { state.window = Number(view.value); draw(); });
  all.addEventListener("click", () => { visit(LOW, HIGH); draw(); });
  none.addEventListener("click", () => { state.seen.forEach((seen) => seen.clear()); visit(state.power, state.power); draw(); });
  visit(data.from, state.power);
  whenResized(place, (wider) => { width = wider; draw(); });
}

const written = (x, y, content, anchor = "start") => make("text", { x, y, "text-anchor": anchor }, content);

// A ruler for each format: its levels in the window, the number as a line through all, and where the number goes.
function rulers(formats, x, window, width) {
  const ROW = 42, low = x * (1 - window), high = x * (1 + window);
  const svg = make("svg", { height: formats.length * ROW + 26, role: "img" });
  const toX = (value) => ((value - low) / (high - low)) * width;
  const words = [];
  formats.forEach((format, row) => {
    const y = row * ROW + 30, [colour, dashes] = STROKES[row];
    const levels = levelsIn(format, low, high, MANY), rounded = roundTo(format, x);
    svg.append(make("line", { class: "mark", "stroke-width": 2.5, "stroke-dasharray": dashes, x1: 0, x2: 26, y1: y - 18,
      y2: y - 18, style: `--c: ${colour}` }));
    svg.append(written(32, y - 14, format.name));
    const reading = `${told(rounded)}, ${share(errorAt(format, x))}`;
    svg.append(written(width, y - 14, reading, "end"));
    words.push(`${format.name} ${reading}`);
    if (levels === null) {
      const end = Math.min(toX(format.largest), width);
      svg.append(make("rect", { class: "weights", x: 0, y: y - 8, width: end, height: 16 }));
    } else {
      const end = clamp(toX(format.largest), 0, width);
      svg.append(make("line", { class: "axis", x1: 0, x2: end, y1: y, y2: y }));
      svg.append(make("line", { class: "faint", x1: end, x2: width, y1: y, y2: y, "stroke-dasharray": "2 4" }));
      for (const level of levels)
        svg.append(make("line", { class: "axis", x1: toX(level), x2: toX(level), y1: y - 8, y2: y + 8 }));
    }
    svg.append(goal(toX(rounded), y, width, colour));
  });
  const down = formats.length * ROW + 4;
  svg.append(make("line", { class: "mark", "stroke-width": 1.2, x1: toX(x), x2: toX(x), y1: 4, y2: down }));
  svg.append(written(0, down + 16, told(low)), written(width / 2, down + 16, told(x), "middle"),
    written(width, down + 16, told(high), "end"));
  return change(svg, { "aria-label": `${told(x)} becomes: ${words.join("; ")}` });
}

// A diamond at the level that the number becomes, or an arrow at the border if that lies outside of the window.
function goal(at, y, width, colour) {
  const shape = at > width ? `M${width - 12} ${y - 7}l12 7l-12 7z` : at < 0 ? `M12 ${y - 7}l-12 7l12 7z`
    : `M${at} ${y - 8}l6 8l-6 8l-6 -8z`;
  return make("path", { class: "spot", style: `--c: ${colour}`, d: shape });
}

// Relative errors over powers of two, both logarithmic: the worst of every size that was passed, and the number's own.
function trails(formats, state, middle, width) {
  const LEFT = 44, TOP = 26, FLOOR = 196, bottom = Math.log10(SMALLEST);
  const svg = make("svg", { height: FLOOR + 44, role: "img" });
  const toX = (power) => LEFT + ((power - LOW) / (HIGH - LOW)) * (width - LEFT - 8);
  const toY = (error) => FLOOR - (clamp(Math.log10(Math.max(error, SMALLEST)), bottom, 0) / -bottom + 1) * (FLOOR - TOP);
  svg.append(written(0, 12, "relative error (lines: the worst at each size, dots: this number)"));
  for (const [error, text] of [[1, "100 %"], [1e-2, "1 %"], [1e-4, "0.01 %"], [1e-6, "1e-6"], [1e-8, "1e-8"]]) {
    svg.append(make("line", { class: "faint", x1: LEFT, x2: width - 8, y1: toY(error), y2: toY(error) }));
    svg.append(written(LEFT - 4, toY(error) + 4, text, "end"));
  }
  for (let power = LOW; power <= HIGH; power += 10)
    svg.append(written(toX(power), FLOOR + 16, powerOf2(power), "middle"));
  svg.append(written((LEFT + width) / 2, FLOOR + 34, "size of the number", "middle"));
  const x = 2 ** state.power;
  svg.append(make("line", { class: "faint", x1: toX(state.power), x2: toX(state.power), y1: TOP, y2: FLOOR }));
  formats.forEach((format, row) => {
    const [colour, dashes] = STROKES[row], style = `--c: ${colour}`;
    svg.append(make("path", { class: "mark", style, "stroke-width": 2, "stroke-dasharray": dashes,
      d: trail(format, [...state.seen[row]].sort((a, b) => a - b), middle, toX, toY) }));
    const error = errorAt(format, x);
    svg.append(make("circle", { class: "spot", style, r: 5, cx: toX(state.power), cy: toY(error === Infinity ? 1 : error) }));
  });
  return change(svg, { "aria-label": "relative error over the size of the number, for the sizes passed so far" });
}

// The line through the cells that were passed. Where numbers become infinite it goes up to the border, and ends.
function trail(format, seen, middle, toX, toY) {
  let path = "", last = null;
  for (const cell of seen) {
    const worst = worstAt(format, 2 ** middle(cell)), joined = last === cell - 1;
    if (worst < Infinity) path += `${joined ? "L" : "M"}${toX(middle(cell)).toFixed(1)} ${toY(worst).toFixed(1)}`;
    else if (joined) path += `V${toY(1)}`;
    last = worst < Infinity ? cell : null;
  }
  return path;
}
