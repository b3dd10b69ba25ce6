/* A table of the classes, sorted by any column. */

const classView = (() => {
  const COLUMNS = [
    { key: "name", title: "Class" },
    { key: "queries", title: "Queries" },
    { key: "recall", title: "Recall@1" },
    { key: "precision", title: "R-precision" },
    { key: "map", title: "MAP@R" },
    { key: "confusedTimes", title: "Confused with" },
  ];
  const head = document.getElementById("classes-head");
  const filter = document.getElementById("classes-filter");
  const said = document.getElementById("classes-count");
  const collator = new Intl.Collator("en", { numeric: true });
  const every = facts.classes.map((_, label) => label);
  let column = "recall", ascending = true, shown = [];

  const value = (label) => {
    const found = perClass[column][label];
    return Number.isNaN(found) ? Infinity : found;
  };
  const byName = (a, b) => collator.compare(facts.classes[a], facts.classes[b]);

  /** A share as a number over a bar. */
  function share(number) {
    const bar = element("span", { class: "share", "aria-hidden": "true" });
    bar.style.width = Number.isFinite(number) ? `${100 * number}%` : "0";
    return [element("span", {}, percent(number)), bar];
  }

  function make(place) {
    const label = shown[place], other = perClass.confused[label];
    const times = perClass.confusedTimes[label];
    return [
      cell("name", tile(members[label][0]), classButton(label)),
      cell("queries", perClass.queries[label].toLocaleString("en")),
      cell("recall", ...share(perClass.recall[label])),
      cell("precision", ...share(perClass.precision[label])),
      cell("map", ...share(perClass.map[label])),
      cell("confusedTimes", ...(other < 0 ? [element("span", { class: "quiet" }, "none")] : [
        element("span", { class: "times" }, `${times}×`),
        element("button", {
          type: "button", class: "plain class", title: facts.classes[other],
          "data-class": label, "data-view": "confusions",
        }, facts.classes[other]),
      ])),
    ];
  }

  const rows = new Rows(document.getElementById("classes-rows"), 60, "one-class", "No class is called so.", make);

  function show() {
    const text = filter.value.trim().toLowerCase();
    shown = every.filter((label) => !text || facts.classes[label].toLowerCase().includes(text));
    const sense = ascending ? 1 : -1;
    shown.sort(column === "name" ? (a, b) => sense * byName(a, b) : (a, b) =>
      sense * (value(a) - value(b) || 0) || byName(a, b));
    said.textContent = counted(shown.length, "class", "classes");
    for (const header of head.children) {
      const own = header.dataset.column === column;
      header.setAttribute("aria-sort", !own ? "none" : ascending ? "ascending" : "descending");
    }
    rows.show(shown.length);
  }

  for (const { key, title } of COLUMNS) {
    const button = element("button", { type: "button", class: "plain" }, title);
    button.addEventListener("click", () => {
      ascending = column === key ? !ascending : key === "name" || !["queries", "confusedTimes"].includes(key);
      column = key;
      show();
    });
    const header = element("div", { role: "columnheader", class: key, "data-column": key }, button);
    head.append(header);
  }
  filter.addEventListener("input", settled(show));
  let ready = false;
  return {
    filter,
    open() {
      if (ready) return rows.refresh();
      ready = true;
      show();
    },
  };
})();
