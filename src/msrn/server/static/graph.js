// The label graph: labels on a circle, group by group; a chosen label lights those it attends to and those that attend to it.

const SVG = "http://www.w3.org/2000/svg";
// Okabe and Ito's colours, which colour-blind people can tell apart; groups beyond eight share them, and names say which.
const COLOURS = ["#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999"];
const MANY = 100;

function make(name, attributes, parent) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent?.append(element);
  return element;
}

export class LabelGraph {
  // `onChoose` is called with the name of a label that was clicked.
  constructor(box, text, labels, onChoose) {
    this.text = text;
    this.labels = labels;
    this.nodes = new Map();
    this.edges = [];
    const order = [...labels].sort((a, b) => (a.group ?? -1) - (b.group ?? -1) || a.name.localeCompare(b.name));
    const count = order.length;
    const radius = Math.max(150, Math.min(900, (count * 15) / (2 * Math.PI)));
    const margin = count > MANY ? 160 : 30 + 6.5 * Math.max(...order.map((label) => label.name.length));
    const side = 2 * (radius + margin);
    const svg = make("svg", { viewBox: `${-side / 2} ${-side / 2} ${side} ${side}`, role: "group", "aria-label": "Label graph" });
    svg.classList.toggle("dense", count > MANY);
    box.classList.toggle("many", count > MANY);
    const places = new Map(order.map((label, index) => [label.name, (2 * Math.PI * index) / count - Math.PI / 2]));
    const edges = make("g", { "aria-hidden": "true" }, svg);
    for (const label of labels) {
      for (const other of label.neighbours) {
        const [a, b] = [places.get(label.name), places.get(other)];
        const at = (angle) => `${radius * Math.cos(angle)} ${radius * Math.sin(angle)}`;
        this.edges.push({ label: label.name, other, path: make("path", { d: `M${at(a)}Q0 0 ${at(b)}` }, edges) });
      }
    }
    for (const label of order) {
      const angle = places.get(label.name);
      const node = make("g", { class: "node", tabindex: "0", role: "button", "aria-pressed": "false" }, svg);
      make("circle", { cx: radius * Math.cos(angle), cy: radius * Math.sin(angle), r: count > MANY ? 6 : 8, fill: this.colour(label) }, node);
      const isLeft = Math.cos(angle) < 0;
      const degrees = (angle * 180) / Math.PI + (isLeft ? 180 : 0);
      const distance = (radius + 14) * (isLeft ? -1 : 1);
      make("text", { transform: `rotate(${degrees}) translate(${distance} 0)`, "dominant-baseline": "middle", "text-anchor": isLeft ? "end" : "start", "font-size": "13" }, node).textContent = label.name;
      node.setAttribute("aria-label", label.group === null ? label.name : `${label.name}, group ${label.group}`);
      const choose = () => onChoose(label.name);
      node.addEventListener("click", choose);
      node.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        choose();
      });
      this.nodes.set(label.name, node);
    }
    box.replaceChildren(svg);
    this.show(null);
  }

  colour(label) {
    return label.group === null ? COLOURS[7] : COLOURS[label.group % COLOURS.length];
  }

  show(name) {
    const label = this.labels.find((own) => own.name === name);
    const followed = new Set(label?.neighbours ?? []);
    const followers = new Set(this.labels.filter((own) => own.neighbours.includes(name)).map((own) => own.name));
    for (const [other, node] of this.nodes) {
      const isNear = followed.has(other) || followers.has(other);
      node.classList.toggle("chosen", other === name);
      node.classList.toggle("near", isNear);
      node.classList.toggle("faded", Boolean(label) && other !== name && !isNear);
      node.setAttribute("aria-pressed", String(other === name));
    }
    for (const edge of this.edges) edge.path.classList.toggle("lit", edge.label === name || edge.other === name);
    this.describe(label, followed, followers);
  }

  describe(label, followed, followers) {
    const parts = [];
    const list = (title, names) => {
      if (!names.length) return;
      const heading = document.createElement("p");
      heading.textContent = title;
      const items = document.createElement("ul");
      items.append(...names.map((name) => Object.assign(document.createElement("li"), { textContent: name })));
      parts.push(heading, items);
    };
    if (label) {
      parts.push(Object.assign(document.createElement("h3"), { textContent: label.name }));
      list("It attends to", [...followed]);
      list("Attended to by", [...followers]);
      if (label.group !== null) {
        const members = this.labels.filter((own) => own.group === label.group && own.name !== label.name);
        list(`Also in group ${label.group}`, members.map((own) => own.name));
      }
      if (parts.length === 1) parts.push(Object.assign(document.createElement("p"), { textContent: "It stands alone." }));
    } else {
      parts.push(Object.assign(document.createElement("p"), { className: "note", textContent: "Choose a label to see its neighbours." }));
    }
    this.text.replaceChildren(...parts);
  }
}
