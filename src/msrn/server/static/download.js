// Results as files. The JSON is as the server answers; the CSV has a line for each label of each photo.

function cell(value) {
  let text = String(value);
  // Spreadsheets would run such a cell as a formula.
  if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

export function toCsv(rows) {
  const lines = [["photo", "label", "probability", "error"]];
  for (const row of rows) {
    if (row.error) lines.push([row.name, "", "", row.error]);
    else if (!row.labels.length) lines.push([row.name, "", "", ""]);
    for (const label of row.labels) lines.push([row.name, label.name, label.probability, ""]);
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
