/* One image and its neighbours, and the way that led there. */

const walker = document.getElementById("walker");
const walkerBody = document.getElementById("walker-body");
const walkerToggle = document.getElementById("walker-toggle");
const LATEST = 14, SAME_CLASS = 12;
const visited = [];

/** Opens or closes the walker where it is a sheet over the page. */
function openWalker(open) {
  walker.classList.toggle("open", open);
  walkerToggle.setAttribute("aria-expanded", String(open));
  walkerToggle.textContent = open ? "Close" : "Open";
}
walkerToggle.addEventListener("click", () => {
  openWalker(!walker.classList.contains("open"));
});

/** A sentence on where the first image of the class stands. */
function verdict(image) {
  if (!valid[image]) return "This image could not be read: it has no embedding.";
  if (!judged) return "";
  if (!rank[image]) return "No other image of its class can be found: it has no right answer.";
  if (rank[image] === 1) return "The nearest image is of its class.";
  return `The first image of its class comes at rank ${rank[image].toLocaleString("en")}.`;
}

function walkerFacts(image) {
  const rows = [["Class", classButton(labels[image])]];
  if (categories) rows.push(["Category", facts.categories[categories[image]]]);
  rows.push(["File", facts.names[image]]);
  const query = queryOf[image];
  if (query >= 0) {
    const both = `${percent(precision[query])} and ${percent(averagePrecision[query])}`;
    rows.push(["R-precision and MAP@R", both]);
  } else if (valid[image] && judged) {
    rows.push(["Role", "not a query that counts in the results"]);
  }
  if (!gallery[image] && valid[image]) rows.push(["Found", "never: it is not in the gallery"]);
  rows.push(["Address", element("a", { href: `#image=${imageNumbers[image]}` }, `#image=${imageNumbers[image]}`)]);
  return element("dl", { class: "facts" }, ...rows.flatMap(([name, value]) => [
    element("dt", {}, name), element("dd", {}, value),
  ]));
}

function neighborTiles(image) {
  const list = element("ol", { class: "tiles", "aria-label": "Nearest neighbours, nearest first" });
  for (let place = 0; place < NEIGHBORS; place++) {
    const other = neighbor(image, place);
    if (other === NONE) break;
    list.append(element(
      "li", {},
      tile(other, { asked: image, alike: similarity(image, place), title: `neighbour ${place + 1}` }),
      facts.classes.length > 1 ? element("span", { class: "under" }, className(other)) : null,
    ));
  }
  return list;
}

/** Images of the same class, those that are among the neighbours left out. */
function missed(image) {
  const near = new Set(neighbors.subarray(image * NEIGHBORS, (image + 1) * NEIGHBORS));
  const others = members[labels[image]].filter((other) => other !== image && !near.has(other));
  const first = right[image];
  if (first !== NONE && !near.has(first)) {
    others.splice(others.indexOf(first), 1);
    others.unshift(first);
  }
  if (!others.length) return [];
  const list = element("ul", { class: "tiles small" });
  for (const other of others.slice(0, SAME_CLASS)) {
    const alike = other === first ? rightSimilarity[image] / 32767 : null;
    list.append(element("li", {}, tile(other, { asked: image, alike, title: "of the same class" })));
  }
  const more = others.length - SAME_CLASS;
  const which = more > 0 ? `, ${SAME_CLASS} of ${others.length.toLocaleString("en")}` : "";
  return [element("h3", {}, "Of its class, farther away", element("small", {}, which)), list];
}

function way() {
  const list = element("ul", { class: "tiles small" });
  for (const other of visited) list.append(element("li", {}, tile(other)));
  return [element("h3", {}, "Seen last"), list];
}

/** Shows an image with its neighbours. */
function walkTo(image) {
  const known = visited.indexOf(image);
  if (known >= 0) visited.splice(known, 1);
  const before = visited.length;
  const found = neighborTiles(image);
  const count = found.querySelectorAll(".right").length;
  const good = rank[image] === 1, some = judged && rank[image];
  const said = element(
    "p", { class: `verdict ${!some ? "" : good ? "right" : "wrong"}` },
    some ? sign(good) : null, verdict(image),
  );
  walkerBody.replaceChildren(
    element("div", { class: "asked" }, picture(image), walkerFacts(image)),
    said,
    element("div", { class: "steps" },
      element("button", { type: "button", "data-step": "-1", disabled: canStep(-1) ? null : "" }, "← Back"),
      element("button", { type: "button", "data-step": "1", disabled: canStep(1) ? null : "" }, "Forward →")),
    element("h3", {}, "Nearest neighbours", judged
      ? element("small", {}, `, ${count} of ${found.children.length} right`) : null),
    found,
    ...(judged ? missed(image) : []),
    ...(before ? way() : []),
  );
  visited.unshift(image);
  visited.length = Math.min(visited.length, LATEST);
  document.getElementById("walker-small").replaceChildren(picture(image));
  document.getElementById("walker-title").textContent = className(image);
  document.getElementById("walker-spoken").textContent =
    `${className(image)}, ${facts.names[image]}. ${verdict(image)}`;
  walkerBody.scrollTop = 0;
}
