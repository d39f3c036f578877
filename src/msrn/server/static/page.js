// The page: photos in, labels out.

import { canBeKey, getLabels, getModel, hasKey, predict, useKey } from "./api.js";
import { save, toCsv } from "./download.js";
import { LabelGraph } from "./graph.js";
import { Result } from "./results.js";
import { strictnessWords } from "./strictness.js";

const AT_A_TIME = 4;
const at = (id) => document.getElementById(id);
const results = [];
let model = null;
let graph = null;
let started = null; // a promise: photos that come while a bundle is being asked about wait for it

const strictness = () => Number(at("strictness").value);
const say = (text) => {
  at("status").textContent = text;
};

async function start(name = null) {
  try {
    model = await getModel(name);
    const { labels } = await getLabels(model.name);
    at("key-form").hidden = true;
    at("model-line").textContent = `${model.num_labels} labels, ${model.architecture.backbone ?? model.architecture.name}`;
    at("model").replaceChildren(...model.models.map((own) => new Option(own, own, false, own === model.name)));
    at("model-choice").hidden = model.models.length < 2;
    showGraph(labels);
    at("strictness-note").textContent = model.has_fitted_thresholds
      ? "In the middle each label has its own threshold, fitted on validation images."
      : "In the middle each label has the bundle's threshold; none was fitted a label.";
    say("");
  } catch (error) {
    model = null;
    if (error.status !== 401) return say(error.message);
    at("key-form").hidden = false;
    at("key").focus();
    say(hasKey() ? "The key is wrong." : error.message);
  }
}

function showGraph(labels) {
  at("graph-section").hidden = false;
  const edges = labels.reduce((sum, label) => sum + label.neighbours.length, 0);
  const groups = new Set(labels.map((label) => label.group).filter((group) => group !== null)).size;
  const learnt = groups > 1 ? `; colours are the ${groups} groups that the network learnt.` : groups ? "; the network put all of them in one group." : ".";
  at("graph-note").textContent = `${labels.length} labels, ${edges} edges${learnt}`;
  graph = new LabelGraph(at("graph"), at("graph-text"), labels, (name) => graph.show(name));
}

async function addFiles(files) {
  const isPhoto = (file) => file.type.startsWith("image/") || !file.type;
  const photos = [...files].filter(isPhoto);
  const others = [...files].filter((file) => !isPhoto(file)).map((file) => file.name);
  if (!photos.length) return say("Nothing there is an image. Choose JPEG, PNG, WebP or GIF files.");
  await started;
  if (!model) return;
  const added = photos.map((file) => new Result(file, model.name, model.can_explain, chosen));
  for (const result of added) {
    results.push(result);
    at("results").append(result.element);
  }
  at("controls").hidden = false;
  let done = 0;
  let failed = 0;
  const waiting = [...added];
  const work = async () => {
    for (let result = waiting.shift(); result; result = waiting.shift()) {
      try {
        result.setLabels((await predict(result.file, result.model)).labels);
        result.show(strictness());
      } catch (error) {
        result.fail(error);
        failed += 1;
      }
      done += 1;
      const parts = [`${done} of ${added.length} photos done.`];
      if (failed) parts.push(`${failed} failed.`);
      if (others.length) parts.push(`No images: ${others.join(", ")}.`);
      say(parts.join(" "));
    }
  };
  await Promise.all(Array.from({ length: AT_A_TIME }, work));
}

// The graph is that of the bundle chosen now; a photo may have labels of another one.
function chosen(result, name) {
  graph?.show(result.model === model?.name ? name : null);
}

function showStrictness() {
  const words = strictnessWords(strictness());
  at("strictness-value").textContent = words;
  at("strictness").setAttribute("aria-valuetext", words);
  for (const result of results) if (result.labels.length) result.show(strictness());
}

const rows = () => results.map((own) => own.row(strictness()));

at("files").addEventListener("change", (event) => {
  addFiles(event.target.files);
  event.target.value = "";
});
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop") addFiles(event.dataTransfer.files);
  });
}
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) addFiles(event.clipboardData.files);
});
at("strictness").addEventListener("input", showStrictness);
at("csv").addEventListener("click", () => save("labels.csv", "text/csv", toCsv(rows())));
at("json").addEventListener("click", () => save("labels.json", "application/json", JSON.stringify(rows(), null, 2)));
at("clear").addEventListener("click", () => {
  for (const result of results.splice(0)) result.remove();
  at("controls").hidden = true;
  graph?.show(null);
  say("");
  at("files").focus();
});
at("model").addEventListener("change", (event) => {
  for (const result of results) if (result.chosen) result.choose(null);
  started = start(event.target.value);
});
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = at("key").value.trim();
  if (!canBeKey(given)) return say("The key is wrong: keys are made of ASCII characters.");
  useKey(given);
  started = start();
});

showStrictness();
started = start();
