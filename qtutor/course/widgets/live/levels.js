// Beat NF4: levels to drag over a histogram of weights, each divided by the absmax of its block.
//
// The weights themselves are not here. Two points stand for those of a bin of the histogram: they have the same count,
// sum and sum of squares. A point has a place x, the share of the weights that it stands for, and c, what the square of
// its error counts, because a squared error is in units of the absmax squared.

const ENDS = 1.1; // levels may lie a little outside of the weights, as those of int4 do
const GAP = 0.002; // neighbouring levels do not cross

// The place of the level nearest to x in `levels`, which ascend.
function nearest(levels, x) {
  let place = 0;
  while (place + 1 < levels.length && x - levels[place] > levels[place + 1] - x) place++;
  return place;
}

const total = (numbers) => numbers.reduce((sum, number) => sum + number, 0);

// By level: the share of the weights, the squared error, and the sums from which the mean of its weights follows.
function perLevel(points, levels) {
  const found = levels.map(() => ({ share: 0, square: 0, c: 0, cx: 0 }));
  points.x.forEach((x, i) => {
    const place = nearest(levels, x), at = found[place], c = points.c[i];
    at.share += points.share[i];
    at.square += c * (x - levels[place]) ** 2;
    at.c += c;
    at.cx += c * x;
  });
  return found;
}

// The error of the weights relative to the weights: a root of a sum of squares over another.
function errorOf(points, levels) {
  const squares = total(perLevel(points, levels).map((at) => at.square));
  return Math.sqrt(squares / total(points.x.map((x, i) => points.c[i] * x * x)));
}

// Every level goes to the mean of its weights. One that has none stays, and so does the one at place `kept`.
function lloydStep(points, levels, kept = -1) {
  return perLevel(points, levels).map((at, i) => (at.c && i !== kept ? at.cx / at.c : levels[i]));
}

// The score: 0 for the error of NF4 or more, 100 for that of the best levels.
function scoreOf(error, nf4, best) {
  return Math.max(0, Math.round((100 * (nf4 - error)) / (nf4 - best)));
}

function mount(box, data) {
  const names = Object.keys(data.sources);
  const state = { source: names[0], levels: [...data.formats.int4], chosen: 3, kept: -1 };
  const points = () => data.sources[state.source].points;

  const options = (list) => list.map((name) => make("option", { value: name }, name));
  const source = make("select", {}, ...options(names));
  const start = make("select", {}, ...options(Object.keys(data.formats)));
  const step = make("button", { type: "button" }, "Lloyd step");
  const steps = make("button", { type: "button" }, "20 Lloyd steps");
  // Choosing a format that is chosen already is no change, so going back to it needs a button.
  const again = make("button", { type: "button" }, "start again");
  const zero = make("input", { type: "checkbox" });
  zero.checked = true;
  const said = make("p", { class: "said", "aria-live": "polite" });
  const about = make("p", { class: "said" });
  const list = make("code");
  const place = make("div");
  box.append(
    make("div", { class: "controls" }, make("label", {}, "weights ", source), make("label", {}, "start from ", start),
      make("label", {}, zero, " one level stays at 0")),
    make("div", { class: "controls" }, step, steps, again),
    said, place, about, make("p", { class: "said" }, make("small", {}, "Your levels: ", list)),
  );

  const picture = levelsPicture(place, data, state, {
    choose(i) {
      state.chosen = i;
      show(false);
    },
    move(i, x) {
      if (i === state.kept) return;
      const [low, high] = [state.levels[i - 1] ?? -ENDS - GAP, state.levels[i + 1] ?? ENDS + GAP];
      state.levels[i] = clamp(x, Math.min(low + GAP, state.levels[i]), Math.max(high - GAP, state.levels[i]));
      show(false);
    },
  });

  function keepZero() {
    state.kept = -1;
    if (!zero.checked) return;
    const sizes = state.levels.map(Math.abs);
    state.kept = sizes.indexOf(Math.min(...sizes));
    state.levels[state.kept] = 0;
  }

  function show(sliding) {
    const { nf4, best: free, best_with_zero } = data.sources[state.source];
    const best = zero.checked ? best_with_zero : free;
    const found = perLevel(points(), state.levels), error = errorOf(points(), state.levels);
    const score = scoreOf(error, nf4, best);
    const verdict = error < nf4 ? "NF4 is beaten" : error > nf4 * 1.00005 ? "NF4 is better" : "as good as NF4";
    const compared = `NF4 has ${percent(nf4, 2)}, the best levels${zero.checked ? " with a 0" : ""} have ${percent(best, 2)}.`;
    said.replaceChildren(
      make("b", {}, `Error ${percent(error, 2)}, score ${score} of 100`), `: ${verdict}. ${compared}`,
    );
    const squares = total(found.map((at) => at.square)), at = found[state.chosen];
    about.textContent = `Level ${state.chosen} lies at ${state.levels[state.chosen].toFixed(4)}. It gets ` +
      `${percent(at.share, 1)} of the weights and makes ${percent(at.square / squares, 1)} of the squared error.`;
    list.textContent = state.levels.map((level) => level.toFixed(4)).join(", ");
    picture.show(found, squares, sliding);
  }

  function lloyd(count) {
    for (let i = 0; i < count; i++) state.levels = lloydStep(points(), state.levels, state.kept);
    show(true);
  }

  step.addEventListener("click", () => lloyd(1));
  steps.addEventListener("click", () => lloyd(20));
  zero.addEventListener("change", () => { keepZero(); show(true); });
  source.addEventListener("change", () => { state.source = source.value; picture.draw(); show(false); });
  function begin() {
    state.levels = [...data.formats[start.value]];
    keepZero();
    show(true);
  }
  start.addEventListener("change", begin);
  again.addEventListener("click", begin);
  keepZero();
  whenResized(place, (width) => { picture.draw(width); show(false); });
}

