/* Every query with its nearest neighbour, worst or best first. */

const queryView = (() => {
  const order = document.getElementById("queries-order");
  const filter = document.getElementById("queries-filter");
  const said = document.getElementById("queries-count");
  const sorted = { index: Array.from(queries) };
  let shown = [], label = -1;

  const compare = {
    /* Whose first right neighbour comes latest; then who finds least. */
    worst: (a, b) => rank[b] - rank[a] || averagePrecision[queryOf[a]] - averagePrecision[queryOf[b]]
      || rightSimilarity[a] - rightSimilarity[b],
    best: (a, b) => rank[a] - rank[b] || averagePrecision[queryOf[b]] - averagePrecision[queryOf[a]]
      || rightSimilarity[b] - rightSimilarity[a],
  };

  function inOrder(name) {
    sorted[name] = sorted[name] || Array.from(queries).sort(compare[name]);
    return sorted[name];
  }

  function make(place) {
    const image = shown[place], nearest = neighbor(image, 0), first = right[image];
    const query = queryOf[image];
    const good = isRight(image, nearest), second = neighbor(image, 1);
    const third = !good ? tile(first, {
      asked: image, alike: rightSimilarity[image] / 32767, title: "first of its class",
    }) : NEIGHBORS > 1 ? tile(second, {
      asked: image, alike: similarity(image, 1), title: "second",
    }) : null;
    return [
      cell("pictures", tile(image, { title: "query" }), tile(nearest, {
        asked: image, alike: similarity(image, 0), title: "nearest",
      }), third),
      cell("words",
        classButton(labels[image]),
        element("span", { class: "quiet file", title: facts.names[image] }, fileName(image)),
        element("span", { class: good ? "right-ink" : "wrong-ink" },
          good ? "right at once" : `first right at rank ${rank[image].toLocaleString("en")}`),
        element("span", { class: "quiet" }, `MAP@R ${percent(averagePrecision[query])}`)),
    ];
  }

  const rows = new Rows(document.getElementById("queries-rows"), 112, "query", judged ? "No query is called so." : "No image has another one of its class.", make);

  function show() {
    const text = filter.value.trim().toLowerCase();
    shown = inOrder(order.value).filter((image) => (label < 0 || labels[image] === label)
      && (!text || className(image).toLowerCase().includes(text)
        || facts.names[image].toLowerCase().includes(text)));
    const wrong = shown.reduce((sum, image) => sum + (rank[image] > 1), 0);
    said.textContent = `${counted(shown.length, "query", "queries")}, ${wrong.toLocaleString("en")} wrong at first`;
    rows.show(shown.length);
  }

  order.addEventListener("change", show);
  filter.addEventListener("input", settled(show));
  let ready = false;
  return {
    filter,
    /** Shows the view, for one class if it is 0 or more. */
    open(wanted) {
      if (ready && wanted === label) return rows.refresh();
      ready = true;
      label = wanted;
      classChip(document.getElementById("queries-class"), label);
      show();
    },
  };
})();
