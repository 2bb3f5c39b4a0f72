"""The page of the duel in chapter 06: two rows of bars, an error curve, buttons; both methods run in the browser.

The page is plain HTML. Script elements do not run in the HTML of a live widget. So the script is in the attribute
``onload`` of the style sheet, which browsers run wherever the HTML is put. The script changes nothing outside of its
box. Without scripts, the table of :func:`.gptq.duel` remains.
"""

import json
from html import escape

STYLE = """
.qtutor-duel {padding: 2px; line-height: 1.4}
.qtutor-duel .buttons {display: flex; flex-wrap: wrap; gap: 5px; margin: 0.4em 0; align-items: center}
.qtutor-duel .buttons button {font: inherit; font-size: 13px; min-height: 28px; padding: 2px 9px; margin: 0;
  cursor: pointer; color: inherit; background: transparent; border: 1px solid currentColor; border-radius: 4px}
.qtutor-duel .buttons button[aria-pressed=true] {box-shadow: 0 0 0 2px currentColor; font-weight: bold}
.qtutor-duel .buttons button:disabled {opacity: 0.45; cursor: default}
.qtutor-duel button:focus-visible {outline: 3px solid #0072B2; outline-offset: 2px}
.qtutor-duel .panels {display: flex; flex-wrap: wrap; gap: 4px 22px}
.qtutor-duel .panel {flex: 1 1 300px; min-width: 0}
.qtutor-duel .panel p {margin: 0.3em 0}
.qtutor-duel .meter {height: 8px; border: 1px solid currentColor; border-radius: 2px}
.qtutor-duel .meter i {display: block; height: 100%; background: var(--colour)}
.qtutor-duel .plot {position: relative; height: 170px}
.qtutor-duel .level {position: absolute; left: 0; right: 0; border-top: 1px solid currentColor; opacity: 0.25}
.qtutor-duel .level.zero {opacity: 0.8}
.qtutor-duel .columns {position: absolute; inset: 0; display: flex}
.qtutor-duel .columns button {position: relative; flex: 1 1 0; min-width: 0; height: 170px; margin: 0; padding: 0;
  color: inherit; background: transparent; border: 0; cursor: pointer; overflow: hidden}
.qtutor-duel .columns button[aria-disabled=true] {cursor: default}
.qtutor-duel .columns button.now {box-shadow: inset 0 0 0 2px currentColor; border-radius: 3px}
.qtutor-duel .bar {position: absolute; left: 18%; right: 18%; box-sizing: border-box; min-height: 2px;
  border: 1px dashed currentColor}
.qtutor-duel .bar.done {background: var(--colour); border: 1px solid var(--colour)}
.qtutor-duel .was {position: absolute; left: 4%; right: 4%; height: 2px; background: currentColor}
.qtutor-duel .move {position: absolute; left: calc(50% - 1.5px); width: 3px; background: var(--colour)}
.qtutor-duel .move.up {border-top: 4px solid currentColor}
.qtutor-duel .move.down {border-bottom: 4px solid currentColor}
.qtutor-duel .strip {display: flex; align-items: flex-end; height: 24px}
.qtutor-duel .strip i {flex: 1 1 0; min-height: 1px; margin: 0 18%; background: currentColor; opacity: 0.6}
.qtutor-duel .strip span, .qtutor-duel .places span {flex: 1 1 0; min-width: 0; display: flex; height: 100%;
  align-items: flex-end; justify-content: center}
.qtutor-duel .places {display: flex; height: 15px; font: 10px/15px sans-serif}
.qtutor-duel .places .done {font-weight: bold; text-decoration: underline}
.qtutor-duel small {opacity: 0.85}
.qtutor-duel .curve {position: relative; height: 110px; margin: 0.2em 0; border-left: 1px solid currentColor;
  border-bottom: 1px solid currentColor}
.qtutor-duel .curve svg {position: absolute; inset: 0; width: 100%; height: 100%; overflow: hidden}
.qtutor-duel .curve path {fill: none; stroke-width: 2.5; vector-effect: non-scaling-stroke}
.qtutor-duel .curve .top {position: absolute; right: 2px; top: 0; font-size: 11px}
.qtutor-duel table {margin-top: 0.4em}
.qtutor-duel td, .qtutor-duel th {padding: 0.15em 0.7em; text-align: left}
"""

