// What all live widgets share: elements, and a picture that is drawn anew when its place gets wider or narrower.

const SVG_NAMES = new Set(["svg", "g", "path", "line", "rect", "circle", "text"]);

// An element with attributes and children; children are elements or text.
function make(name, attributes = {}, ...children) {
  const node = SVG_NAMES.has(name)
    ? document.createElementNS("http://www.w3.org/2000/svg", name)
    : document.createElement(name);
  change(node, attributes);
  node.append(...children);
  return node;
}

function change(node, attributes) {
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

// Call draw(width) now and whenever the width of `box` changes.
function whenResized(box, draw) {
  let last = 0;
  const look = () => {
    const width = Math.round(box.clientWidth);
    if (width && width !== last) draw((last = width));
  };
  new ResizeObserver(look).observe(box);
  look();
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const percent = (share, digits) => `${(100 * share).toFixed(digits)} %`;
