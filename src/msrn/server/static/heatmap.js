// A heat map over a photo: red raises the score, blue lowers it, nothing is clear.

const RED = [178, 24, 43];
const BLUE = [33, 102, 172];
const MOST_OPAQUE = 200;

export function draw(canvas, map) {
  const cells = document.createElement("canvas");
  cells.width = map.width;
  cells.height = map.height;
  const context = cells.getContext("2d");
  const pixels = context.createImageData(map.width, map.height);
  const most = Math.max(...map.values.flat().map(Math.abs)) || 1;
  map.values.flat().forEach((value, index) => {
    const share = Math.min(1, Math.abs(value) / most);
    pixels.data.set([...(value >= 0 ? RED : BLUE), Math.round(MOST_OPAQUE * Math.sqrt(share))], 4 * index);
  });
  context.putImageData(pixels, 0, 0);
  canvas.width = 8 * map.width;
  canvas.height = 8 * map.height;
  const target = canvas.getContext("2d");
  target.imageSmoothingQuality = "high";
  target.drawImage(cells, 0, 0, canvas.width, canvas.height);
}

export function clear(canvas) {
  canvas.width = 1;
  canvas.height = 1;
}
