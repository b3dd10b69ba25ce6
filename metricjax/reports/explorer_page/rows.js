/* Lists of any length: only the rows in sight exist. */

class Rows {
  /**
   * Rows of one height in an element that scrolls.
   *
   * `make(place)` gives the children of a row, `nothing` is said where there is none.
   * Arrow keys go from row to row.
   */
  constructor(scroller, height, kind, nothing, make) {
    this.scroller = scroller;
    this.height = height;
    this.kind = kind;
    this.make = make;
    this.count = 0;
    this.made = new Map();
    this.body = element("div", { class: "rows", role: "presentation" });
    this.nothing = element("p", { class: "nothing quiet", hidden: "" }, nothing);
    scroller.append(this.nothing, this.body);
    scroller.addEventListener("scroll", () => this.refresh(), { passive: true });
    scroller.addEventListener("keydown", (event) => this.step(event));
    new ResizeObserver(() => this.refresh()).observe(scroller);
  }

  /** Shows so many rows, from the first. */
  show(count) {
    this.count = count;
    this.nothing.hidden = count > 0;
    this.body.style.height = `${count * this.height}px`;
    for (const row of this.made.values()) row.remove();
    this.made.clear();
    this.scroller.scrollTop = 0;
    this.scroller.setAttribute("aria-rowcount", count);
    this.refresh();
  }

  refresh() {
    const top = this.scroller.scrollTop, seen = this.scroller.clientHeight;
    if (!seen) return;
    const first = Math.max(0, Math.floor(top / this.height) - 2);
    const last = Math.min(this.count, Math.ceil((top + seen) / this.height) + 2);
    for (const [place, row] of this.made) {
      const held = row.contains(document.activeElement);
      if ((place < first || place >= last) && !held) {
        row.remove();
        this.made.delete(place);
      }
    }
    for (let place = first; place < last; place++) this.row(place);
  }

  row(place) {
    let row = this.made.get(place);
    if (!row) {
      row = element("div", { class: `row ${this.kind}`, role: "row", "aria-rowindex": place + 1 });
      row.style.transform = `translateY(${place * this.height}px)`;
      row.style.height = `${this.height}px`;
      row.append(...this.make(place));
      this.made.set(place, row);
      this.body.append(row);
    }
    return row;
  }

  /** Up and down from a button to that of the next row. */
  step(event) {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const row = event.target.closest(".row");
    if (!by || !row || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const place = Number(row.getAttribute("aria-rowindex")) - 1 + by;
    if (place < 0 || place >= this.count) return;
    const at = [...row.querySelectorAll("button")].indexOf(event.target);
    const next = this.row(place);
    const buttons = next.querySelectorAll("button");
    (buttons[at] || buttons[0]).focus({ preventScroll: true });
    const top = place * this.height, view = this.scroller;
    if (top < view.scrollTop) view.scrollTop = top;
    const below = top + this.height - view.clientHeight;
    if (below > view.scrollTop) view.scrollTop = below;
  }
}

/** A cell of a row. */
const cell = (kind, ...children) => element("div", { role: "cell", class: kind }, ...children);

/** A button with the name of a class, which shows the queries of it. */
function classButton(label, view = "queries") {
  const name = facts.classes[label];
  return element("button", {
    type: "button", class: "plain class", title: name, "data-class": label, "data-view": view,
  }, name);
}

/** Says that only one class is shown, with a button that shows all again. */
function classChip(chip, label) {
  chip.hidden = label < 0;
  chip.replaceChildren();
  if (label < 0) return;
  chip.append(
    element("span", { class: "class" }, facts.classes[label]),
    element("button", {
      type: "button", class: "plain", "aria-label": "Show all classes", "data-class": "-1",
    }, "✕"),
  );
}
