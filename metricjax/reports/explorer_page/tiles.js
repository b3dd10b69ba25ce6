/* Pictures: sheets decoded when they are needed, kept while there is room. */

const SHEET_TILES = 64, SHEET_COLUMNS = 8, ROOM = 160e6;
const sheetTexts = document.getElementsByClassName("sheet");
const sheetsKept = new Map();
let roomTaken = 0;

/** The bitmap of a sheet; a promise. */
function sheet(number) {
  let kept = sheetsKept.get(number);
  sheetsKept.delete(number);
  if (!kept) {
    const file = new Blob([bytesOf(sheetTexts[number].textContent)], { type: "image/webp" });
    kept = { bitmap: null, bytes: 0 };
    kept.promise = createImageBitmap(file).then((bitmap) => {
      kept.bitmap = bitmap;
      kept.bytes = 4 * bitmap.width * bitmap.height;
      roomTaken += kept.bytes;
      for (const [oldest, one] of sheetsKept) {
        if (roomTaken <= ROOM) break;
        if (one === kept || !one.bitmap) continue;
        roomTaken -= one.bytes;
        sheetsKept.delete(oldest);
      }
      return bitmap;
    });
  }
  sheetsKept.set(number, kept);
  return kept.promise;
}

/** Where on its sheet an image lies: [x, y, width, height]. */
function placeOnSheet(image, bitmap) {
  const cell = bitmap.width / SHEET_COLUMNS, number = image % SHEET_TILES;
  const row = Math.floor(number / SHEET_COLUMNS), column = number % SHEET_COLUMNS;
  return [column * cell, row * cell, sizes[2 * image], sizes[2 * image + 1]];
}

/** Draws an image if its sheet is decoded; otherwise has it decoded and says so. */
function drawnAtOnce(context, image, x, y, side, later) {
  const number = Math.floor(image / SHEET_TILES);
  const kept = sheetsKept.get(number);
  if (!kept || !kept.bitmap) {
    sheet(number).then(later);
    return;
  }
  const [left, top, width, height] = placeOnSheet(image, kept.bitmap);
  if (!width) return;
  const scale = side / Math.max(width, height);
  const w = width * scale, h = height * scale;
  context.drawImage(kept.bitmap, left, top, width, height, x - w / 2, y - h / 2, w, h);
}

/** A canvas with the picture of an image. */
function picture(image) {
  const width = sizes[2 * image], height = sizes[2 * image + 1];
  const canvas = element("canvas", { "aria-hidden": "true", class: "picture" });
  if (!width) {
    canvas.classList.add("lost");
    return canvas;
  }
  canvas.width = width;
  canvas.height = height;
  if (Math.max(width, height) < Math.min(facts.side, 65)) canvas.classList.add("pixelated");
  sheet(Math.floor(image / SHEET_TILES)).then((bitmap) => {
    const place = placeOnSheet(image, bitmap);
    canvas.getContext("2d").drawImage(bitmap, ...place, 0, 0, width, height);
  });
  return canvas;
}

function sign(good) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  svg.setAttribute("class", "sign");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", good ? "#tick" : "#cross");
  svg.append(use);
  return svg;
}

/** A similarity; near 1 with one decimal more, for crowded embeddings. */
const likeness = (value) => decimals(value, value > 0.99 && value < 0.99995 ? 4 : 3);

/**
 * A button with the picture of an image; it makes the image the one that is walked to.
 *
 * `asked` is the image as whose neighbour it is shown, `alike` its similarity.
 */
function tile(image, { asked = -1, alike = null, title = "" } = {}) {
  const good = asked >= 0 && isRight(asked, image);
  const kind = asked < 0 || !judged ? "" : good ? "right" : "wrong";
  const said = [
    title, kind, className(image), facts.names[image],
    alike === null ? "" : `similarity ${likeness(alike)}`,
  ].filter((part) => part).join(", ");
  const button = element(
    "button",
    { type: "button", class: `tile ${kind}`, "data-image": image, "aria-label": said, title: said },
    picture(image),
  );
  if (alike !== null) {
    button.append(element("span", { class: "alike" }, judged ? sign(good) : null, likeness(alike)));
  }
  return button;
}