# The whole duel. State: the full order of the columns, and how many of them are rounded. Every picture is computed anew
# from these two; twenty columns take well under a millisecond.
SCRIPT = """
const box = this.parentNode, data = JSON.parse(box.dataset.duel), {weights, inputs, hessian, inverse} = data;
const n = weights.length, names = Object.keys(data.orders), find = what => box.querySelector(what);
const state = {name: names[0], order: data.orders[names[0]], step: 0}, tried = new Map();
let randoms = 0, owns = 0;
const nearest = w =>
  data.scale * (Math.min(Math.max(Math.round(w / data.scale) + data.zero, 0), data.largest) - data.zero);
const error = w => {
  let sum = 0;
  for (let i = 0; i < n; i++) for (let j = 0; j < n; j++)
    sum += (w[i] - weights[i]) * hessian[i][j] * (w[j] - weights[j]);
  return Math.sqrt(Math.max(sum, 0));
};

/* Both methods over the first columns of an order. GPTQ: round column q, move the others by -e [H^-1]_q / [H^-1]_qq,
   then strike q out of the inverse. */
const replay = (order, steps) => {
  const gptq = [...weights], rtn = [...weights], left = inverse.map(row => [...row]), errors = [[0, 0]];
  let moves = new Array(n).fill(0), off = 0;
  for (const q of order.slice(0, steps)) {
    off = gptq[q] - nearest(gptq[q]);
    const row = [...left[q]];
    moves = row.map(entry => -off * entry / row[q]);
    for (let j = 0; j < n; j++) gptq[j] += moves[j];
    rtn[q] = nearest(weights[q]);
    for (let i = 0; i < n; i++) for (let j = 0; j < n; j++)
      left[i][j] = i === q || j === q ? 0 : left[i][j] - row[i] * row[j] / row[q];
    errors.push([error(gptq), error(rtn)]);
  }
  return {gptq, rtn, moves, errors, off};
};

const percent = x => (100 * x).toFixed(2) + '\u00a0%', signed = x => (x < 0 ? '\u2212' : '+') + Math.abs(x).toFixed(4);
const low = -(data.zero + 1.3) * data.scale, high = (data.largest - data.zero + 1.3) * data.scale;
const height = v => 100 * (high - Math.min(Math.max(v, low), high)) / (high - low);
const span = (one, other) => {
  const [top, bottom] = [height(Math.max(one, other)), height(Math.min(one, other))];
  return `top:${top}%;height:${bottom - top}%`;
};

const levels = Array.from({length: data.largest + 1}, (_, code) => {
  const place = height(data.scale * (code - data.zero)), kind = code === data.zero ? 'level zero' : 'level';
  return `<div class="${kind}" style="top:${place}%"></div>`;
});
const strip = data.sizes.map(size => `<span><i style="height:${100 * size}%"></i></span>`).join('');
const panel = (kind, title, colour) => `<div class="panel ${kind}" style="--colour:${colour}">
  <p><b>${title}</b>: output error <b class="error"></b></p><div class="meter"><i></i></div>
  <div class="plot">${levels.join('')}<div class="columns" role="group" aria-label="${title}: the columns">${
    weights.map((_, j) => `<button type="button" data-column="${j}"><i class="bar"></i><i class="was"></i>
      <i class="move"></i></button>`).join('')}</div></div>
  <div class="places" aria-hidden="true">${'<span></span>'.repeat(n)}</div>
  <div class="strip" aria-hidden="true">${strip}</div></div>`;
const button = (act, text) => `<button type="button" data-act="${act}">${text}</button>`;
find('.play').innerHTML = `<div class="buttons orders" role="group" aria-label="order of the columns">order:
  ${names.map(name => button(name, name)).join('')}${button('random', 'random')}</div>
  <div class="buttons" role="group" aria-label="steps">${button('back', '\u2190 back')}
  ${button('step', 'one step \u2192')}${button('end', 'to the end')}${button('start', 'start again')}</div>
  <div class="panels">${panel('gptq', 'GPTQ', '#0072B2')}${panel('rtn', 'Round to nearest', '#D55E00')}</div>
  <p><small>Dashed bar: not rounded yet. Full bar: rounded. Thick line across: the weight at the start. Thick upright
  line: the move in the last step. Faint lines: levels of the grid. The number under a bar: its place in the order.
  Below it: the size of its input.</small></p>
  <p class="said" aria-live="polite"></p>
  <div class="curve"><svg role="img" viewBox="0 0 100 100" preserveAspectRatio="none"></svg>
  <span class="top"></span></div>
  <p><small>Output error so far, step by step: full line GPTQ, dashed line round to nearest, thin lines GPTQ in orders
  that you tried before. The upper edge is the number on its right.</small></p><div class="board"></div>`;

const draw = () => {
  const {order, step} = state, found = replay(order, step), done = new Set(order.slice(0, step));
  const now = step ? order[step - 1] : -1, [gptqs, rtns] = [0, 1].map(k => found.errors.map(pair => pair[k]));
  if (step === n) tried.set(state.name, gptqs);
  const runs = [...tried].filter(([name]) => name !== state.name).map(([, errors]) => errors);
  const top = 1.05 * Math.max(data.top, ...gptqs, ...runs.flat());
  for (const [kind, values, errors] of [['gptq', found.gptq, gptqs], ['rtn', found.rtn, rtns]]) {
    const within = find('.panel.' + kind);
    within.querySelector('.error').textContent = percent(errors[step]);
    within.querySelector('.meter i').style.width = `${100 * errors[step] / top}%`;
    within.querySelectorAll('.columns button').forEach((column, j) => {
      const [bar, was, move] = column.children, moved = kind === 'gptq' && j !== now ? found.moves[j] : 0;
      bar.className = done.has(j) ? 'bar done' : 'bar';
      bar.style = span(values[j], 0);
      was.style = `top:calc(${height(weights[j])}% - 1px)`;
      move.hidden = done.has(j) || Math.abs(moved) < 0.005 * (high - low);
      move.style = span(values[j] - moved, values[j]);
      move.className = 'move ' + (moved > 0 ? 'up' : 'down');
      column.classList.toggle('now', j === now);
      column.setAttribute('aria-disabled', done.has(j));
      column.tabIndex = j === (box.focused ?? 0) ? 0 : -1;
      column.setAttribute('aria-label', `input ${inputs[j]}: ${values[j].toFixed(4)}, ` +
        (done.has(j) ? 'rounded' : `place ${order.indexOf(j) + 1} in the order; press to round it next`));
    });
    within.querySelectorAll('.places span').forEach((place, j) => {
      place.textContent = order.indexOf(j) + 1;
      place.className = done.has(j) ? 'done' : '';
    });
  }
  box.querySelectorAll('.orders button').forEach(one =>
    one.setAttribute('aria-pressed', state.name.replace(/ [0-9]+$/, '') === one.dataset.act));
  for (const [act, off] of [['back', !step], ['start', !step], ['step', step === n], ['end', step === n]])
    find(`[data-act="${act}"]`).disabled = off;

  const others = found.moves.map((move, j) => j === now ? 0 : move);
  const most = others.reduce((best, move, j) => Math.abs(move) > Math.abs(others[best]) ? j : best, 0);
  const pushed = step < n && others[most] ? `The others compensate for it, that of input ${inputs[most]} most, by
    ${signed(others[most])}.` : 'No other column is left to compensate for it.';
  find('.said').textContent = !step ? `Nothing is rounded yet. Take a step, or click the column to round next.`
    : `Step ${step} of ${n}, ${state.name}: the weight of input ${inputs[now]} is rounded, which changes it by ` +
      `${signed(-found.off)}. ${pushed} Output error: GPTQ ${percent(gptqs[step])}, ` +
      `round to nearest ${percent(rtns[step])}.`;

  const line = (errors, colour, more) => `<path style="stroke:${colour};${more}" d="M${
    errors.map((e, k) => `${100 * k / n} ${100 - 100 * e / top}`).join(' L')}"/>`;
  find('svg').innerHTML = runs.map(run => line(run, 'currentColor', 'stroke-width:1;opacity:0.55')).join('')
    + line(rtns, '#D55E00', 'stroke-dasharray:7 4') + line(gptqs, '#0072B2', '');
  find('svg').setAttribute('aria-label', `error of the output so far: ${find('.said').textContent}`);
  find('.curve .top').textContent = percent(top);

  const ofNearest = replay(order, n).errors[n][1];
  const best = Math.min(...[...tried.values()].map(errors => errors[n]));
  find('.board').innerHTML = tried.size === 0 ? '' : `<table><caption>orders tried to the end</caption>
    <tr><th scope="col">order<th scope="col">GPTQ<th scope="col">of round to nearest</tr>${
    [...tried].map(([name, errors]) => `<tr><td>${name}${errors[n] === best ? ' (the best so far)' : ''}
      <td>${percent(errors[n])}<td>${(100 * errors[n] / ofNearest).toFixed(0)}\u00a0%</tr>`).join('')}</table>`;
};

const choose = (name, order) => Object.assign(state, {name, order, step: 0});
box.act = act => {
  if (act in data.orders) choose(act, data.orders[act]);
  else if (act === 'random') {
    const order = [...state.order];
    for (let i = n - 1; i > 0; i--) {
      const j = Math.floor(Math.random() * (i + 1));
      [order[i], order[j]] = [order[j], order[i]];
    }
    choose(`random ${++randoms}`, order);
  } else state.step = {back: state.step - 1, step: state.step + 1, end: n, start: 0}[act];
  draw();
};
box.next = column => { /* round this column next: it changes places with nobody, the others keep their order */
  if (state.order.indexOf(column) < state.step) return;
  const done = state.order.slice(0, state.step), rest = state.order.slice(state.step).filter(j => j !== column);
  if (state.order[state.step] !== column && !state.name.startsWith('own')) state.name = `own ${++owns}`;
  Object.assign(state, {order: [...done, column, ...rest], step: state.step + 1});
  draw();
};
box.state = state;
draw();
"""
CLICK = """
const column = event.target.closest('[data-column]'), chosen = event.target.closest('[data-act]');
if (column) { this.focused = Number(column.dataset.column); this.next(this.focused); }
else if (chosen) this.act(chosen.dataset.act);
"""
KEY = """
const column = event.target.closest('[data-column]'), step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
const next = column && step ? (step < 0 ? column.previousElementSibling : column.nextElementSibling) : null;
if (next) {
  event.preventDefault();
  column.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
  this.focused = Number(next.dataset.column);
}
"""


def duel_html(data: dict, title: str, ends: str) -> str:
    """The duel as HTML. data: from :func:`.gptq.duel_data`. ends: HTML that is shown where scripts do not run."""
    stored = escape(json.dumps(data, separators=(",", ":")))
    return (
        f"<div class='qtutor-duel' data-lm-suppress-shortcuts='true' data-duel=\"{stored}\" "
        f'onclick="{escape(CLICK)}" onkeydown="{escape(KEY)}">'
        f"<p><b>{escape(title)}</b></p><div class='play'>{ends}</div>"
        # Last: a browser that is still reading the page may run the script before it has read what follows.
        f'<style onload="{escape(SCRIPT)}">{STYLE}</style></div>'
    )
