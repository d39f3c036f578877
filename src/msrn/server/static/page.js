// The page: photos in, labels out.

import { getLabels, getModel, predict, useKey } from "./api.js";
import { save, toCsv } from "./download.js";
import { LabelGraph } from "./graph.js";
import { Result } from "./results.js";
import { strictnessWords } from "./strictness.js";

const AT_A_TIME = 4;
const at = (id) => document.getElementById(id);
const results = [];
let model = null;
let graph = null;

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
    at("key-form").hidden = error.status !== 401;
    if (error.status === 401) at("key").focus();
    say(error.message);
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
  const photos = [...files].filter((file) => file.type.startsWith("image/") || !file.type);
  if (!photos.length) return say("Nothing there is an image. Choose JPEG, PNG, WebP or GIF files.");
  if (!model) return say("The server has not answered yet.");
  const added = photos.map((file) => new Result(file, model.name, model.can_explain, (_, name) => graph?.show(name)));
  for (const result of added) {
    results.push(result);
    at("results").append(result.element);
  }
  at("controls").hidden = false;
  let done = 0;
  const waiting = [...added];
  const work = async () => {
    for (let result = waiting.shift(); result; result = waiting.shift()) {
      try {
        result.setLabels((await predict(result.file, result.model)).labels);
        result.show(strictness());
      } catch (error) {
        result.fail(error);
      }
      done += 1;
      say(`${done} of ${added.length} photos done.`);
    }
  };
  await Promise.all(Array.from({ length: AT_A_TIME }, work));
}

function showStrictness() {
  at("strictness-value").textContent = strictnessWords(strictness());
  for (const result of results) if (result.labels.length) result.show(strictness());
}

const rows = () => results.map((own) => ({ name: own.name, model: own.model, error: own.error, labels: own.kept(strictness()) }));

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
at("model").addEventListener("change", (event) => start(event.target.value));
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(at("key").value);
  start();
});

showStrictness();
start();
