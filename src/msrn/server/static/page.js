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
let numStarts = 0;
let started = null; // the promise of a bundle: photos that come while one is being asked about wait for it

const strictness = () => Number(at("strictness").value);
const say = (text) => {
  at("status").textContent = text;
};

// The bundle of this name, which is that of the page unless another was chosen before its answer came; null where there is none.
async function start(name = null) {
  const number = (numStarts += 1);
  try {
    const found = await getModel(name);
    const { labels } = await getLabels(found.name);
    if (number !== numStarts) return found;
    model = found;
    at("key-form").hidden = true;
    at("model-line").textContent = `${model.num_labels} labels, ${model.architecture.backbone ?? model.architecture.name}`;
    at("model").replaceChildren(...model.models.map((own) => new Option(own, own, false, own === model.name)));
    at("model-choice").hidden = model.models.length < 2;
    showGraph(labels);
    at("strictness-note").textContent = model.has_fitted_thresholds
      ? "In the middle each label has its own threshold, fitted on validation images."
      : "In the middle each label has the bundle's threshold; none was fitted a label.";
    say("");
    return found;
  } catch (error) {
    if (number !== numStarts) return null;
    model = null;
    const isLocked = error.status === 401;
    if (isLocked) {
      at("key-form").hidden = false;
      at("key").focus();
    }
    say(isLocked && hasKey() ? "The key is wrong." : error.message);
    return null;
  }
}

function showGraph(labels) {
  at("graph-section").hidden = false;
  const edges = labels.reduce((sum, label) => sum + label.neighbours.length, 0);
  const groups = new Set(labels.map((label) => label.group).filter((group) => group !== null)).size;
  const learnt = groups > 1 ? `; colours are the ${groups} groups that the network learnt.` : groups ? "; the network put all of them in one group." : ".";
  graph = new LabelGraph(at("graph"), at("graph-text"), labels, (name) => graph.show(name));
  const left = graph.isWhole ? "" : ` Drawn are the ${graph.nodes.size} with most neighbours, and ${graph.edges.length} edges between them.`;
  at("graph-note").textContent = `${labels.length} labels, ${edges} edges${learnt}${left}`;
}

async function addFiles(files, folders = []) {
  const isPhoto = (file) => file.type.startsWith("image/") || !file.type;
  const photos = [...files].filter(isPhoto);
  const others = [...files].filter((file) => !isPhoto(file)).map((file) => file.name);
  const left = [];
  if (others.length) left.push(`No images: ${others.join(", ")}.`);
  if (folders.length) left.push(`Folders are not read: ${folders.join(", ")}. Choose the photos in them.`);
  if (!photos.length) return say(folders.length ? left.join(" ") : "Nothing there is an image. Choose JPEG, PNG, WebP or GIF files.");
  const bundle = await started;
  if (!bundle) return;
  const added = photos.map((file) => new Result(file, bundle.name, bundle.can_explain, chosen));
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
      if (!results.includes(result)) return; // cleared
      try {
        checkSize(result.file, bundle.limits.image_bytes);
        result.setLabels((await predict(result.file, result.model)).labels);
        result.show(strictness());
      } catch (error) {
        result.fail(error);
        failed += 1;
      }
      if (!results.includes(result)) return;
      done += 1;
      const parts = [`${done} of ${added.length} photos done.`];
      if (failed) parts.push(`${failed} failed.`);
      say([...parts, ...left].join(" "));
    }
  };
  await Promise.all(Array.from({ length: AT_A_TIME }, work));
}

// A photo that the server would refuse is not sent.
function checkSize(file, most) {
  const megabytes = (bytes) => `${Math.ceil(bytes / 1e5) / 10} MB`;
  if (file.size > most) throw new Error(`The photo has ${megabytes(file.size)}; this server takes up to ${megabytes(most)}. Choose a smaller one.`);
}

// What was dropped or pasted; of a folder the browser makes a file that cannot be read.
function addFrom({ items, files }) {
  const entries = [...items].filter((item) => item.kind === "file").map((item) => item.webkitGetAsEntry());
  const isFolder = (index) => entries[index]?.isDirectory;
  const folders = [...files].filter((_, index) => isFolder(index)).map((file) => file.name);
  addFiles([...files].filter((_, index) => !isFolder(index)), folders);
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
    if (kind === "drop") addFrom(event.dataTransfer);
  });
}
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) addFrom(event.clipboardData);
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
