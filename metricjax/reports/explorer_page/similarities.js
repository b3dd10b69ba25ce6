/* How alike pairs of images are, and pairs of classes. */

const similarityView = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const HEIGHT = 300, LEFT = 44, RIGHT = 18, TOP = 34, BOTTOM = 40;

  function shape(tag, attributes, ...children) {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  const binned = {
    edges: Array.from(numbers("edges")),
    positive: Array.from(numbers("positive")), negative: Array.from(numbers("negative")),
  };
  const totalOf = (counts) => counts.reduce((sum, value) => sum + value, 0);
  /* Enough decimals to tell one bin from the next. */
  const places = Math.max(2, Math.ceil(-Math.log10(binned.edges[1] - binned.edges[0])));

  /** Round values between two others, at most so many. */
  function ticks(low, high, most) {
    const power = 10 ** Math.floor(Math.log10((high - low) / most));
    const step = [1, 2, 5, 10].map((one) => one * power).find((one) => (high - low) / one <= most);
    const found = [];
    for (let at = Math.ceil(low / step - 1e-9); at * step <= high + 1e-9; at++) found.push(at * step);
    return found;
  }

  /** The histogram's scales: similarity and share to places in the drawing. */
  function scales({ edges }, shares, width) {
    const low = edges[0], high = edges[edges.length - 1];
    const highest = Math.max(...shares.positive, ...shares.negative, 1e-9);
    return {
      low, high, highest, width,
      x: (value) => LEFT + (width - LEFT - RIGHT) * (value - low) / (high - low),
      y: (share) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - share / highest),
      valueAt: (place) => low + (high - low) * (place - LEFT) / (width - LEFT - RIGHT),
    };
  }

  const label = (x, y, anchor, text) => shape("text", { x, y, "text-anchor": anchor }, text);

  function axes({ low, high, highest, width, x, y }) {
    const middle = (LEFT + width) / 2, made = [
      label(middle, HEIGHT - 6, "middle", "cosine similarity"),
      label(middle, 10, "middle", "Euclidean distance"),
    ];
    for (const value of ticks(low, high, (width - LEFT - RIGHT) / 54)) {
      const distance = Math.sqrt(Math.max(2 - 2 * value, 0)), at = x(value);
      made.push(
        shape("line", { x1: at, x2: at, y1: TOP, y2: HEIGHT - BOTTOM, class: "grid" }),
        label(at, HEIGHT - BOTTOM + 16, "middle", String(Number(decimals(value, places)))),
        label(at, TOP - 8, "middle", distance.toFixed(2)),
      );
    }
    for (const share of [0, highest / 2, highest]) {
      const text = (100 * share).toFixed(share && highest < 0.1 ? 1 : 0);
      made.push(label(LEFT - 6, y(share) + 4, "end", `${text}%`));
    }
    return made;
  }

  function area(kind, { edges }, shares, { low, high, x, y }) {
    const steps = shares[kind].flatMap((share, bar) =>
      [`${x(edges[bar])},${y(share)}`, `${x(edges[bar + 1])},${y(share)}`]);
    const points = [`${x(low)},${y(0)}`, ...steps, `${x(high)},${y(0)}`].join(" ");
    return shape("polygon", { points, class: `pairs ${kind}` });
  }

  /** Says what lies under the pointer. */
  function readable(svg, { edges }, shares, { width, x, valueAt }) {
    const usual = "Point at the figure to read it.";
    const reading = element("p", { class: "quiet" }, usual);
    const marker = shape("line", { y1: TOP, y2: HEIGHT - BOTTOM, class: "marker", visibility: "hidden" });
    svg.append(marker);
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const value = valueAt((event.clientX - box.left) * width / box.width);
      const bar = edges.findIndex((edge, at) => value >= edge && value < edges[at + 1]);
      marker.setAttribute("visibility", bar < 0 ? "hidden" : "visible");
      if (bar < 0) return;
      marker.setAttribute("x1", x(value));
      marker.setAttribute("x2", x(value));
      reading.textContent = `Similarity ${decimals(edges[bar], places)} to ${decimals(edges[bar + 1], places)}: `
        + `${percent(shares.positive[bar])} of the pairs of one class, ${percent(shares.negative[bar])} of the others.`;
    });
    svg.addEventListener("pointerleave", () => {
      marker.setAttribute("visibility", "hidden");
      reading.textContent = usual;
    });
    return reading;
  }

  /** What the histogram shows, in words. */
  function described() {
    const { counted: some, images, means, separation } = facts.histogram;
    const pairs = { positive: totalOf(binned.positive), negative: totalOf(binned.negative) };
    const which = some < images
      ? `All pairs of ${some.toLocaleString("en")} sampled images with the gallery: `
      : "All pairs of an image with the gallery: ";
    const ofOne = `${pairs.positive.toLocaleString("en")} of one class (mean similarity ${decimals(means[0], places)})`;
    const ofTwo = `${pairs.negative.toLocaleString("en")} of two (${decimals(means[1], places)})`;
    if (!pairs.negative) return `${which}${ofOne}.`;
    if (!pairs.positive) return `${which}${ofTwo}.`;
    return `${which}${ofOne} and ${ofTwo}. A pair of one class is more alike than a pair of two ${percent(separation)} of the time.`;
  }

  /** Draws the histogram as wide as there is room. */
  function drawHistogram(width) {
    const shareOf = (counts) => counts.map((value) => value / (totalOf(counts) || 1));
    const shares = { positive: shareOf(binned.positive), negative: shareOf(binned.negative) };
    const scale = scales(binned, shares, width), said = described();
    const svg = shape("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": said });
    svg.append(...axes(scale), area("negative", binned, shares, scale), area("positive", binned, shares, scale));
    document.getElementById("pairs-text").textContent = said;
    document.getElementById("pairs-figure").replaceChildren(
      element("div", { class: "legend" },
        element("span", {}, element("span", { class: "swatch positive" }), "pairs of one class"),
        element("span", {}, element("span", { class: "swatch negative" }), "pairs of two classes")),
      svg, readable(svg, binned, shares, scale));
  }

  const heatClasses = numbers("heatClasses"), heat = numbers("heat"), count = heatClasses.length;
  const canvas = document.getElementById("heat-canvas"), context = canvas.getContext("2d");
  const reading = document.getElementById("heat-reading");
  const STOPS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
  const finite = heat.filter((value) => !Number.isNaN(value));
  const lowest = finite.reduce((low, value) => Math.min(low, value), Infinity);
  const most = finite.reduce((high, value) => Math.max(high, value), -Infinity);
  let row = 0, column = Math.min(1, count - 1);

  function ramp(share) {
    const at = Math.max(0, Math.min(share, 1)) * (STOPS.length - 1), from = Math.min(Math.floor(at), STOPS.length - 2);
    const mixed = STOPS[from].map((one, part) => Math.round(one + (STOPS[from + 1][part] - one) * (at - from)));
    return `rgb(${mixed.join(" ")})`;
  }

  function drawHeat() {
    const side = canvas.getBoundingClientRect().width;
    if (!side) return;
    const ratio = Math.min(devicePixelRatio || 1, 2), cell = side * ratio / count;
    canvas.width = canvas.height = Math.round(side * ratio);
    const edge = (number) => Math.round(number * cell);
    for (let at = 0; at < count * count; at++) {
      const top = edge(Math.floor(at / count)), left = edge(at % count);
      context.fillStyle = Number.isNaN(heat[at]) ? "#888" : ramp((heat[at] - lowest) / (most - lowest || 1));
      context.fillRect(left, top, edge(at % count + 1) - left, edge(Math.floor(at / count) + 1) - top);
    }
    context.lineWidth = 2 * ratio;
    context.strokeStyle = "#fff";
    context.strokeRect(edge(column) - ratio, edge(row) - ratio, cell + 2 * ratio, cell + 2 * ratio);
    context.strokeStyle = "#000";
    context.strokeRect(edge(column) - 3 * ratio, edge(row) - 3 * ratio, cell + 6 * ratio, cell + 6 * ratio);
  }

  function read() {
    const one = heatClasses[row], other = heatClasses[column], value = heat[row * count + column];
    const said = Number.isNaN(value) ? "no two images" : decimals(value, Math.max(places, 3));
    reading.replaceChildren(
      element("p", { class: "big" }, said),
      element("p", { class: "quiet" }, one === other ? "mean similarity of two images of the class" : "mean similarity of an image of one and an image of the other"),
      ...[...new Set([one, other])].map((label) => element("div", { class: "of-class" },
        ...members[label].slice(0, 4).map((image) => tile(image)), classButton(label))));
    drawHeat();
  }

  function look(event) {
    const box = canvas.getBoundingClientRect();
    const at = (place, side) => Math.max(0, Math.min(count - 1, Math.floor(count * place / side)));
    const next = [at(event.clientY - box.top, box.height), at(event.clientX - box.left, box.width)];
    if (next[0] === row && next[1] === column) return;
    [row, column] = next;
    read();
  }
  canvas.addEventListener("pointermove", (event) => { if (event.pointerType !== "touch") look(event); });
  canvas.addEventListener("click", look);
  canvas.addEventListener("keydown", (event) => {
    const by = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (by) {
      row = Math.max(0, Math.min(count - 1, row + by[0]));
      column = Math.max(0, Math.min(count - 1, column + by[1]));
      read();
    } else if (event.key === "Enter") go({ view: "confusions", label: heatClasses[row] });
    else return;
    event.preventDefault();
  });

  let ready = false;
  return {
    open() {
      if (ready) return;
      ready = true;
      const figure = document.getElementById("pairs-figure");
      let drawn = 0;
      new ResizeObserver(() => {
        const width = Math.round(figure.clientWidth);
        if (!width || width === drawn) return;
        drawn = width;
        drawHistogram(width);
      }).observe(figure);
      document.getElementById("heat").hidden = count < 2;
      if (count < 2) return;
      document.getElementById("heat-text").textContent =
        `${counted(count, "class", "classes")}${count < facts.classes.length ? " that are confused most" : ""}, alike ones side by side; `
        + `from ${decimals(lowest, places)} (dark) to ${decimals(most, places)} (bright). The diagonal is pairs within a class: it should be bright, all else dark.`;
      canvas.setAttribute("aria-label", "Heat map of mean similarities between classes");
      read();
      new ResizeObserver(drawHeat).observe(canvas);
    },
  };
})();
