/* Pairs of classes that are taken for each other, with images. */

const confusionView = (() => {
  const filter = document.getElementById("confusions-filter");
  const said = document.getElementById("confusions-count");
  const pairs = numbers("pairs"), counts = numbers("pairCounts"), examples = numbers("examples");
  const every = Array.from({ length: pairs.length / 2 }, (_, pair) => pair);
  let shown = [], label = -1;

  /** How many queries of a class have their nearest image in the other. */
  const found = (label, times, arrow, where) => element("span", { class: "quiet" },
    element("span", { "aria-hidden": "true" }, `${arrow} `),
    `${times.toLocaleString("en")} of ${perClass.queries[label].toLocaleString("en")} found the class ${where}`);

  function make(place) {
    const pair = shown[place], one = pairs[2 * pair], other = pairs[2 * pair + 1];
    const there = counts[2 * pair], back = counts[2 * pair + 1];
    const shots = [];
    for (let at = 0; at < EXAMPLES; at++) {
      const image = examples[pair * EXAMPLES + at];
      if (image === NONE) break;
      shots.push(element("span", { class: "pair" }, tile(image, { title: "query" }), tile(
        neighbor(image, 0), { asked: image, alike: similarity(image, 0), title: "nearest" },
      )));
    }
    return [
      cell("words",
        classButton(one), found(one, there, "↓", "below"),
        classButton(other), found(other, back, "↑", "above")),
      cell("pictures", ...shots),
    ];
  }

  const rows = new Rows(document.getElementById("confusions-rows"), 132, "confusion",
    facts.confusions.total ? "No such pair." : "No class is taken for another one.", make);

  function show() {
    const text = filter.value.trim().toLowerCase();
    shown = every.filter((pair) => {
      const both = [pairs[2 * pair], pairs[2 * pair + 1]];
      return (label < 0 || both.includes(label))
        && (!text || both.some((one) => facts.classes[one].toLowerCase().includes(text)));
    });
    const all = facts.confusions;
    const listed = all.total > every.length ? `, the ${every.length.toLocaleString("en")} most frequent listed` : "";
    said.textContent = shown.length === every.length
      ? `${counted(all.total, "pair")} of classes in ${counted(all.queries, "wrong query", "wrong queries")}${listed}`
      : counted(shown.length, "pair");
    rows.show(shown.length);
  }

  filter.addEventListener("input", settled(show));
  let ready = false;
  return {
    filter,
    open(wanted) {
      if (ready && wanted === label) return rows.refresh();
      ready = true;
      label = wanted;
      classChip(document.getElementById("confusions-class"), label);
      show();
    },
  };
})();
