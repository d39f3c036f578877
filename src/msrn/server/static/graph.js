// The label graph: labels on a circle, group by group; a chosen label lights those it attends to and those that attend to it.

const SVG = "http://www.w3.org/2000/svg";
// Okabe and Ito's colours, which colour-blind people can tell apart; groups beyond eight share them, and names say which.
const COLOURS = ["#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999"];
const MANY = 100;
const MOST = 1000; // labels that are drawn
const MOST_EDGES = 20000;
const TARGET = 24; // least size of what a finger has to hit, in CSS pixels

function make(name, attributes, parent) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent?.append(element);
  return element;
}

export class LabelGraph {
  // `onChoose` is called with the name of a label that was clicked, or null where it was chosen before.
  constructor(box, text, labels, onChoose) {
    this.text = text;
    this.labels = labels;
    this.nodes = new Map();
    this.edges = [];
    this.chosen = null;
    this.isWhole = labels.length <= MOST;
    const drawn = this.isWhole ? labels : [...labels].sort((a, b) => b.neighbours.length - a.neighbours.length).slice(0, MOST);
    const order = [...drawn].sort((a, b) => (a.group ?? -1) - (b.group ?? -1) || a.name.localeCompare(b.name));
    const count = order.length;
    const radius = Math.max(150, Math.min(900, (count * 15) / (2 * Math.PI)));
    const margin = count > MANY ? 160 : 30 + 6.5 * Math.max(...order.map((label) => label.name.length));
    const side = 2 * (radius + margin);
    const svg = make("svg", { viewBox: `${-side / 2} ${-side / 2} ${side} ${side}`, role: "group", "aria-label": "Label graph" });
    svg.classList.toggle("dense", count > MANY);
    const spacing = (2 * Math.PI * radius) / count;
    svg.style.setProperty("--touchable", `${Math.ceil((TARGET * side) / spacing)}px`);
    box.classList.toggle("many", count > MANY);
    const places = new Map(order.map((label, index) => [label.name, (2 * Math.PI * index) / count - Math.PI / 2]));
    const edges = make("g", { "aria-hidden": "true" }, svg);
    for (const label of drawn) {
      for (const other of label.neighbours) {
        if (!places.has(other)) continue;
        if (this.edges.length === MOST_EDGES) break;
        const [a, b] = [places.get(label.name), places.get(other)];
        const at = (angle) => `${radius * Math.cos(angle)} ${radius * Math.sin(angle)}`;
        this.edges.push({ label: label.name, other, path: make("path", { d: `M${at(a)}Q0 0 ${at(b)}` }, edges) });
      }
    }
    for (const label of order) {
      const angle = places.get(label.name);
      const node = make("g", { class: "node", tabindex: "-1", role: "button", "aria-pressed": "false" }, svg);
      const centre = { cx: radius * Math.cos(angle), cy: radius * Math.sin(angle) };
      make("circle", { ...centre, r: Math.min(spacing / 2, 1.5 * TARGET), class: "target" }, node);
      make("circle", { ...centre, r: count > MANY ? 6 : 8, fill: this.colour(label) }, node);
      const isLeft = Math.cos(angle) < 0;
      const degrees = (angle * 180) / Math.PI + (isLeft ? 180 : 0);
      const distance = (radius + 14) * (isLeft ? -1 : 1);
      make("text", { transform: `rotate(${degrees}) translate(${distance} 0)`, "dominant-baseline": "middle", "text-anchor": isLeft ? "end" : "start", "font-size": "13" }, node).textContent = label.name;
      node.setAttribute("aria-label", label.group === null ? label.name : `${label.name}, group ${label.group}`);
      const choose = () => {
        onChoose(label.name === this.chosen ? null : label.name);
        node.scrollIntoView({ block: "nearest", inline: "nearest" });
      };
      node.addEventListener("click", choose);
      node.addEventListener("focus", () => this.stopAt(node));
      node.addEventListener("keydown", (event) => {
        const others = [...this.nodes.values()];
        const index = others.indexOf(node);
        const key = event.key;
        if (key === "Enter" || key === " ") choose();
        else if (key === "ArrowRight" || key === "ArrowDown") others[(index + 1) % count].focus();
        else if (key === "ArrowLeft" || key === "ArrowUp") others.at(index - 1).focus();
        else if (key === "Home") others[0].focus();
        else if (key === "End") others.at(-1).focus();
        else return;
        event.preventDefault();
      });
      this.nodes.set(label.name, node);
    }
    this.stopAt(this.nodes.get(order[0].name));
    box.replaceChildren(svg);
    this.show(null);
  }

  // The graph is one stop of the Tab key; arrows lead around it.
  stopAt(node) {
    for (const other of this.nodes.values()) other.setAttribute("tabindex", other === node ? "0" : "-1");
  }

  colour(label) {
    return label.group === null ? COLOURS[7] : COLOURS[label.group % COLOURS.length];
  }

  show(name) {
    const label = this.labels.find((own) => own.name === name);
    this.chosen = label ? name : null;
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