// The picture: the histogram with its handles, the other formats' levels beneath it, and two bars for each level.
function levelsPicture(place, data, state, on) {
  const LEFT = 40, RIGHT = 58, TOP = 14, FLOOR = 150, ROW = 18, GHOSTS = FLOOR + 40, BARS = GHOSTS + 3 * ROW + 30;
  const HIGH = 84, BOTTOM = BARS + HIGH + 34;
  let width = 700, handles = [], bars = [];
  const toX = (value) => LEFT + ((value + ENDS) / (2 * ENDS)) * (width - LEFT - RIGHT);
  const toValue = (x) => ((x - LEFT) / (width - LEFT - RIGHT)) * 2 * ENDS - ENDS;
  const text = (x, y, content, anchor = "middle") => make("text", { x, y, "text-anchor": anchor }, content);

  function histogram(svg) {
    const { x, share } = data.sources[state.source].points, columns = Array(128).fill(0);
    x.forEach((at, i) => { columns[clamp(Math.floor((at + 1) * 64), 0, 127)] += share[i]; });
    // The largest weight of every block lies at an end. These two spikes would flatten the rest, so the axis cuts them.
    const top = 1.15 * Math.max(...columns.slice(3, -3));
    let path = `M${toX(-1)} ${FLOOR}`;
    columns.forEach((part, i) => {
      const y = FLOOR - Math.min(part / top, 1) * (FLOOR - TOP);
      path += `V${y}H${toX(-1 + (2 * (i + 1)) / columns.length)}`;
    });
    svg.append(make("path", { class: "weights", d: `${path}V${FLOOR}Z` }));
    svg.append(make("line", { class: "axis", x1: toX(-ENDS), x2: toX(ENDS), y1: FLOOR, y2: FLOOR }));
    for (const tick of [-1, -0.5, 0, 0.5, 1]) svg.append(text(toX(tick), FLOOR + 30, tick));
    svg.append(text(LEFT, 10, "the weights, and your levels: drag them", "start"));
  }

  function ghosts(svg) {
    const { points } = data.sources[state.source];
    ["int4", "NF4", "FP4"].forEach((name, row) => {
      const y = GHOSTS + row * ROW;
      svg.append(make("line", { class: "faint", x1: toX(-ENDS), x2: toX(ENDS), y1: y + 8, y2: y + 8 }));
      svg.append(text(LEFT - 6, y + 12, name, "end"));
      svg.append(text(width - RIGHT + 6, y + 12, percent(errorOf(points, data.formats[name]), 2), "start"));
      for (const level of data.formats[name])
        svg.append(make("line", { class: "axis", x1: toX(level), x2: toX(level), y1: y + 2, y2: y + 14 }));
    });
    svg.append(text(width, FLOOR + 30, "error", "end"));
  }

  function levelHandle(i) {
    const node = make("g", { class: "handle", role: "slider", tabindex: "0", "aria-valuemin": -ENDS,
      "aria-valuemax": ENDS, "aria-label": `level ${i}` });
    node.append(
      make("line", { class: "stem", x1: 0, x2: 0, y1: TOP + 6, y2: FLOOR + 4 }),
      make("line", { class: "faint", x1: 0, x2: 0, y1: GHOSTS, y2: GHOSTS + 3 * ROW - 2 }),
      make("path", { class: "knob", d: `M0 ${FLOOR}l5 8v8h-10v-8z` }),
    );
    node.addEventListener("focus", () => on.choose(i));
    node.addEventListener("keydown", (event) => {
      const unit = event.shiftKey ? 0.05 : 0.005;
      const by = { ArrowLeft: -unit, ArrowDown: -unit, ArrowRight: unit, ArrowUp: unit, PageDown: -0.05, PageUp: 0.05 };
      if (!(event.key in by)) return;
      event.preventDefault();
      on.move(i, state.levels[i] + by[event.key]);
    });
    return node;
  }

  // Wherever the picture is touched, the nearest level follows: handles are small, and close together near zero.
  function dragging(svg) {
    const area = make("rect", { x: 0, y: 0, width, height: FLOOR + 20, fill: "transparent" });
    area.style.touchAction = "pan-y";
    const at = (event) => toValue(event.clientX - svg.getBoundingClientRect().left);
    let dragged = -1;
    const press = (event) => {
      // The level that stays at 0 is passed over: its neighbours are close, and it would not move.
      const x = at(event), gaps = state.levels.map((level, i) => (i === state.kept ? Infinity : Math.abs(level - x)));
      dragged = gaps.indexOf(Math.min(...gaps));
      svg.setPointerCapture(event.pointerId);
      event.preventDefault();
      handles[dragged].focus();
    };
    svg.addEventListener("pointerdown", (event) => { if (event.target.closest(".grip")) press(event); });
    svg.addEventListener("pointermove", (event) => { if (dragged >= 0) on.move(dragged, at(event)); });
    for (const end of ["pointerup", "pointercancel"]) svg.addEventListener(end, () => { dragged = -1; });
    return area;
  }

  let svg;
  function draw(wider = width) {
    width = wider;
    const focused = handles.indexOf(document.activeElement);
    svg = make("svg", { height: BOTTOM, role: "group", "aria-label": "levels over the histogram of the weights" });
    histogram(svg);
    ghosts(svg);
    handles = state.levels.map((_, i) => levelHandle(i));
    const grip = make("g", { class: "grip" }, dragging(svg), ...handles);
    grip.style.touchAction = "pan-y";
    svg.append(grip);
    const room = (width - LEFT - RIGHT) / state.levels.length;
    bars = state.levels.map((_, i) => {
      const x = LEFT + room * (i + 0.15);
      const [share, square] = ["share", "square"].map((kind, k) =>
        make("rect", { class: kind, x: x + (k * room * 0.7) / 2, width: (room * 0.7) / 2 }));
      svg.append(share, square, text(LEFT + room * (i + 0.5), BARS + HIGH + 14, i));
      return { share, square };
    });
    const even = BARS + HIGH - HIGH * (1 / state.levels.length / 0.2);
    svg.append(make("line", { class: "faint", x1: LEFT, x2: width - RIGHT, y1: BARS + HIGH, y2: BARS + HIGH }));
    svg.append(make("line", { class: "mark", "stroke-dasharray": "5 4", x1: LEFT, x2: width - RIGHT, y1: even, y2: even }));
    svg.append(text(width - RIGHT + 4, even + 4, "6.25 %", "start"), text(LEFT, BARS + HIGH + 30, "level", "start"));
    svg.append(make("rect", { class: "share", x: LEFT, y: BARS - 25, width: 9, height: 9 }),
      text(LEFT + 14, BARS - 16, "share of the weights", "start"),
      make("rect", { class: "square", x: LEFT + 146, y: BARS - 25, width: 9, height: 9 }),
      text(LEFT + 160, BARS - 16, "of the squared error", "start"));
    place.replaceChildren(svg);
    if (focused >= 0) handles[focused].focus();
  }

  function show(found, squares, sliding) {
    svg.classList.toggle("sliding", sliding);
    found.forEach((at, i) => {
      const handle = handles[i];
      handle.style.transform = `translate(${toX(state.levels[i])}px, 0)`;
      handle.classList.toggle("chosen", i === state.chosen);
      handle.classList.toggle("kept", i === state.kept);
      change(handle, { "aria-valuenow": state.levels[i].toFixed(4), "aria-disabled": i === state.kept,
        "aria-valuetext": `${state.levels[i].toFixed(4)}, ${percent(at.share, 1)} of the weights` });
      for (const [kind, part] of [["share", at.share], ["square", at.square / squares]]) {
        const high = Math.min(part / 0.2, 1) * HIGH; // a fifth fills the height
        change(bars[i][kind], { y: BARS + HIGH - high, height: Math.max(high, 0) });
      }
    });
  }

  return { draw, show };
}
