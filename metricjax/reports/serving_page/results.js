// What was found: cards that lead on to their own neighbours.

function card(one, address) {
  const title = one.class || one.path;
  const known = "similarity" in one;
  const shown = make("a", { className: "card", href: address, draggable: false });
  const words = known ? `similarity ${one.similarity.toFixed(3)}` : "";
  shown.title = one.path;
  shown.append(
    make("span", { className: "frame" }, picture(one.thumbnail, "")),
    make(
      "span",
      { className: "caption" },
      badge(one),
      make("b", { textContent: title }),
      one.category ? make("span", { className: "quiet", textContent: one.category }) : null,
      known ? score(one) : null,
    ),
  );
  const said = [title, one.category, words, one.same ? "the same" : ""];
  shown.setAttribute("aria-label", said.filter(Boolean).join(", "));
  return make("li", {}, shown);
}

function badge(one) {
  return one.same ? make("span", { className: "same" }, symbol("tick"), "same") : null;
}

function score(one) {
  const fill = make("span", { className: "fill" });
  fill.style.width = `${100 * Math.max(0, Math.min(1, one.similarity))}%`;
  const bar = make("span", { className: "bar" }, fill);
  if (settings.threshold !== null && settings.threshold > 0) {
    const mark = make("span", { className: "mark" });
    mark.style.left = `${100 * settings.threshold}%`;
    bar.append(mark);
  }
  const value = make("span", {
    className: "value",
    textContent: one.similarity.toFixed(3).replace("-", "−"),
  });
  return make("span", { className: one.same ? "score is-same" : "score" }, bar, value);
}

function showCards(entries) {
  const list = element("results");
  list.replaceChildren(...entries.map((one) => card(one, addressOf({ image: one.image }))));
}

// Arrow keys lead from card to card, as they stand.
function listenToArrows() {
  element("results").addEventListener("keydown", (event) => {
    const cards = [...element("results").querySelectorAll("a")];
    const here = cards.indexOf(document.activeElement);
    if (here < 0) return;
    const top = cards[0].offsetTop;
    const columns = cards.filter((one) => one.offsetTop === top).length;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
    const next = cards[here + (steps[event.key] || NaN)];
    if (next) {
      event.preventDefault();
      next.focus();
    }
  });
}

// The last queries, the present one last.
const way = [];

function remember(query) {
  const known = way.findIndex((one) => one.key === query.key);
  if (known >= 0) way.splice(known + 1);
  else way.push(query);
  if (way.length > 12) way.shift();
  const trail = element("trail");
  trail.hidden = way.length < 2;
  trail.replaceChildren(
    ...way.map((one, place) => {
      const link = make("a", { href: one.address, draggable: false });
      link.append(picture(one.thumbnail, one.title));
      if (place === way.length - 1) link.setAttribute("aria-current", "page");
      return make("li", {}, link);
    }),
  );
}
