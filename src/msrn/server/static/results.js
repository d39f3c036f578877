// One photo: its picture, its labels, and the maps of the label that was chosen.

import { explain } from "./api.js";
import { clear, draw } from "./heatmap.js";
import { thresholdAt } from "./strictness.js";

const NUM_BELOW = 3; // labels shown that are not kept
let numResults = 0;

const percent = (share) => `${(100 * share).toFixed(share >= 0.0995 || share === 0 ? 0 : 1)} %`;

export class Result {
  // `onChoose` is called with this result and the name of the label that was chosen in it, or null.
  constructor(file, model, canExplain, onChoose) {
    this.file = file;
    this.name = file.name || "pasted photo";
    this.model = model;
    this.canExplain = canExplain;
    this.onChoose = onChoose;
    this.labels = [];
    this.error = "not answered yet"; // what a download says of it
    this.chosen = null;
    this.isOpen = false;
    this.explained = new Map();
    this.number = (numResults += 1);
    this.element = document.getElementById("result-template").content.cloneNode(true).firstElementChild;
    this.part("h3").textContent = this.name;
    const picture = this.part("img");
    picture.src = URL.createObjectURL(file);
    picture.alt = this.name;
    picture.addEventListener("load", () => this.part(".layers").style.setProperty("--ratio", picture.naturalWidth / picture.naturalHeight));
    this.part(".more").addEventListener("click", () => {
      this.isOpen = !this.isOpen;
      this.show(this.strictness);
    });
  }

  part(selector) {
    return this.element.querySelector(selector);
  }

  fail(error) {
    this.error = error.message;
    this.tell(error);
    this.part(".photo").hidden = error.status === 415;
  }

  tell(error) {
    this.part(".error").textContent = error.message;
    this.part(".error").hidden = false;
  }

  setLabels(labels) {
    this.error = null;
    this.labels = labels;
  }

  kept(strictness) {
    return this.labels.filter((label) => label.probability >= thresholdAt(strictness, label.threshold));
  }

  // What a download has of it.
  row(strictness) {
    const labels = this.kept(strictness).map((own) => ({ ...own, applied_threshold: thresholdAt(strictness, own.threshold) }));
    return { name: this.name, model: this.model, strictness, error: this.error, labels };
  }

  show(strictness) {
    this.strictness = strictness;
    const kept = new Set(this.kept(strictness));
    let below = 0;
    const shown = this.labels.filter((label) => kept.has(label) || this.isOpen || label.name === this.chosen || (below += 1) <= NUM_BELOW);
    const focused = document.activeElement?.dataset?.label;
    const hadFocus = this.element.contains(document.activeElement);
    this.part(".labels").replaceChildren(...shown.map((label) => this.line(label, kept.has(label), strictness)));
    if (hadFocus && focused) this.part(`[data-label="${CSS.escape(focused)}"]`)?.focus();
    const more = this.part(".more");
    const left = this.labels.length - shown.length;
    more.hidden = !left && !this.isOpen;
    more.textContent = this.isOpen ? "Fewer labels" : `All ${this.labels.length} labels`;
    more.setAttribute("aria-expanded", String(this.isOpen));
  }

  line(label, isKept, strictness) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.className = `label ${isKept ? "kept" : "below"}`;
    button.dataset.label = label.name;
    button.setAttribute("aria-pressed", String(label.name === this.chosen));
    const least = thresholdAt(strictness, label.threshold);
    const add = (className, text = "") => Object.assign(document.createElement("span"), { className, textContent: text });
    const track = add("track");
    track.setAttribute("aria-hidden", "true");
    const fill = add("fill");
    fill.style.width = `${100 * label.probability}%`;
    track.append(fill);
    if (least <= 1) {
      const tick = add("tick");
      tick.style.left = `calc(${100 * least}% - 1px)`;
      track.append(tick);
    }
    const words = least <= 1 ? `threshold ${percent(least)}` : "never predicted";
    const state = add("quiet", `, ${words}, ${isKept ? "kept" : "not kept"}`);
    const value = add("value", percent(label.probability));
    const shown = add("least", least <= 1 ? `from ${percent(least)}` : "never");
    shown.setAttribute("aria-hidden", "true"); // which `state` says in words
    value.append(shown);
    button.append(add("name", label.name), track, value, state);
    button.title = words;
    button.addEventListener("click", () => this.choose(label.name === this.chosen ? null : label.name));
    item.append(button);
    return item;
  }

  async choose(name) {
    this.chosen = name;
    this.show(this.strictness);
    this.onChoose(this, name);
    this.part(".busy").hidden = true;
    this.part(".stages").hidden = true;
    clear(this.part("canvas"));
    if (!name || !this.canExplain) return;
    this.part(".error").hidden = true;
    this.part(".busy").hidden = false;
    try {
      if (!this.explained.has(name)) this.explained.set(name, await explain(this.file, name, this.model));
      if (this.chosen === name) this.showMaps(this.explained.get(name));
    } catch (error) {
      if (this.chosen === name) this.tell(error);
    } finally {
      if (this.chosen === name) this.part(".busy").hidden = true;
    }
  }

  showMaps(explained) {
    const stages = this.part(".stages");
    stages.hidden = false;
    this.part("legend").textContent = `Where the network looked for ${explained.name}`;
    const before = this.part(".choices input:checked")?.value ?? "all";
    this.part(".choices").replaceChildren(
      ...explained.maps.map((map) => {
        const choice = document.createElement("label");
        const input = Object.assign(document.createElement("input"), { type: "radio", name: `stage-${this.number}`, value: map.stage });
        input.checked = map.stage === before;
        input.addEventListener("change", () => draw(this.part("canvas"), map));
        choice.append(input, map.stage === "all" ? "all together" : map.stage);
        return choice;
      }),
    );
    const first = explained.maps.find((map) => map.stage === before) ?? explained.maps[0];
    draw(this.part("canvas"), first);
  }

  remove() {
    URL.revokeObjectURL(this.part("img").src);
    this.element.remove();
  }
}
