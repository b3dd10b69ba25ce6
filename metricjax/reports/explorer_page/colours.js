/* Colours of the map: images in groups, each group of one colour. */

const HUES = 24;
const darkScheme = matchMedia("(prefers-color-scheme: dark)");

/** A colour of the page's style by its name. */
const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const hue = (number, of) =>
  `hsl(${Math.round(360 * number / of)} ${darkScheme.matches ? "70% 66%" : "62% 45%"})`;

/** Images by group of colour: {colours, order, starts, legend}. */
function colourGroups(kind) {
  let of, colours, legend;
  if (kind === "right") {
    const group = new Uint8Array(total).fill(2);
    queries.forEach((image) => { group[image] = rank[image] === 1 ? 0 : 1; });
    of = (image) => group[image];
    colours = [ink("good"), ink("bad"), ink("quiet")];
    legend = ["nearest image is of its class", "it is not", "not a query"];
  } else {
    const names = kind === "category" ? facts.categories : facts.classes;
    const groupOf = kind === "category" ? categories : labels;
    const count = Math.min(names.length, HUES);
    /* Where colours are shared, classes in a row get others. */
    of = names.length > HUES ? (image) => groupOf[image] * 7 % HUES : (image) => groupOf[image];
    colours = Array.from({ length: count }, (_, number) => hue(number, count));
    legend = names.length > HUES ? null : names;
  }
  const starts = new Uint32Array(colours.length + 1);
  for (let image = 0; image < total; image++) starts[of(image) + 1] += 1;
  const used = colours.map((_, group) => starts[group + 1] > 0);
  for (let group = 0; group < colours.length; group++) starts[group + 1] += starts[group];
  const next = starts.slice(), order = new Uint32Array(total);
  for (let image = 0; image < total; image++) order[next[of(image)]++] = image;
  return { colours, order, starts, of, legend: legend && legend.filter((_, group) => used[group]), used };
}

/** Says which colour stands for what. */
function showLegend(box, { colours, legend, used }, what) {
  const shown = colours.filter((_, group) => used[group]);
  box.replaceChildren(...(legend || []).map((name, number) => {
    const swatch = element("span", { class: "swatch", "aria-hidden": "true" });
    swatch.style.background = shown[number];
    return element("span", {}, swatch, name);
  }));
  if (!legend) box.append(`${colours.length} colours, which ${what} share`);
}
