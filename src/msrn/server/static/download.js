// Results as files: of each photo the labels that are kept, with what kept them. `threshold` is the label's own,
// `applied_threshold` what the strictness makes of it. The CSV has a line for each label of each photo.

function cell(value) {
  let text = String(value);
  // Spreadsheets would run such a cell as a formula; `_FORMULA` in data/cells.py has the same letters.
  if (typeof value === "string" && /^[=+\-@\t\r\n]/.test(text)) text = `'${text}`;
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

export function toCsv(rows) {
  const lines = [["photo", "label", "probability", "threshold", "applied_threshold", "strictness", "model", "error"]];
  for (const row of rows) {
    const add = (...label) => lines.push([row.name, ...label, row.strictness, row.model, row.error ?? ""]);
    if (!row.labels.length) add("", "", "", "");
    for (const label of row.labels) add(label.name, label.probability, label.threshold, label.applied_threshold);
  }
  return lines.map((line) => line.map(cell).join(",")).join("\r\n") + "\r\n";
}

export function save(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
